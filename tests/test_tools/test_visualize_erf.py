import json

import cv2
import numpy as np
import pytest
import torch

import visualize_erf as tool
from pelk_mm.analysis import (
    receptive_field,
    receptive_field_models,
    receptive_field_picture,
)
from pelk_mm.backbones import PeLK, RepLKNet, SLaK

ARCH = dict(channels=[8, 8, 12, 12], depths=[1, 1, 1, 1], kernel_sizes=[11, 9, 7, 5])
NARROW = {
    'pelk-narrow': (PeLK, dict(ARCH, central_radius=2)),
    'slak-narrow': (SLaK, ARCH),
    'replknet-narrow': (RepLKNet, ARCH),
}
CONFIG = f"""
default_scope = 'mmseg'
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[9, 9, 9], std=[9, 9, 9]),
    backbone=dict(type='SLaK', arch={ARCH!r}),
)
"""


@pytest.fixture(autouse=True)
def _narrow(monkeypatch):
    for name, entry in NARROW.items():
        monkeypatch.setitem(receptive_field_models.ARCHITECTURES, name, entry)


@pytest.fixture
def run(run_command):
    return lambda *arguments: run_command(tool.main, 'visualize_erf.py', *arguments)


@pytest.fixture
def images(tmp_path):
    folder = tmp_path / 'images'
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(7):
        pixels = rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), pixels)
    return folder


@pytest.fixture
def trained(tmp_path):
    """A config and a checkpoint."""
    torch.manual_seed(1)
    state = SLaK(ARCH, layer_scale_init_value=1).state_dict()
    state = {f'backbone.{name}': value for name, value in state.items()}
    torch.save({'state_dict': state}, tmp_path / 'iter_1.pth')
    (tmp_path / 'my_config.py').write_text(CONFIG)
    return tmp_path / 'my_config.py', tmp_path / 'iter_1.pth'


@pytest.fixture
def _undrawn(monkeypatch):
    """For tests of anything but the picture, which takes the longest."""
    monkeypatch.setattr(
        receptive_field_picture, 'draw_fields', lambda fields, path, _: path.touch()
    )


SMALL = ['--size', 45, '--out', 'erf']


