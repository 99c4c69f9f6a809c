"""The look into a file before it is loaded, at names and not at models."""

import shlex

import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.checkpoints.fit import WeightsError
from pelk_mm.checkpoints.guard import require_loadable

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
        require_loadable(path, backbone_type, warm_start)
    assert shlex.split(str(error.value).splitlines()[1]) == [
        'pelk-mm',
        'convert_checkpoint',
        path,
        path.replace('a.pth', 'a_pelk_mm.pth'),
        *options,
    ]


def test_averaged_weights_are_asked_for(save):
    with pytest.raises(CheckpointError, match=r'_pelk_mm\.pth --ema\n'):
        require_loadable(save(SLAK, key='model_ema'), 'SLaK')


def test_checkpoint_of_another_family_is_refused(save):
    with pytest.raises(
        CheckpointError,
        match='a released RepLKNet checkpoint, but the backbone is SLaK',
    ):
        require_loadable(save(REPLKNET), 'SLaK')


def test_what_is_not_released_passes(save, tmp_path):
    require_loadable(save(OURS), 'SLaK')
    require_loadable(save('layer1.0.conv1.weight'), 'SLaK')
    require_loadable(str(tmp_path / 'nowhere.pth'), 'SLaK')
    torch.save([1], tmp_path / 'list.pth')
    require_loadable(str(tmp_path / 'list.pth'), 'SLaK')


@pytest.mark.parametrize(
    ('names', 'prefix', 'message'),
    [
        ([f'backbone.{OURS}'], 'encoder.', "under 'backbone.'; set prefix='backbone.'"),
        ([f'backbone.{OURS}', 'head.a'], 'head', "under 'backbone.'; set prefix='back"),
        (
            [f'student.backbone.{OURS}', f'teacher.backbone.{OURS}'],
            'backbone.',
            "under 'student.backbone.' and 'teacher.backbone.'; set prefix='student.b",
        ),
        ([OURS], 'backbone', 'its backbone has no prefix; leave it out'),
        (['layer1.0.conv1.weight'], 'backbone.', 'its names are layer1.0.conv1.weight'),
    ],
)
def test_prefix_that_the_file_does_not_have(save, names, prefix, message):
    path = save(*names)
    with pytest.raises(WeightsError, match=message) as error:
        require_loadable(path, 'SLaK', prefix=prefix)
    assert f'{path} has no backbone under prefix={prefix!r}' in str(error.value)


@pytest.mark.parametrize(
    ('content', 'message'),
    [
        ({}, 'it is empty'),
        ({'a': 'text'}, 'its names are a'),
        ({'meta': {}, 'state_dict': {}}, 'it is empty'),
        ({'state_dict': {'a': 3}}, 'its names are a'),
        (
            {'model': {f'backbone.{OURS}': torch.zeros(1)}},
            "its weights are in its entry 'model', .* convert_checkpoint SRC DST`",
        ),
    ],
    ids=['nothing', 'text', 'no weights', 'no tensor', 'entry'],
)
def test_prefix_under_which_mmengine_would_find_nothing(tmp_path, content, message):
    path = str(tmp_path / 'a.pth')
    torch.save(content, path)
    with pytest.raises(WeightsError, match=rf"prefix='backbone\.'; {message}"):
        require_loadable(path, 'SLaK', prefix='backbone.')
    require_loadable(path, 'SLaK')  # what is left out is said when it is loaded


def test_prefix_that_the_file_has(save):
    require_loadable(save(f'backbone.{OURS}'), 'SLaK', prefix='backbone')
    require_loadable(save('teacher.a', f'student.{OURS}'), 'SLaK', prefix='student.')
    require_loadable(save('encoder.layer1.weight'), 'SLaK', prefix='encoder.')
