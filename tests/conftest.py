"""Fixtures that several test files use."""

from pathlib import Path

import pytest
import torch

SHARED = Path(__file__).resolve().parents[2] / 'shared'


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def shared():
    """Folder of real data and of tensors from the released implementations."""
    if not SHARED.is_dir():
        pytest.skip(f'no reference data: {SHARED} does not exist')
    return SHARED
