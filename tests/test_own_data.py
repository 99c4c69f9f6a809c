"""Other people's data in place of ADE20K, and ADE20K as it was."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from mmengine.runner import Runner

from pelk_mm.engine import set_crop_size, set_num_classes

CONFIG = Path(__file__).resolve().parents[1] / 'configs/upernet_pelk_t_ade20k.py'


@pytest.mark.parametrize('loader', ['train_dataloader', 'val_dataloader'])
def test_labels_of_ade20k_begin_at_one(loader, shared):
    """The data set alone says so; the labels are those of LoadAnnotations told so."""
    cfg = Config.fromfile(CONFIG)
    init_default_scope('mmseg')
    data = cfg[loader].dataset
    data.data_root = str(shared / 'data' / 'ade20k_sample' / 'ADEChallengeData2016')
    steps = [step for step in data.pipeline if step.type == 'LoadAnnotations']
    assert [step.to_dict() for step in steps] == [dict(type='LoadAnnotations')]
    data.pipeline = steps
    ours = DATASETS.build(data)
    steps[0].reduce_zero_label = True
    told = DATASETS.build(data)
    assert len(ours) > 0
    for got, expected in zip(ours, told, strict=True):
        labels, source = got['gt_seg_map'], cv2.imread(got['seg_map_path'], -1)
        assert np.array_equal(labels, expected['gt_seg_map'])
        assert np.array_equal(labels, np.where(source == 0, 255, source - 1))
        assert (labels != 255).any()


OWN_DATA = """
W = [8, 12, 16, 24]
model = dict(
    backbone=dict(
        arch=dict(
            _delete_=True,
            channels=W,
            depths=[1, 1, 1, 1],
            kernel_sizes=[13, 11, 9, 7],
            central_radius=2,
        )
    ),
    decode_head=dict(in_channels=W, channels=16, num_classes=11),
    auxiliary_head=dict(in_channels=16, channels=8, num_classes=11),
)
data = dict(
    type='BaseSegDataset',
    data_root='.',
    metainfo=dict(classes=tuple('abcdefghijk')),
    img_suffix='_leftImg8bit.png',
    seg_map_suffix='_gtFine_labelTrainIds.png',
)
loading = dict(batch_size=2, num_workers=0, persistent_workers=False)
train_dataloader = dict(
    **loading,
    dataset=dict(
        **data,
        data_prefix=dict(img_path='leftImg8bit/train', seg_map_path='gtFine/train'),
    ),
)
val_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        **data,
        data_prefix=dict(img_path='leftImg8bit/val', seg_map_path='gtFine/val'),
        indices=1,
    ),
)
test_dataloader = val_dataloader
train_cfg = dict(max_iters=2, val_interval=2)
"""


@pytest.mark.long
def test_other_data_in_place_of_ade20k(street, tmp_path, monkeypatch):
    """The overrides that a user would guess, and no more."""
    monkeypatch.setattr(Config, 'pretty_text', '')
    path = tmp_path / 'own_data.py'
    path.write_text(
        f"_base_ = '{CONFIG}'"
        + OWN_DATA.replace("data_root='.'", f"data_root='{street}'")
    )
    cfg = Config.fromfile(path)
    cfg.work_dir, cfg.log_level = str(tmp_path / 'out'), 'ERROR'
    cfg.visualizer.name = 'own_data'
    set_crop_size(cfg, 64, scale=(128, 64))  # for a quick test
    # Its labels are 0 to 18.
    with pytest.raises(ValueError, match='label 11, 12, .* the classes 0 to 10'):
        Runner.from_cfg(cfg).train()
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.metainfo.classes = tuple('abcdefghijklmnopqrs')
    with pytest.raises(ValueError, match='has num_classes=11, .* has 19 classes'):
        Runner.from_cfg(cfg).train()
    set_num_classes(cfg, 19)
    runner = Runner.from_cfg(cfg)
    runner.train()
    assert runner.iter == 2
