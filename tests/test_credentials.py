"""Passwords and keys in URIs stand in no error, no file and no table of a store, and on no page.

``store/test_s3_study.py`` looks for one through all that a study leaves in an object store, and
``store/test_copied_tracking.py`` in a copy.
"""

import pickle

import pytest
import yaml

from raygeo.data.readers.files import locate
from raygeo.data.validation import Record
from raygeo.errors import ConfigError, FullStoreError, RaygeoError, StoreError, StudentError
from raygeo.paths import is_inside, local_path, without_credentials
from raygeo.pipeline.comparison import plan_comparison
from raygeo.pipeline.config import parse_study, study_yaml
from raygeo.pipeline.report import about_study
from raygeo.pipeline.standing import Standing, known_about
from raygeo.progress import Progress
from raygeo.report.page import PageContext
from raygeo.store import Store

pytestmark = pytest.mark.cluster


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("s3://key:secret@bucket/x", "s3://bucket/x"),
        ("s3://key:sec/ret@bucket/x", "s3://bucket/x"),
        ("s3://key:1/ret@bucket/x", "s3://bucket/x"),
        ("s3://key:9000/sec/ret@bucket/x", "s3://bucket/x"),
        ("abfs://container:1/ret@account.dfs.core.windows.net/x", "abfs://account.dfs.core.windows.net/x"),
        ("postgresql+psycopg2://u:1/2@h:5432/db", "postgresql+psycopg2://h:5432/db"),
        ("http://u:pa/ss@host/x", "http://host/x"),
        ("s3://k<ey:se<cret@bucket/x", "s3://bucket/x"),
        ("at https://hf_token@host/x, then", "at https://host/x, then"),
        ("http://u:p@ss@host:80/x", "http://host:80/x"),
        ("s3://b/x?secret_key=abc&region=eu", "s3://b/x?secret_key=***&region=eu"),
        ("s3://b?access_key=abc", "s3://b?access_key=***"),
        ("postgresql://u:p@h/db 'x'", "postgresql://h/db 'x'"),
        ("http://127.0.0.1:5000/a@b", "http://127.0.0.1:5000/a@b"),
        ("hdfs://name:8020/user/a@b", "hdfs://name:8020/user/a@b"),
        ("s3://bucket/a:b@c", "s3://bucket/a:b@c"),
        ("abfs://container@account.dfs.core.windows.net/x", "abfs://container@account.dfs.core.windows.net/x"),
        (
            "s3://bucket/x?endpoint_override=http://127.0.0.1:9000",
            "s3://bucket/x?endpoint_override=http://127.0.0.1:9000",
        ),
        ("nobody@example.org: no URI", "nobody@example.org: no URI"),
    ],
)
def test_users_and_passwords_are_not_shown(text, shown):
    assert without_credentials(text) == shown


@pytest.mark.parametrize("piece", ["a://b:c,", "http://x", "http://h:80/", "a://b:c,<", "aaaaaaaa", "&token"])
def test_long_texts_without_a_space_take_time_in_proportion(piece):
    """One that grew with the square of their length would take hours here, and the test's limit ends it."""
    text = piece * 200_000
    assert without_credentials(f"{text}@{text}=").endswith(f"{text}=")


@pytest.mark.parametrize("kind", [ConfigError, StoreError, FullStoreError, StudentError, RaygeoError])
def test_errors_do_not_show_them_and_pickle(kind):
    error = pickle.loads(pickle.dumps(kind("s3://key:secret@bucket cannot be read")))
    assert type(error) is kind
    assert str(error) == "s3://bucket cannot be read"


def test_nor_do_a_reader_the_kept_study_and_its_page():
    with pytest.raises(RaygeoError) as raised:
        locate("nope://key:secret@host/x")
    assert "secret" not in str(raised.value)
    study = parse_study(
        {
            "name": "test",
            "store": "s3://key:secret@bucket/store",
            "rollouts": {"read": [{"type": "jsonl", "path": "s3://key:secret@bucket/x.jsonl"}]},
            "student": {"model": "some/model"},
            "runs": [{"loss": {"type": "sft"}}],
        }
    )
    assert study.store == "s3://key:secret@bucket/store"
    for said in (study_yaml(study), about_study(study, ()).settings_yaml):
        assert "secret" not in said
        assert said.count("s3://bucket") == 2


def test_nor_does_a_comparison(tmp_path):
    comparison = plan_comparison(
        "base", ["one", "two"], store="s3://key:secret@bucket/compared?secret_key=secret", solutions="s3://k:secret@b/x"
    )
    assert comparison.solutions.path == "s3://k:secret@b/x"
    said = study_yaml(comparison)
    assert "secret@" not in said
    assert "secret_key=***" in said
    store = Store(tmp_path)
    store.write_bytes("comparison.yaml", yaml.safe_dump({"base": "https://token@host/x"}).encode())
    assert known_about(store).student == "Base: https://host/x"
    Standing(store, PageContext("a study", "student of s3://k:secret@b/x", "", "now"), [], Progress()).note(
        caveats=["read from s3://k:secret@b/y"]
    )
    assert b"s3://b/x" in store.read_bytes("report.json")
    assert b"secret" not in store.read_bytes("report.json")


def test_nor_does_what_says_where_a_row_comes_from():
    assert Record("s3://key:secret@bucket/x.jsonl?secret_key=abc", 3).origin == "s3://bucket/x.jsonl?secret_key=***"


@pytest.mark.parametrize("part", ["../x", "a/../../x", "/x", "a\0b", ".."])
def test_what_leads_out_is_not_inside(part):
    assert not is_inside(part)
    assert is_inside("a/b..c")


@pytest.mark.parametrize("path", ["", " ", "a\0b", "~nobody-of-this-name/x"])
def test_what_can_be_no_path_is_refused(path):
    with pytest.raises(ValueError):
        local_path(path)
