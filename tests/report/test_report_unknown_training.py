"""Runs of which nothing is known but their weights."""

import json

from view_cases import view_of

from raygeo.analyses import registry
from raygeo.analyses.similarity.report import seed_pairs
from raygeo.report.results import results


def weights_alone(**runs):
    return view_of(
        next(iter(runs)),
        runs=[
            {"run": name, "key": name, "status": "finished", "params": json.dumps({"stored": stored})}
            for name, (_, stored) in runs.items()
        ],
        deltas=[
            {"run": name, "module": "", "scope": "global", "norm": relative, "base_norm": 1.0}
            | {"relative_norm": relative}
            for name, (relative, _) in runs.items()
        ],
        similarity=[
            {"run_a": a, "run_b": b, "scope": "global", "name": "", "cosine": 0.9} for a in runs for b in runs if a != b
        ],
    )


def limits(view):
    return [sentence for caveat in registry.parts().caveats for sentence in caveat(view)]


def test_nothing_is_claimed_about_training():
    view = weights_alone(a=(0.011, None), b=(0.01, "F32"))
    assert limits(view) == []
    assert seed_pairs(view).empty
    assert view.losses == {}
    assert view.by_loss({"a", "b"}) == {"a": ["a"], "b": ["b"]}
    sheet = results(view, registry.parts().columns)
    assert sheet.columns[:2] == ["run", "status"]
    assert [row[1] for row in sheet.rows] == ["untrained", "finished", "finished"]
