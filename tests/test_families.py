"""Causal families of transformers, tiny: taken and right, or refused with a reason, as ``docs/families.md`` has it.

Those that people train, one for each way in which others differ, and every fourth of all, of which most are copies of
one another; ``checks/families.py`` tries all of them.
"""

import json
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import pytest
from process_cases import run_in_group
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from checks.families import Outcome, row, try_families

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.long]

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
FAMILIES = list(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
TAKEN = (
    "opt", "starcoder2", "falcon", "bloom", "xglm", "biogpt", "mixtral", "gemma2", "gpt_oss", "gpt_neox", "qwen3_moe",
    "olmoe", "gpt2", "llama", "qwen3", "phi3", "mistral", "gemma3_text", "cohere2", "granite", "deepseek_v3",
)  # fmt: skip
UNLIKE = (
    "falcon_h1", "mamba", "beam", "xlstm", "lfm3", "minimax", "cpmant", "bert", "deepseek_v4", "bart",
    "recurrent_gemma", "whisper", "dbrx", "gemma3", "zamba",
)  # fmt: skip
TRIED = list(dict.fromkeys([*TAKEN, *UNLIKE, *FAMILIES[::4]]))


def try_share(rank: int, ranks: int, folder: Path) -> None:
    outcomes = [asdict(outcome) for outcome in try_families(TRIED[rank::ranks])]
    (folder / f"{rank}.json").write_text(json.dumps(outcomes))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory) -> dict[str, Outcome]:
    folder = tmp_path_factory.mktemp("families")
    run_in_group(try_share, 2, folder)
    found = [Outcome(**outcome) for file in folder.iterdir() for outcome in json.loads(file.read_text())]
    return {outcome.family: outcome for outcome in found}


def test_what_is_not_refused_is_what_transformers_and_peft_compute(outcomes):
    assert {family: outcome.wrong for family, outcome in outcomes.items() if outcome.wrong} == {}
    assert sum(outcome.verdict.startswith("every weight") for outcome in outcomes.values()) >= len(TRIED) / 2


def test_families_that_people_train_are_taken_with_every_weight_and_with_adapters(outcomes):
    assert {family: outcomes[family].verdict for family in TAKEN} == dict.fromkeys(TAKEN, "every weight, adapters")


def test_the_page_says_what_became_of_every_family(outcomes):
    kept = PAGE.read_text()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in kept.splitlines() if line.startswith("| ")}
    assert rows.keys() - {"family", "---"} == {*FAMILIES}
    if f"transformers {version('transformers')} and PEFT {version('peft')}" not in kept:
        pytest.skip(f"{PAGE.name} was written with other versions")
    made = {outcome.family: row(outcome) for outcome in outcomes.values()}
    assert made == {family: rows[family] for family in made}, "python -m checks.families --page docs/families.md"
