"""The configs of docs/own_dataset.md, as they are written there, on drawn data."""

import json
import re
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner
from mmseg.structures import SegDataSample

from pelk_mm.engine.config_edit import crop_sizes, set_crop_size
from pelk_mm.engine.launch import find_tool
from pelk_mm_cli import run_script

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs' / 'own_dataset.md').read_text()
#: Python blocks of the page by the file name in their first line.
SNIPPETS = dict(re.findall(r'```python\n# (\S+)\.py\n(.*?)```', PAGE, re.DOTALL))


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Reads a config of the page in a folder that has ours and the data."""
    monkeypatch.chdir(tmp_path)
    # Formatting the config for the log takes longer than the training.
    monkeypatch.setattr(Config, 'pretty_text', '')
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    for name, text in SNIPPETS.items():
        (tmp_path / f'{name}.py').write_text(text)

    def read(name):
        cfg = Config.fromfile(f'{name}.py')
        init_default_scope(cfg.default_scope)
        return cfg

    return read


@pytest.fixture
def streets(tmp_path):
    """Images and label maps in the layout that the page describes."""
    rng = np.random.default_rng(0)
    for split in ('train', 'val', 'test'):
        for kind in ('img_dir', 'ann_dir'):
            (tmp_path / 'data/camvid' / kind / split).mkdir(parents=True)
        for i in range(2):
            folder = tmp_path / 'data/camvid'
            labels = rng.choice([*range(11), 255], (36, 48)).astype(np.uint8)
            image = np.repeat(labels[..., None] * 20, 3, axis=-1)
            cv2.imwrite(str(folder / f'img_dir/{split}/{i}.jpg'), image)
            cv2.imwrite(str(folder / f'ann_dir/{split}/{i}.png'), labels)
    return tmp_path / 'data/camvid'


@pytest.fixture
def balloons(tmp_path, draw_objects):
    for split in ('train', 'val'):
        folder = tmp_path / 'data/balloons'
        contents = draw_objects(folder / split)
        (folder / f'{split}.json').write_text(json.dumps(contents))
    return tmp_path / 'data/balloons'


def narrow_segmenter(cfg, work_dir):
    """Make the model narrow, the crops small and the training short."""
    set_crop_size(cfg, 64, scale=(64, 48))
    channels = [8, 12, 16, 24]
    cfg.model.backbone.arch = dict(
        channels=channels,
        depths=[1, 1, 1, 1],
        kernel_sizes=[13, 11, 9, 7],
        central_radius=2,
    )
    cfg.model.decode_head.update(in_channels=channels, channels=16)
    cfg.model.auxiliary_head.update(in_channels=channels[2], channels=8)
    cfg.train_cfg.update(max_iters=2, val_interval=2)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.visualizer.name = cfg.experiment_name = work_dir.name
    cfg.default_hooks.logger.interval = 1
    cfg.work_dir, cfg.log_level = str(work_dir), 'ERROR'
    return cfg


def test_every_python_block_is_a_config_of_these_tests():
    assert PAGE.count('```python') == len(SNIPPETS)
    source = Path(__file__).read_text()
    for name in SNIPPETS:
        assert f"'{name}'" in source


def test_segmenter_trains(load, streets, tmp_path):
    cfg = load('camvid_pelk_t')
    assert set(crop_sizes(cfg).values()) == {(320, 320)}
    heads = cfg.model.decode_head, cfg.model.auxiliary_head
    assert [head.num_classes for head in heads] == [11, 11]
    runner = Runner.from_cfg(narrow_segmenter(cfg, tmp_path / 'segmenter'))
    runner.train()
    assert runner.iter == 2
    assert runner.message_hub.log_scalars['val/mIoU'].current() >= 0
    meta = torch.load(tmp_path / 'segmenter/iter_2.pth', weights_only=False)['meta']
    assert meta['dataset_meta']['classes'][-1] == 'bicyclist'
    assert meta['dataset_meta']['palette'][0] == [128, 128, 128]


def test_shorter_schedule_ends_with_the_training(load):
    cfg = load('camvid_pelk_t_20k')
    assert cfg.param_scheduler[-1].end == cfg.train_cfg.max_iters == 20_000
    assert cfg.param_scheduler[0].end == cfg.param_scheduler[1].begin
    hooks = cfg.default_hooks
    assert hooks.checkpoint.interval == cfg.train_cfg.val_interval
    assert {'sparsity', 'data_check', 'visualization'} <= hooks.keys()


def test_smaller_backbone(load):
    init_default_scope('mmseg')
    model = MODELS.build(load('camvid_pelk_narrow').model).eval()
    with torch.no_grad():
        logits = model(torch.rand(1, 3, 64, 64), mode='tensor')
    assert logits.shape[:2] == (1, 11)


def test_weighted_classes(load):
    """As the page says, void is left out, and mmseg's own mean fails at it."""
    model = load('camvid_pelk_t_weighted').model
    message = 'index 255 is out of bounds'
    assert message in ' '.join(PAGE.split())
    logits, labels = torch.rand(1, 11, 2, 2), torch.tensor([[[0, 255], [10, 255]]])
    for head in (model.decode_head, model.auxiliary_head):
        settings = head.loss_decode
        loss = MODELS.build(settings)(logits, labels, ignore_index=255)
        assert (loss > 0).tolist() == (labels < 255).tolist()
        del settings['reduction']
        with pytest.raises(IndexError, match=message):
            MODELS.build(settings)(logits, labels, ignore_index=255)


