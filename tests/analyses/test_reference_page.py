"""The reference page is what the analyses declare."""

from pathlib import Path

from raygeo.analyses.reference import reference_page
from raygeo.analyses.registry import analyses

PAGE = Path(__file__).parents[2] / "docs" / "analyses.md"


def test_the_page_in_the_docs_is_current():
    assert PAGE.read_text() == reference_page(), "raygeo analyses --page docs/analyses.md"


def test_every_option_and_table_is_described():
    for analysis in analyses().values():
        assert analysis.question.endswith("?")
        for name, columns in analysis.tables.items():
            assert columns.metadata[b"about"], name
        for name, field in analysis.settings.model_fields.items():
            assert field.description, f"{analysis.name}.{name}"
