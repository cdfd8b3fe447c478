"""An S3 server on this machine, which can be told that it is full."""

import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from moto.server import DomainDispatcherApplication, create_backend_app
from pyarrow import fs
from werkzeug.serving import make_server

_FULL = b"<Error><Code>XMinioStorageFull</Code><Message>Storage backend has reached its minimum free</Message></Error>"


class S3Server:
    """Moto's S3 at ``port`` of 127.0.0.1; while ``full``, it takes nothing that has content."""

    def __init__(self) -> None:
        self.full = False
        self.bucket = f"bucket-{uuid.uuid4().hex[:8]}"  # servers in one process share what they hold
        self.app = DomainDispatcherApplication(create_backend_app)
        self.server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.port = self.server.server_port

    def uri(self, name: str) -> str:
        """The URI of a folder in its bucket."""
        return f"s3://{self.bucket}/{name}?endpoint_override=127.0.0.1:{self.port}&scheme=http&region=us-east-1"

    def _answer(self, environment: dict[str, Any], start: Any) -> Any:
        size = int(environment.get("CONTENT_LENGTH") or 0)
        if self.full and environment["REQUEST_METHOD"] in ("PUT", "POST") and size:
            environment["wsgi.input"].read(size)
            start("507 Insufficient Storage", [("Content-Type", "application/xml")])
            return [_FULL]
        return self.app(environment, start)


@contextmanager
def s3_server(monkeypatch: Any) -> Iterator[S3Server]:
    """A server with an empty bucket; this process and its children have its credentials."""
    for name, value in {"ACCESS_KEY_ID": "key", "SECRET_ACCESS_KEY": "secret", "EC2_METADATA_DISABLED": "true"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    s3 = S3Server()
    thread = threading.Thread(target=s3.server.serve_forever, daemon=True)
    thread.start()
    try:
        filesystem, _ = fs.FileSystem.from_uri(s3.uri("") + "&allow_bucket_creation=true")
        filesystem.create_dir(s3.bucket)
        yield s3
    finally:
        s3.server.shutdown()
        thread.join()
