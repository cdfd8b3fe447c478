"""The made-up study, its figures and its page, each made once."""

from pathlib import Path

import pyarrow as pa
import pytest
from report_study import CONTEXT, REFERENCE, build_tables

from raygeo.analyses import registry
from raygeo.report.page import draw_figures, render_page
from raygeo.report.view import View


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Tests that draw every figure of the study are slow: drawing them takes as long as hundreds of others."""
    for item in items:
        if item.path.parent == Path(__file__).parent and {"figures", "page"} & set(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def tables() -> dict[str, pa.Table]:
    return build_tables()


@pytest.fixture(scope="session")
def view(tables) -> View:
    return registry.view(tables, REFERENCE)


@pytest.fixture(scope="session")
def figures(view):
    return draw_figures(view, registry.parts())


@pytest.fixture(scope="session")
def page(view, figures) -> str:
    return render_page(view, CONTEXT, figures, registry.parts())
