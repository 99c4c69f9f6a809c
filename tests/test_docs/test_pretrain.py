"""The commands of docs/pretrain.md, as they are written there, and its figures."""

import importlib.util
import math
import re
import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config

import pelk_mm_cli
from pelk_mm.checkpoints.files import read_checkpoint
from pelk_mm.conversion.outer_taps import used_sizes

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'pretrain.md').read_text()
SCALING = (ROOT / 'docs' / 'scaling.md').read_text()
CONFIGS = ROOT / 'configs'
CHANNELS = [8, 12, 16, 24]
#: Settings of the page's commands that a narrowed run cannot have: 300 epochs of it.
SHORTER = {'epoch_300.pth': 'epoch_2.pth'}


def commands(page):
    """`pelk-mm` commands of a page's blocks, in its order."""
    blocks = re.findall(r'```bash\n(.*?)```', page, re.DOTALL)
    lines = '\n'.join(blocks).replace('\\\n', ' ').splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith('pelk-mm ')]


def test_every_config_of_the_page_exists():
    for _, name, *_ in commands(PAGE) + commands(SCALING):
        if '.' not in name and '/' not in name:
            assert pelk_mm_cli.config_path(name).is_file()


@pytest.mark.parametrize(
    ('kind', 'arch', 'column'),
    [('RepLKNet', '31B', 4), ('SLaK', 'tiny', 5), ('PeLK', 'tiny-101', 6)],
)
def test_table_of_kernels_and_maps(kind, arch, column):
    from pelk_mm import backbones

    sizes = getattr(backbones, kind).arch_settings[arch]['kernel_sizes']
    rows = re.findall(r'^\| ([1-4]) \|.*', PAGE, re.MULTILINE)
    assert rows == list('1234')
    lines = [line for line in PAGE.splitlines() if re.match(r'\| [1-4] \|', line)]
    for used_by, part in ((224, 3), (384, 8)):
        for line, used in zip(
            lines, used_sizes(dict(type=kind, arch=arch), used_by), strict=True
        ):
            cells = [re.sub(r'\*|\(.*', '', cell).strip() for cell in line.split('|')]
            assert int(cells[part]) == used
    for line, size in zip(lines, sizes, strict=True):
        cells = [cell.strip() for cell in line.split('|')]
        used = int(cells[3])
        # Bold where 224 x 224 leaves a part of the kernel unused.
        assert cells[column] == (f'**{size}**' if size > used else str(size))


def test_what_weight_decay_leaves_of_the_rim():
    steps = 1_281_167 // 4096
    for epochs, expected in ((300, '10^-4'), (120, '0.02')):
        # Linear warm-up and cosine both have half the highest rate as their mean.
        left = math.exp(-0.05 * epochs * steps * 4e-3 / 2)
        assert expected in PAGE
        assert left == pytest.approx(1e-4 if epochs == 300 else 0.02, rel=0.25)


