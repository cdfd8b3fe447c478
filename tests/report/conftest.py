"""The made-up study, its figures and its page, each made once."""

import pyarrow as pa
import pytest
from report_study import CONTEXT, REFERENCE, build_tables

from raygeo.report.figures import draw_figures
from raygeo.report.page import render_page


@pytest.fixture(scope="session")
def tables() -> dict[str, pa.Table]:
    return build_tables()


@pytest.fixture(scope="session")
def figures(tables):
    return draw_figures(tables, REFERENCE)


@pytest.fixture(scope="session")
def page(tables, figures) -> str:
    return render_page(tables, CONTEXT, figures)
