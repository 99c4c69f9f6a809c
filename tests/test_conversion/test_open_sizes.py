"""Adaptive pooling as exported, held to torch's."""

import pytest
import torch
from torch import nn

from pelk_mm.conversion.open_sizes import (
    MatrixAdaptiveAvgPool2d,
    averaging_matrix,
    open_adaptive_pooling,
)

#: Maps with more and with fewer rows than there are bins.
MAPS = [(1, 1), (2, 5), (7, 13), (32, 64)]


@pytest.mark.parametrize('bins', [1, 2, 3, 6, (2, None), (None, 1), (3, 7)])
def test_equals_torch(bins):
    for size in MAPS:
        x = torch.randn(2, 3, *size)
        wanted = nn.AdaptiveAvgPool2d(bins)(x)
        torch.testing.assert_close(MatrixAdaptiveAvgPool2d(bins)(x), wanted)


def test_rows_sum_to_one():
    for size in range(1, 20):
        sums = averaging_matrix(6, size, torch.ones(1)).sum(1)
        torch.testing.assert_close(sums, torch.ones(6))


def test_only_average_poolings_are_replaced():
    model = nn.Sequential(
        nn.AdaptiveAvgPool2d((2, 3)), nn.Sequential(nn.AdaptiveMaxPool2d(2))
    )
    assert open_adaptive_pooling(model) == 1
    assert isinstance(model[0], MatrixAdaptiveAvgPool2d)
    assert isinstance(model[1][0], nn.AdaptiveMaxPool2d)


def test_exported_with_open_sizes():
    model = MatrixAdaptiveAvgPool2d(6)
    dims = {2: torch.export.Dim('height'), 3: torch.export.Dim('width')}
    program = torch.export.export(
        model, (torch.zeros(2, 3, 9, 10),), dynamic_shapes=(dims,)
    )
    for size in MAPS[1:]:
        x = torch.randn(2, 3, *size)
        wanted = nn.AdaptiveAvgPool2d(6)(x)
        torch.testing.assert_close(program.module()(x), wanted)
