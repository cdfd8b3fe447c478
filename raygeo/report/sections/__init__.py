"""The tables of the page as rows of ready text, one function each; a table without data has no rows.

A new table under "Pairs and tests" is one function under ``@section(...)`` in the module of its kind; the page finds it
in ``SECTIONS``.
"""

from raygeo.report.sections import (
    connectivity,
    curvature,
    off_principal,
    representation,
    results,
    weights,
    yardsticks,
)
from raygeo.report.sections.parts import Section

SECTIONS: list[Section] = [
    part
    for module in (weights, yardsticks, off_principal, results, connectivity, curvature, representation)
    for part in vars(module).values()
    if isinstance(part, Section)
]
