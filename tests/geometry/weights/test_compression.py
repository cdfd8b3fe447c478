import numpy as np
import pytest
import torch

from raygeo.geometry.weights.compression import magnitude_thresholds, prune, round_to_nearest

SHARES = (0.0, 0.1, 0.5, 0.9, 0.999)


def tensors(*shapes, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype).float() for shape in shapes]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_thresholds_are_entries_of_the_sorted_whole(dtype):
    parts = tensors((40, 30), (7,), (2, 3, 50), dtype=dtype)
    whole = np.sort(np.concatenate([part.abs().flatten().numpy() for part in parts]))
    found = magnitude_thresholds(lambda: parts, SHARES)
    assert found == [whole[int(share * len(whole))] for share in SHARES]
    kept = sum(int((prune(part, found[2]) != 0).sum()) for part in parts)
    assert 1 - kept / len(whole) <= 0.5
    assert dtype != torch.float32 or kept == len(whole) - len(whole) // 2


def test_what_is_zero_already_counts_as_pruned():
    weight = torch.tensor([0.0, 0.0, 0.0, -3.0, 2.0])
    [low, high] = magnitude_thresholds(lambda: [weight], (0.4, 0.8))
    assert (low, high) == (0.0, 3.0)
    assert prune(weight, high).tolist() == [0, 0, 0, -3, 0]


def test_no_share_and_no_entry_are_refused():
    with pytest.raises(ValueError, match="must lie in"):
        magnitude_thresholds(lambda: [torch.ones(3)], (1.0,))
    with pytest.raises(ValueError, match="no entries"):
        magnitude_thresholds(list, (0.5,))


@pytest.mark.parametrize("bits", [8, 4])
def test_rounding_by_channel_is_that_of_torch(bits):
    [weight] = tensors((20, 31))
    most = 2 ** (bits - 1) - 1
    scales, zeros = weight.abs().amax(1) / most, torch.zeros(20, dtype=torch.int32)
    expected = torch.fake_quantize_per_channel_affine(weight, scales, zeros, 0, -most, most)
    torch.testing.assert_close(round_to_nearest(weight, bits), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("bits", "size"), [(4, 0), (4, 8), (2, 31), (3, 100), (8, 1)])
def test_groups_are_rounded_one_by_one_in_fp64(bits, size):
    [weight] = tensors((5, 30))
    weight[2, :8] = 0
    expected, most = weight.double().clone(), 2 ** (bits - 1) - 1
    for row in expected:
        for group in row.split(size or 30):
            scale = group.abs().max() / most
            if scale > 0:
                group.copy_((group / scale).round() * scale)
    found = round_to_nearest(weight.double(), bits, size)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert round_to_nearest(weight, bits, size).dtype == torch.float32


def test_more_bits_lose_less_and_odd_ones_are_refused():
    [weight] = tensors((30, 64))
    lost = [float((round_to_nearest(weight, bits) - weight).norm()) for bits in (2, 4, 6, 8)]
    assert lost == sorted(lost, reverse=True)
    for bits, size in ((1, 0), (9, 0), (4, -1)):
        with pytest.raises(ValueError, match="2 to 8 bits"):
            round_to_nearest(weight, bits, size)