def test_crop_of_an_example(load):
    cfg = load('camvid_pelk_narrow_small_crop')
    assert set(crop_sizes(cfg).values()) == {(192, 256)}
    steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
    # The least that an image is resized to is not smaller than the crop.
    least = steps['RandomResize'].ratio_range[0]
    assert least * 480 >= 256
    assert least * 360 >= 192
    tested = {step.type: step for step in cfg.val_dataloader.dataset.pipeline}
    assert tested['Resize'].scale == (480, 360)


def test_example_trains_by_its_command(load, streets, run_tool, tmp_path, monkeypatch):
    monkeypatch.setattr('gc.collect', lambda: 0)  # mmengine does for each data set
    load('camvid_pelk_t')
    (command,) = re.findall(r'pelk-mm train (configs/examples/.*)', PAGE)
    settings = ['train_cfg.max_iters=1', 'train_cfg.val_interval=1', 'log_level=ERROR']
    # The whole schedule's intervals would save nothing.
    settings += ['default_hooks.checkpoint.interval=1', 'train_dataloader.batch_size=2']
    finished = run_tool('tools/train.py', command, '--cfg-options', *settings)
    assert finished.returncode == 0, finished.stderr
    folder = tmp_path / 'work_dirs' / Path(command).stem
    (best,) = folder.glob('best_mIoU_iter_1.pth')
    average = torch.load(best, weights_only=False)
    assert average['meta']['dataset_meta']['classes'][-1] == 'bicyclist'
    assert 'ema_state_dict' in average


def test_comparison_runs_by_its_command(monkeypatch):
    """It parses, for the names that the text gives; its tests run it."""
    monkeypatch.syspath_prepend(ROOT / 'demo')
    import camvid

    (command,) = re.findall(r'python demo/camvid\.py (.*)', PAGE)
    args = camvid.parse_args(command.split())
    assert args.seeds == [0, 1, 2]
    assert str(args.out) in PAGE
    assert {'--plot', '--configs', '--cfg-options'} <= set(
        re.findall(r'--[a-z-]+', PAGE)
    )


@pytest.mark.long
def test_messages_of_the_page_are_those_of_the_check(load, streets, tmp_path):
    wanted = narrow_segmenter(load('camvid_pelk_t'), tmp_path / 'a')
    wanted.model.decode_head.num_classes = 150
    message = (
        'UPerHead model.decode_head has num_classes=150, the BaseSegDataset of '
        'train_dataloader.dataset has 11 classes: '
    )
    assert message in ' '.join(PAGE.split())
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(wanted).train()

    cfg = narrow_segmenter(load('camvid_pelk_t'), tmp_path / 'b')
    del cfg.val_dataloader.dataset['metainfo']
    message = 'the BaseSegDataset of val_dataloader.dataset names no classes'
    assert message in ' '.join(PAGE.split())
    with pytest.raises(ValueError, match=message):
        Runner.from_cfg(cfg).train()

    for path in streets.glob('ann_dir/train/*.png'):
        cv2.imwrite(str(path), np.full((36, 48), 11, np.uint8))
    message = 'model.decode_head has the classes 0 to 10 and ignores 255'
    assert message in ' '.join(PAGE.split())
    cfg = narrow_segmenter(load('camvid_pelk_t'), tmp_path / 'c')
    with pytest.raises(ValueError, match=rf'label 11 in \S*\.png: {message}'):
        Runner.from_cfg(cfg).train()


def test_two_classes_in_one_channel(load, streets, tmp_path):
    """As the page says, without a block of its own."""
    head = 'decode_head=dict(num_classes=2, out_channels=1, threshold=0.3)'
    assert head in ' '.join(PAGE.split())
    for path in streets.glob('ann_dir/*/*.png'):
        cv2.imwrite(str(path), np.eye(36, 48, dtype=np.uint8))
    cfg = narrow_segmenter(load('camvid_pelk_t'), tmp_path / 'binary')
    for part in (cfg.model.decode_head, cfg.model.auxiliary_head):
        part.update(num_classes=2, out_channels=1, threshold=0.3)
        part.loss_decode.use_sigmoid = True
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo = dict(classes=('no', 'yes'))
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2


