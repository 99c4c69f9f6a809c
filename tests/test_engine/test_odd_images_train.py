"""Images of odd kinds through the pipeline and a training of our config."""

from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from pelk_mm.engine import set_num_classes
from pelk_mm.engine.data_check import DataCheckError
from pelk_mm.engine.dataset_check import check_dataset, count_levels

CONFIG = Path(__file__).resolve().parents[2] / 'configs/upernet_pelk_t_ade20k.py'
RNG = np.random.default_rng(0)
NOISE = RNG.integers(0, 256, (60, 70, 4), np.uint8)


def turned():
    exif = Image.Exif()
    exif[274] = 6
    return dict(exif=exif)


#: Pixels, shape of the label map, and how the image is saved.
ODD = {
    'long': (np.resize(NOISE[..., :3], (31, 2000, 3)), (31, 2000), {}),
    'tiny': (NOISE[:2, :3, :3], (2, 3), {}),
    'grey': (NOISE[..., 0], (60, 70), {}),
    'transparent': (NOISE, (60, 70), {}),
    'turned': (NOISE[..., :3], (70, 60), turned()),
    'one': (NOISE[:1, :1, :3], (1, 1), {}),
    'deep': (NOISE[..., 1].astype(np.uint16) * 257, (60, 70), {}),
}

#: mmseg drops the sides of a label map that are 1 pixel.
TRAIN = [name for name in ODD if name != 'one']


@pytest.fixture
def config(tmp_path, narrow):
    """Function that makes a config which trains on odd images of the given names."""

    def make(*names):
        for name in names:
            pixels, shape, options = ODD[name]
            for kind in ('img', 'ann'):
                (tmp_path / 'data' / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(tmp_path / f'data/img/{name}.png', **options)
            labels = RNG.integers(0, 3, shape).astype(np.uint8)
            Image.fromarray(labels).save(tmp_path / f'data/ann/{name}.png')
        cfg = narrow(Config.fromfile(CONFIG), '_'.join(names), tmp_path / 'out')
        set_num_classes(cfg, 3)
        for split in ('train', 'val', 'test'):
            loader = cfg[f'{split}_dataloader']
            loader.update(num_workers=0, persistent_workers=False)
            loader.dataset.update(
                type='BaseSegDataset',
                data_root=str(tmp_path / 'data'),
                img_suffix='.png',
                metainfo=dict(classes=('a', 'b', 'c')),
                data_prefix=dict(img_path='img', seg_map_path='ann'),
            )
        return cfg

    return make


def prepare(cfg):
    """Train one iteration without a validation."""
    # Each in a batch, the order of which is random.
    cfg.train_dataloader.batch_size = len(TRAIN)
    for split in ('val', 'test'):
        for entry in ('dataloader', 'cfg', 'evaluator'):
            cfg[f'{split}_{entry}'] = None
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=1)
    cfg.train_dataloader.sampler = dict(type='InfiniteSampler', shuffle=False)


def test_odd_images_train(config, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', '')  # takes longer than the training
    cfg = config(*TRAIN)
    prepare(cfg)
    reports = check_dataset(cfg)
    assert count_levels(reports)[0] == 0
    assert reports[0].images == len(TRAIN)
    kinds = {finding.kind for finding in reports[0].findings}
    assert kinds == {
        'long',
        'smaller_than_crop',
        'transparent',
        'turned',
        'sixteen_bits',
    }
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 1
    assert np.isfinite(runner.message_hub.log_scalars['train/loss'].current())


def test_one_pixel_stops_with_its_name(config, monkeypatch):
    monkeypatch.setattr(Config, 'pretty_text', '')
    cfg = config('grey', 'one')
    prepare(cfg)
    (report,) = check_dataset(cfg)
    assert 'labels_form' in {finding.kind for finding in report.findings}
    message = r'img/one\.png or \S*ann/one\.png cannot be loaded: .*check_dataset'
    with pytest.raises(DataCheckError, match=message):
        Runner.from_cfg(cfg).train()