def load_gpu_hours():
    path = ROOT / 'tools' / 'analysis' / 'gpu_hours.py'
    spec = importlib.util.spec_from_file_location('gpu_hours', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def quoted_hours():
    text = SCALING.partition('<!-- gpu_hours: begin -->')[2]
    return text.partition('<!-- gpu_hours: end -->')[0].strip().splitlines()


@pytest.mark.parametrize(
    'rows',
    [
        pytest.param(slice(2, 3), id='first'),
        pytest.param(slice(2, None), id='all', marks=pytest.mark.slow),
    ],
)
def test_gpu_hours_are_what_the_tool_prints(rows):
    tool = load_gpu_hours()
    lines = quoted_hours()
    names = [line.split('|')[1].strip() for line in lines[rows]]
    paths = [pelk_mm_cli.config_path(name) for name in names]
    printed = list(tool.format_table(paths, tool.PEAK, tool.UTILISATION))
    assert printed == lines[:2] + lines[rows]
    assert f'--peak {tool.PEAK:g} --utilisation {tool.UTILISATION:g}' in SCALING


def test_gpu_hours_of_a_config_without_known_images(run_tool, tmp_path):
    text = Config.fromfile(CONFIGS / 'pretrain' / 'pelk_t_300e_in1k.py')
    text.train_dataloader.dataset.type = 'CustomDataset'
    write(tmp_path / 'own.py', text)
    finished = run_tool('tools/analysis/gpu_hours.py', tmp_path / 'own.py')
    assert finished.returncode == 1
    assert 'trains on CustomDataset, whose images are not counted' in finished.stderr


def write(path, cfg):
    """Write a config without the time that formatting it takes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (f'{key} = {value!r}' for key, value in cfg.to_dict().items())
    path.write_text('\n'.join(lines))


def narrow_classifier(cfg, kernel_sizes):
    cfg.model.backbone.arch = dict(
        channels=CHANNELS, depths=[1] * 4, kernel_sizes=kernel_sizes
    )
    cfg.model.backbone.arch.central_radius = 2
    cfg.model.neck.channels = cfg.model.head.in_channels = CHANNELS[-1]
    cfg.model.head.num_classes = cfg.model.data_preprocessor.num_classes = 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
        loader.dataset.metainfo = dict(classes=('a', 'b'))
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.topk = (1,)
    cfg.optim_wrapper.accumulative_counts = 1
    cfg.train_cfg.max_epochs = 2
    return cfg


@pytest.fixture
def narrowed_site(tmp_path, monkeypatch, narrow, draw_objects):
    """A working directory with drawn data, and narrow configs under our names."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val'):
        for name in ('n01', 'n02'):
            folder = tmp_path / 'data/imagenet' / split / name
            folder.mkdir(parents=True)
            for i in range(2):
                image = rng.integers(0, 255, (40, 52, 3)).astype(np.uint8)
                cv2.imwrite(str(folder / f'{i}.JPEG'), image)
    for split in ('training', 'validation'):
        for kind, end in (('images', 'jpg'), ('annotations', 'png')):
            folder = tmp_path / 'data/ade/ADEChallengeData2016' / kind / split
            folder.mkdir(parents=True)
            shape = (64, 96, 3) if kind == 'images' else (64, 96)
            cv2.imwrite(
                str(folder / f'a.{end}'), rng.integers(0, 99, shape).astype('u1')
            )
    return tmp_path


@pytest.mark.slow
@pytest.mark.usefixtures('one_thread')
def test_commands_run_as_documented(narrowed_site, run_command, monkeypatch, narrow):
    pytest.importorskip(
        'mmpretrain', reason='needs mmpretrain and the torchvision that fits torch'
    )
    monkeypatch.setattr(Config, 'pretty_text', '')
    configs = narrowed_site / 'configs'
    (configs / '_base_').mkdir(parents=True)
    for name, sizes in (
        ('pelk_t_300e_in1k', [51, 49, 47, 13]),
        ('pelk_t_101_300e_in1k', [101, 69, 67, 13]),
        ('pelk_t_101_384_30e_in1k', [101, 69, 67, 13]),
    ):
        cfg = Config.fromfile(CONFIGS / 'pretrain' / f'{name}.py')
        write(configs / 'pretrain' / f'{name}.py', narrow_classifier(cfg, sizes))
    name = 'upernet_pelk_t_ade20k'
    cfg = narrow(Config.fromfile(CONFIGS / f'{name}.py'), name, 'unused')
    cfg.model.backbone.arch = dict(
        channels=CHANNELS,
        depths=[1] * 4,
        kernel_sizes=[51, 49, 47, 13],
        central_radius=2,
    )
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    write(configs / f'{name}.py', cfg)
    monkeypatch.setattr(pelk_mm_cli, 'config_folder', lambda: configs)

    def run(arguments):
        words = list(arguments)
        for long, short in SHORTER.items():
            words = [word.replace(long, short) for word in words]
        if words[0] in ('train', 'test'):
            unique = f'{narrowed_site.name}_{len(ran)}'
            cfg_options = [f'visualizer.name={unique}', f'experiment_name={unique}']
            words += ['--cfg-options', *cfg_options]
        finished = run_command(pelk_mm_cli.main, 'pelk-mm', *words)
        assert finished.returncode == 0, (words, finished.stderr[-2000:])
        return finished

    ran = []
    for arguments in commands(PAGE):
        if 'load_from=out_101/epoch_300.pth' in arguments:
            run(['train', 'pelk_t_101_300e_in1k', '--work-dir', 'out_101'])
        if 'cascade_mask_rcnn_pelk_t_coco' in arguments or '--classifier' in arguments:
            continue  # the same flag as the line before; a file of others
        run(arguments)
        ran.append(arguments)
    assert len(ran) == 9
    averaged = read_checkpoint(narrowed_site / 'out/epoch_2.pth')['state_dict']
    start = read_checkpoint(narrowed_site / 'pelk_t_in1k.pth')['state_dict']
    assert all(torch.equal(t, averaged[f'backbone.{n}']) for n, t in start.items())
    segmenter = read_checkpoint(narrowed_site / 'out_seg/iter_2.pth')
    assert segmenter['sparsity']['mode'] == 'fixed'
    for name, weight in segmenter['state_dict'].items():
        if name.startswith('backbone.') and weight.ndim in (2, 4):
            assert not weight[averaged[name] == 0].count_nonzero()
    cropped = read_checkpoint(narrowed_site / 'cropped.pth')
    assert cropped['meta']['backbone']['arch']['kernel_sizes'] == [51, 49, 27, 13]
