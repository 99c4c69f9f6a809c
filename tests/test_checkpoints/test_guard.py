"""The guard against released names, which knows files and names but no models."""

import shlex

import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.checkpoints.guard import refuse_released_names, require_converted

SLAK = 'stages.0.0.pwconv1.weight'
REPLKNET = 'stem.0.conv.weight'
OURS = 'stages.0.blocks.0.mixer.large.conv.weight'


@pytest.fixture
def save(tmp_path):
    """Writes weights of these names; returns the path."""

    def write(*names, key='state_dict'):
        weights = {name: torch.zeros(1) for name in names}
        torch.save({key: weights}, tmp_path / 'a.pth')
        return str(tmp_path / 'a.pth')

    return write


@pytest.mark.parametrize(
    ('name', 'backbone_type', 'warm_start', 'options'),
    [
        (SLAK, 'SLaK', '', []),
        (f'module.backbone.{SLAK}', 'SLaK', '', []),
        (REPLKNET, 'RepLKNet', '', []),
        (SLAK, 'PeLK', 'pelk', ['--warm-start', 'pelk']),
        (REPLKNET, 'PeLK', 'pelk-base-101', ['--warm-start', 'pelk-base-101']),
    ],
)
def test_released_names_are_refused_with_the_command(
    save, name, backbone_type, warm_start, options
):
    path = save(name)
    with pytest.raises(CheckpointError, match='has the released names') as error:
        require_converted(path, backbone_type, warm_start)
    assert shlex.split(str(error.value).splitlines()[1]) == [
        'pelk-mm',
        'convert_checkpoint',
        path,
        path.replace('a.pth', 'a_pelk_mm.pth'),
        *options,
    ]


def test_averaged_weights_are_asked_for(save):
    with pytest.raises(CheckpointError, match=r'_pelk_mm\.pth --ema\n'):
        require_converted(save(SLAK, key='model_ema'), 'SLaK')


def test_checkpoint_of_another_family_is_refused(save):
    with pytest.raises(
        CheckpointError,
        match='a released RepLKNet checkpoint, but the backbone is SLaK',
    ):
        require_converted(save(REPLKNET), 'SLaK')


def test_what_is_not_released_passes(save, tmp_path):
    require_converted(save(OURS), 'SLaK')
    require_converted(save('layer1.0.conv1.weight'), 'SLaK')
    require_converted(str(tmp_path / 'nowhere.pth'), 'SLaK')
    torch.save([1], tmp_path / 'list.pth')
    require_converted(str(tmp_path / 'list.pth'), 'SLaK')


def test_names_without_a_file():
    refuse_released_names([OURS, 'decode_head.conv_seg.weight'])
    with pytest.raises(
        CheckpointError,
        match='released names of SLaK; convert it with\n  pelk-mm convert_checkpoint',
    ):
        refuse_released_names([SLAK])
