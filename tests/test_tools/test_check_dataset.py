"""The command line that checks a data set."""

import json

import cv2
import numpy as np
import pytest

CONFIG = """
default_scope = 'mmseg'
model = dict(decode_head=dict(num_classes=2))
train_dataloader = dict(dataset=dict(
    type='BaseSegDataset', data_root='data', metainfo=dict(classes=('no', 'yes')),
    data_prefix=dict(img_path='img', seg_map_path='ann'),
    pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations')]))
"""


@pytest.fixture
def run(run_tool, tmp_path, monkeypatch):
    """Function that checks two images, of which it can make one bad."""
    monkeypatch.setattr('gc.collect', lambda: 0)
    (tmp_path / 'config.py').write_text(CONFIG)
    for kind, suffix in (('img', 'jpg'), ('ann', 'png')):
        (tmp_path / 'data' / kind).mkdir(parents=True)
        for name in 'ab':
            pixels = np.eye(40, dtype=np.uint8) if kind == 'ann' else noise(name)
            cv2.imwrite(str(tmp_path / f'data/{kind}/{name}.{suffix}'), pixels)

    def run(*arguments):
        flags = () if '--workers' in arguments else ('--workers', 0)
        return run_tool('tools/check_dataset.py', 'config.py', *arguments, *flags)

    return run


def noise(name):
    rng = np.random.default_rng(ord(name))
    return rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)


def test_sound_data(run):
    finished = run('--workers', 2)
    assert (finished.returncode, finished.stderr) == (
        0,
        'train: 1 of 2\ntrain: 2 of 2\n',
    )
    assert finished.stdout.startswith(
        'config.py\n\n## train: 2 images, BaseSegDataset\n'
    )
    assert finished.stdout.endswith('\n0 errors, 0 warnings\n')


def test_bad_file(run, tmp_path):
    (tmp_path / 'data/img/b.jpg').write_bytes(b'')
    finished = run('--json', 'out.json')
    assert finished.returncode == 1
    assert '- data/img/b.jpg: is empty (0 bytes)\n' in finished.stdout
    assert finished.stdout.endswith('\n1 error, 0 warnings\n')
    written = json.loads((tmp_path / 'out.json').read_text())
    assert (written['errors'], written['warnings']) == (1, 0)
    (finding,) = written['splits']['train']['findings']
    assert finding == dict(
        level='error',
        kind='image_unreadable',
        where='data/img/b.jpg',
        detail='is empty (0 bytes)',
    )


def test_warnings_alone_are_no_failure(run, tmp_path):
    cv2.imwrite(str(tmp_path / 'data/ann/b.png'), np.full((40, 40), 255, np.uint8))
    finished = run()
    assert finished.returncode == 0
    assert '**warning**: label map whose pixels are all ignored\n' in finished.stdout


def test_options_of_the_config(run):
    key = 'train_dataloader.dataset'
    finished = run('--cfg-options', f'{key}.reduce_zero_label=True', f'{key}.indices=1')
    assert finished.returncode == 0
    assert '## train: 1 image,' in finished.stdout
    assert "1 of 2: 'yes'" in finished.stdout


@pytest.mark.parametrize(
    ('arguments', 'code', 'message'),
    [
        (['--splits', 'val'], 1, 'config.py has no val_dataloader'),
        (
            ['--cfg-options', 'train_dataloader.dataset.data_root=x'],
            1,
            "data_root 'x' of",
        ),
        (['--splits', 'all'], 2, "invalid choice: 'all'"),
        (['--workers', '-1'], 2, '-1 is not a number from 0'),
        (['--json', 'none/out.json'], 2, 'its folder does not exist'),
        (['--json', 'data'], 2, 'data is a folder; give a file'),
        (['--cfg-options', 'no_value'], 2, 'no_value is not KEY=VALUE'),
    ],
)
def test_wrong_command_lines(run, arguments, code, message):
    finished = run(*arguments)
    assert finished.returncode == code
    assert message in finished.stderr.splitlines()[-1]
    assert finished.stdout == ''
