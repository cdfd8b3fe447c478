"""The versions of what numbers depend on."""

from importlib.metadata import version

PACKAGES = ("raygeo", "torch", "transformers", "deepspeed", "ray", "peft", "mlflow", "datasets", "pyarrow", "numpy")


def versions() -> dict[str, str]:
    """The installed version of each of ``PACKAGES``."""
    return {package: version(package) for package in PACKAGES}
