"""What a problem says of itself."""

import pytest
import torch

from pelk_mm.ops.problem import Problem, accumulation_dtype, fast_length


@pytest.mark.parametrize(('least', 'length'), [(1, 2), (7, 8), (13, 16), (154, 160)])
def test_fast_lengths(least, length):
    assert fast_length(least) == length


@pytest.mark.parametrize(
    ('shape', 'kernel', 'clipped'),
    [
        ((2, 3, 8, 9), (5, 7), (5, 7)),
        ((2, 3, 8, 9), (51, 5), (15, 5)),
        ((2, 3, 1, 1), (51, 51), (1, 1)),
        ((2, 3, 0, 4), (51, 51), (1, 7)),
    ],
)
def test_kernels_are_clipped_to_valid_taps(shape, kernel, clipped):
    x, weight = torch.zeros(shape), torch.zeros(shape[1], *kernel)
    assert Problem.of(x, weight, None).kernel == clipped


def test_mean_of_valid_taps():
    """Counted pixel by pixel."""
    for size, taps in ((9, 5), (9, 17), (4, 51), (1, 3)):
        problem = Problem((1, 1, size, size), (taps, taps))
        radius = taps // 2
        counted = sum(
            abs(at - tap) <= radius for at in range(size) for tap in range(size)
        )
        assert problem.valid_taps(0) == pytest.approx(counted / size)


def test_sums_are_kept_in_float32_at_least():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        assert accumulation_dtype(dtype) == torch.float32
    assert accumulation_dtype(torch.float64) == torch.float64