def test_small_tiles(load, tmp_path):
    def segment(name):
        cfg = narrow_segmenter(load(name), tmp_path / name)
        model = MODELS.build(cfg.model).eval()
        shape = dict(ori_shape=(20, 24), img_shape=(20, 24))
        image = torch.zeros(3, 20, 24, dtype=torch.uint8)
        with torch.no_grad():
            return model.test_step(
                dict(inputs=[image], data_samples=[SegDataSample(metainfo=shape)])
            )

    message = 'images of 20 x 24 pixels leave nothing for stage 3'
    assert message in ' '.join(PAGE.split())
    with pytest.raises(ValueError, match=message) as error:
        segment('camvid_pelk_t')
    assert 'test_cfg=dict(size_divisor=32)' in str(error.value)
    (result,) = segment('camvid_pelk_t_tiles')
    assert result.pred_sem_seg.shape == (20, 24)


def test_data_is_checked_first(load, streets, balloons, run_tool, monkeypatch):
    monkeypatch.setattr('gc.collect', lambda: 0)  # mmengine does for each data set
    commands = re.findall(r'pelk-mm check_dataset (.*)', PAGE)
    commands = [command for command in commands if command.endswith(('.py', '.json'))]
    assert len(commands) == 3
    load('camvid_pelk_t')
    (streets / 'img_dir/train/0.jpg').write_bytes(b'')
    for command in [*commands, 'balloons_pelk_t.py']:
        command = command.replace('--workers 8', '--workers 0').split()
        workers = [] if '--workers' in command else ['--workers', '0']
        finished = run_tool('tools/check_dataset.py', *command, *workers)
        assert '## train: ' in finished.stdout
        assert '## val: ' in finished.stdout
        bad = 'camvid' in command[0]
        assert ('0.jpg: is empty (0 bytes)' in finished.stdout) == bad
        assert finished.returncode == bad, finished.stdout
    assert Path('found.json').is_file()


@pytest.mark.long
def test_detector_trains(load, narrow, balloons, tmp_path):
    cfg = narrow(load('balloons_pelk_t'), 'detector', tmp_path / 'out')
    heads = [*cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head]
    assert [head.num_classes for head in heads] == [3] * 4
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.train_dataloader.dataset.cat2label == {10: 0, 20: 1, 30: 2}
    assert runner.iter == 2
    assert runner.message_hub.log_scalars['val/coco/segm_mAP'].current() >= -1
    # One head of the list was left out.
    cfg.model.roi_head.bbox_head[2].num_classes = 80
    cfg.experiment_name = cfg.visualizer.name = 'refused'
    message = re.escape(
        'The `num_classes` (80) in ConvFCBBoxHead of CascadeRCNN does not matches '
        'the length of `classes` 3) in CocoDataset'
    )
    quoted = re.sub(r'\\|`', '', message)
    assert quoted in ' '.join(PAGE.split())
    with pytest.raises(AssertionError, match=message):
        Runner.from_cfg(cfg).train()


def test_heads_written_out_are_the_same(load):
    by_hand = load('balloons_pelk_t_by_hand').model.to_dict()
    assert by_hand == load('balloons_pelk_t').model.to_dict()


@pytest.mark.long
def test_boxes_alone_are_trained(load, narrow, balloons, tmp_path):
    for path in balloons.glob('*.json'):
        contents = json.loads(path.read_text())
        for entry in contents['annotations']:
            del entry['segmentation']
        path.write_text(json.dumps(contents))
    cfg = narrow(load('balloons_pelk_t_train_boxes'), 'boxes', tmp_path / 'out')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    Runner.from_cfg(cfg).train()


@pytest.mark.slow
def test_merging_masks_is_refused(load, narrow, balloons, tmp_path):
    message = 'step must be greater than zero'
    assert message in ' '.join(PAGE.split())

    def test(name):
        cfg = narrow(load(name), name, tmp_path / name)
        model = MODELS.build(cfg.model)
        torch.save(dict(state_dict=model.state_dict()), tmp_path / f'{name}.pth')
        lines = (f'{key} = {value!r}' for key, value in cfg.to_dict().items())
        (tmp_path / f'{name}_narrow.py').write_text('\n'.join(lines))
        arguments = [f'{name}_narrow.py', f'{name}.pth', '--tta']
        run_script(find_tool('mmdet', 'test'), arguments, 'test')

    with pytest.raises(ValueError, match=message):
        test('balloons_pelk_t')
    test('balloons_pelk_t_boxes')


def test_both_modules_are_imported(load, tmp_path, monkeypatch):
    (tmp_path / 'my_transforms.py').write_text('LOADED = True\n')
    monkeypatch.syspath_prepend(tmp_path)
    cfg = load('camvid_pelk_t_custom')
    assert cfg.custom_imports.imports == ['pelk_mm', 'my_transforms']
    assert sys.modules['my_transforms'].LOADED