@pytest.mark.long
def test_several_models(run, images, trained, tmp_path):
    names = ['pelk-narrow', 'replknet-narrow']
    result = run(
        '--arch', *names, '--model', *trained, '--images', images, *SMALL,
        '--layer-scale', 1,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert 'images has 7 images' in result.stderr  # of 50
    stems = [*names, 'my_config']
    assert {path.name for path in (tmp_path / 'erf').iterdir()} == {
        *(f'{stem}.{end}' for stem in stems for end in ('npy', 'npz')),
        *(f'erf.{end}' for end in ('png', 'md', 'json')),
    }
    rows = [line for line in result.stdout.splitlines() if line.startswith('| ')]
    assert '| pelk-narrow | random weights, seed 0, layer scale 1 | ' in rows[1]
    assert '| replknet-narrow | random weights, seed 0 | ' in rows[2]
    assert '| my_config | iter_1.pth | ' in rows[3]
    text = (tmp_path / 'erf' / 'erf.md').read_text()
    assert '7 images of 45 x 45' in text
    assert all(row in text for row in rows)
    models = json.loads((tmp_path / 'erf' / 'erf.json').read_text())['models']
    for stem, model in zip(stems, models, strict=True):
        matrix = np.load(tmp_path / 'erf' / f'{stem}.npy')
        assert matrix.shape == (45, 45)
        scaled = receptive_field.log_scaled(matrix)
        found = receptive_field.squares(scaled)
        assert [each['side'] for each in model['log_scaled']] == [s.side for s in found]
    assert cv2.imread(str(tmp_path / 'erf' / 'erf.png')).shape[1] > 900


def test_drawn_images(run, tmp_path):
    result = run('--arch', 'slak-narrow', '--count', 1, *SMALL, '--no-squares')
    assert result.returncode == 0, result.stderr
    text = (tmp_path / 'erf' / 'erf.md').read_text()
    assert text.startswith('# Effective receptive fields, drawn images\n')
    assert '1 image of 45 x 45' in text


@pytest.mark.usefixtures('_undrawn')
def test_more_images_add_to_those_that_are_done(run, images, tmp_path):
    arguments = ['--arch', 'pelk-narrow', '--images', images, *SMALL]
    assert run(*arguments, '--count', 3).returncode == 0
    result = run(*arguments, '--count', 7)
    assert 'pelk-narrow: 3 images were done before' in result.stderr
    resumed = np.load(tmp_path / 'erf' / 'pelk-narrow.npy')
    assert run(*arguments[:-1], 'whole', '--count', 7).returncode == 0
    assert np.array_equal(resumed, np.load(tmp_path / 'whole' / 'pelk-narrow.npy'))


@pytest.mark.usefixtures('_undrawn')
def test_interrupted(run, images, monkeypatch, tmp_path):
    arguments = ['--arch', 'pelk-narrow', '--images', images, *SMALL]
    contributions = receptive_field.contributions
    calls = []

    def interrupt(*args):
        calls.append(args)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return contributions(*args)

    with monkeypatch.context() as patch:
        patch.setattr(receptive_field, 'contributions', interrupt)
        result = run(*arguments)
    assert result.returncode == 1
    assert result.stderr.endswith('interrupted; the same command goes on from here\n')
    result = run(*arguments)
    assert result.returncode == 0
    assert '3 images were done before' in result.stderr


@pytest.mark.usefixtures('_undrawn')
@pytest.mark.parametrize(
    ('changed', 'reason'),
    [
        (['--seed', 1], 'it was made with other weights'),
        (['--layer-scale', 1], 'it was made with other weights'),
        (['--size', 48], 'it was made with other size'),
        (['--count', 2], 'its images are not the first of these'),
    ],
)
def test_changed_settings_start_anew(run, images, changed, reason):
    arguments = ['--arch', 'pelk-narrow', '--images', images, *SMALL]
    assert run(*arguments, '--count', 3).returncode == 0
    result = run(*arguments, '--count', 3, *changed)
    assert result.returncode == 0, result.stderr
    assert f'pelk-narrow.npz is replaced, for {reason}' in result.stderr
    assert 'done before' not in result.stderr


@pytest.mark.usefixtures('_undrawn')
def test_models_of_one_name(run, images, trained, tmp_path):
    result = run('--model', *trained, '--model', *trained, '--images', images, *SMALL)
    assert result.returncode == 0, result.stderr
    matrices = [
        np.load(tmp_path / 'erf' / f'{stem}.npy')
        for stem in ('my_config', 'my_config_2')
    ]
    assert np.array_equal(*matrices)


def test_names_that_are_no_file_names():
    taken = {'erf'}
    names = [tool.file_name(name, taken) for name in ('a/b c', 'a_b_c', 'ERF')]
    assert names == ['a_b_c', 'a_b_c_2', 'ERF_2']


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--arch', 'pelk-tny'], "'pelk-tny'; did you mean pelk-tiny"),
        (['--model', 'gone.py', 'gone.pth'], "no config 'gone.py'"),
        (['--model', './gone.py', 'gone.pth'], 'config ./gone.py does not exist'),
        (
            ['--model', 'upernet_pelk_t_ade20', 'x'],
            'did you mean upernet_pelk_t_ade20k',
        ),
        (['--model', 'my_config.py', 'gone.pth'], 'gone.pth does not exist'),
        (['--arch', 'pelk-narrow', '--images', 'gone'], '--images gone does not exist'),
        (['--arch', 'pelk-narrow', '--device', 'gpu'], '--device gpu cannot be used'),
        (['--arch', 'pelk-narrow', '--device', 'cuda:99'], 'cuda:99 cannot be used'),
        (
            ['--arch', 'pelk-narrow', '--out', 'iter_1.pth'],
            '--out iter_1.pth cannot be',
        ),
        (['--arch', 'pelk-narrow', '--out', '/proc/a'], '--out /proc/a cannot be'),
    ],
)
def test_bad_input_ends_in_one_line_before_anything_is_computed(
    run, trained, monkeypatch, arguments, message
):
    def refuse(*args):
        raise AssertionError

    monkeypatch.setattr(receptive_field, 'contributions', refuse)
    result = run(*SMALL, '--count', 1, *arguments)
    assert result.returncode == 1
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith('visualize_erf.py: ')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        ([], 'give models: --arch NAME'),
        (['--arch', 'a', '--count', '0'], '--count 0 is not a positive number'),
        (['--arch', 'a', '--size', '31'], '--size 31 is too small'),
        (['--arch', 'a', '--layer-scale', '0'], '--layer-scale 0 is not a positive'),
        (['--model', 'a'], 'expected 2 arguments'),
    ],
)
def test_wrong_command_line(run, arguments, message):
    result = run('--out', 'erf', *arguments)
    assert result.returncode == 2
    assert message in result.stderr
