"""Narrow backbones for the studies of kernels."""

import pytest

from pelk_mm.analysis.open_backbone import random_backbone

from .narrow_kernels import COMMON, CONFIGS


@pytest.fixture(params=CONFIGS)
def kind(request):
    return request.param


@pytest.fixture
def trained(kind, randomise):
    """A backbone with norms as after a training."""
    return randomise(random_backbone({**CONFIGS[kind], **COMMON}))
