"""What analyses compute where a device holds fewer texts at once than they are asked to take."""

import golden_numbers
import pytest
import torch
from golden_numbers import Golden, difference
from torch.nn.modules.module import register_module_forward_pre_hook

from raygeo.analyses.registry import analyses

pytestmark = [pytest.mark.cluster, pytest.mark.long]

ROOM = 2


@pytest.fixture(scope="module", autouse=True)
def small_device():
    """A device that holds ``ROOM`` texts; it counts how often it was asked for more."""
    refused = []

    def check(module, args):
        if isinstance(module, torch.nn.Embedding) and args[0].ndim == 2 and len(args[0]) > ROOM:
            refused.append(len(args[0]))
            raise torch.OutOfMemoryError("CUDA out of memory.")

    golden_numbers.inputs.cache_clear()  # with a store that has no unit yet
    golden_numbers.inputs()
    hook = register_module_forward_pre_hook(check)
    yield refused
    hook.remove()
    golden_numbers.inputs.cache_clear()


def halving():
    return [name for name, analysis in analyses().items() if any(kind.batch_settings for kind in analysis.workloads)]


@pytest.mark.parametrize("name", halving())
def test_an_analysis_computes_the_same_with_smaller_batches(name, small_device):
    small_device.clear()
    if found := difference(name, Golden.kept(name), Golden.now(name)):
        pytest.fail(found)
    assert small_device


def test_settings_that_are_halved_are_options_of_the_analysis():
    for name in halving():
        halved = {setting for kind in analyses()[name].workloads for setting in kind.batch_settings}
        assert halved <= set(analyses()[name].settings.model_fields)
