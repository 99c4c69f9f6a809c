"""Class names, colours and configs of results, as mmseg and mmdet read them."""

import json

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from pelk_mm.checkpoints.files import read_checkpoint
from pelk_mm.conversion.convert import convert_checkpoint
from pelk_mm.conversion.deploy import deploy_checkpoint
from pelk_mm.conversion.notes import adjust_backbone, find_dataset_meta, plain_meta

NAMES = ['a', 'b', 'c']
COLOURS = [(0, 1, 2), (3, 4, 5), (6, 7, 8)]
RANDOM = [
    tuple(colour)
    for colour in np.random.RandomState(42).randint(0, 255, size=(3, 3)).tolist()
]


@pytest.mark.parametrize(
    ('palette', 'expected'),
    [
        (COLOURS, COLOURS),
        (np.array(COLOURS, np.uint8), COLOURS),
        (list(map(list, COLOURS)), COLOURS),
        (tuple(COLOURS), COLOURS),
        ([np.array(colour) for colour in COLOURS], COLOURS),
        (torch.tensor(COLOURS), COLOURS),
        ([*COLOURS, [9, 9, 9]], COLOURS),
        ((1, 2, 3), [(1, 2, 3)] * 3),
        (None, RANDOM),
        ('random', RANDOM),
        ([], RANDOM),
        (COLOURS[:2], RANDOM),
        ([[0, 1, 2], [3, 4], [5]], RANDOM),
    ],
)
@pytest.mark.parametrize('version', ['0.x', '1.x', '1.x in capitals'])
def test_palettes(palette, expected, version):
    meta = dict(CLASSES=tuple(NAMES), PALETTE=palette)
    if version == '1.x':
        meta = dict(dataset_meta=dict(classes=NAMES, palette=palette))
    elif version != '0.x':
        meta = dict(dataset_meta=meta)
    assert find_dataset_meta(meta) == dict(classes=NAMES, palette=expected)


@pytest.mark.parametrize(
    ('classes', 'expected'),
    [
        (tuple(NAMES), NAMES),
        (np.array(NAMES), NAMES),
        ('a', ['a']),
        ([1, 2], ['1', '2']),
        (None, None),
        ((), None),
        (3, None),
    ],
)
def test_classes(classes, expected):
    found = find_dataset_meta(dict(CLASSES=classes))
    assert (found and found['classes']) == expected
    assert found is None or len(found['palette']) == len(expected)


@pytest.mark.parametrize('meta', [{}, dict(dataset_meta=None), dict(dataset_meta={})])
def test_no_classes(meta):
    assert find_dataset_meta(meta) is None
    assert find_dataset_meta(meta | dict(CLASSES=NAMES))['classes'] == NAMES


def test_other_notes_on_the_data_stay_plain():
    given = dict(
        classes=NAMES, palette=COLOURS, label_map={0: np.int64(1)}, ids=(1, {2}), f=len
    )
    given['itself'] = given
    found = find_dataset_meta(dict(dataset_meta=given))
    assert found['label_map'] == {0: 1}
    assert found['ids'] == [1, [2]]
    json.dumps(found)


def test_all_notes():
    meta = dict(epoch=np.int64(3), time='now', CLASSES=NAMES, PALETTE=None)
    plain = dict(epoch=3, time='now', dataset_meta=dict(classes=NAMES, palette=RANDOM))
    assert plain_meta(meta) == plain


CALL = """
seed = 0
model = dict(type='EncoderDecoder', backbone=dict(type='SLaK', arch='tiny', a=1,
    drop_path_rate=0.1))
"""
LITERAL = """
model = {'type': 'EncoderDecoder', 'backbone': {'type': 'SLaK', 'arch': 'tiny',
    'a': 1, 'drop_path_rate': 0.1}}
seed = 0
"""


@pytest.mark.parametrize('text', [CALL, LITERAL])
def test_config_is_adjusted(text):
    cfg = Config.fromstring(adjust_backbone(text, dict(in_channels=4, a=2)), '.py')
    backbone = dict(type='SLaK', arch='tiny', a=2, drop_path_rate=0.1, in_channels=4)
    assert cfg.model.backbone == backbone
    assert cfg.seed == 0
    new = dict(type='PeLK', arch=dict(channels=(1, 2)))
    cfg = Config.fromstring(adjust_backbone(text, new), '.py')
    assert cfg.model.backbone == new | dict(drop_path_rate=0.1)
    assert cfg.model.type == 'EncoderDecoder'


@pytest.mark.parametrize(
    'text',
    [
        'model = dict(',
        'seed = 0',
        "model = dict(detector=dict(backbone=dict(type='SLaK')))",
        'model = make()',
        "model = dict(backbone=['SLaK'])",
        '(' * 9999,
        'a\0',
    ],
)
def test_config_without_a_backbone_to_adjust(text):
    assert adjust_backbone(text, dict(in_channels=4)) is None


def test_config_is_not_run(tmp_path):
    path = tmp_path / 'executed'
    text = f'open({str(path)!r}, "w")\n{CALL}'
    assert adjust_backbone(text, dict(in_channels=4))
    assert not path.exists()


BACKBONE = """dict(
        type='SLaK',
        arch=dict(
            channels=[8] * 4, depths=[1] * 4, kernel_sizes=[13, 11, 9, 7]
        ),
        layer_scale_init_value=1.0,
    )"""
SEGMENTER = f"""
default_scope = 'mmseg'
custom_imports = dict(imports=['pelk_mm'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor', mean=[0] * 3, std=[255] * 3, size=(64, 64)
    ),
    backbone={BACKBONE},
    decode_head=dict(
        type='FCNHead', in_channels=8, in_index=3, channels=8, num_convs=1,
        num_classes=3, concat_input=False,
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
visualizer = dict(
    type='SegLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='PackSegInputs')]
test_dataloader = dict(dataset=dict(type='BaseSegDataset', pipeline=test_pipeline))
"""
DETECTOR = f"""
default_scope = 'mmdet'
custom_imports = dict(imports=['pelk_mm'], allow_failed_imports=False)
model = dict(
    type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor', pad_size_divisor=32),
    backbone={BACKBONE},
    neck=dict(type='FPN', in_channels=[8] * 4, out_channels=8, num_outs=5),
    bbox_head=dict(
        type='FCOSHead', num_classes=3, in_channels=8, feat_channels=64, stacked_convs=1
    ),
    test_cfg=dict(nms_pre=10, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5),
        max_per_img=5),
)
visualizer = dict(
    type='DetLocalVisualizer', vis_backends=[dict(type='LocalVisBackend')]
)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
test_dataloader = dict(dataset=dict(
    type='BaseDetDataset', ann_file='none.json', pipeline=test_pipeline))
"""
METAS = {
    '1.x': dict(dataset_meta=dict(classes=tuple(NAMES), palette=COLOURS)),
    'no palette': dict(dataset_meta=dict(classes=NAMES)),
    'array': dict(CLASSES=tuple(NAMES), PALETTE=np.array(COLOURS, np.uint8)),
    '0.x, no palette': dict(CLASSES=tuple(NAMES), PALETTE=None),
    'nothing': dict(CLASSES=None),
}


@pytest.fixture
def trained(tmp_path, randomise, monkeypatch):
    """Writes a config, a checkpoint of its model with these notes, and an image."""
    monkeypatch.chdir(tmp_path)
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cv2.imwrite('image.png', image)

    def make(text, meta):
        (tmp_path / 'config.py').write_text(text)
        cfg = Config.fromfile('config.py')
        init_default_scope(cfg.default_scope)
        model = randomise(MODELS.build(cfg.model))
        content = dict(meta=meta, state_dict=model.state_dict(), optimizer={})
        torch.save(content, 'trained.pth')
        return model

    return make


@pytest.mark.parametrize(
    ('kind', 'deployed'),
    [*((kind, False) for kind in METAS), ('array', True), ('no palette', True)],
)
def test_segmenter_is_shown(trained, tmp_path, kind, deployed):
    from mmseg.apis import (
        MMSegInferencer,
        inference_model,
        init_model,
        show_result_pyplot,
    )

    trained(SEGMENTER, METAS[kind])
    if deployed:
        deploy_checkpoint('config.py', 'trained.pth', 'dst.pth')
        text = SEGMENTER.replace("type='SLaK',", "type='SLaK', deploy=True,")
        (tmp_path / 'config.py').write_text(text)
    else:
        convert_checkpoint('trained.pth', 'dst.pth')
    model = init_model('config.py', 'dst.pth', 'cpu')
    result = inference_model(model, 'image.png')
    show_result_pyplot(model, 'image.png', result, show=False, out_file='shown.png')
    assert cv2.imread('shown.png').shape == (64, 64, 3)
    if kind != 'nothing':
        assert model.dataset_meta['classes'] == NAMES
        palette = COLOURS if kind in ('1.x', 'array') else RANDOM
        assert model.dataset_meta['palette'] == palette
    names = dict(
        classes=model.dataset_meta['classes'], palette=model.dataset_meta['palette']
    )
    cfg = Config.fromfile('config.py')
    inferencer = MMSegInferencer(cfg, 'dst.pth', device='cpu', **names)
    found = inferencer('image.png', return_vis=True)
    assert found['visualization'].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ('kind', 'dst'),
    [
        ('no palette', 'dst.pth'),
        ('array', 'dst.pth'),
        ('array', 'dst.safetensors'),
        ('nothing', 'dst.pth'),
    ],
)
def test_detector_is_shown(trained, kind, dst):
    from mmdet.apis import DetInferencer, inference_detector, init_detector

    if dst.endswith('.safetensors'):
        pytest.importorskip('safetensors')
    trained(DETECTOR, METAS[kind])
    convert_checkpoint('trained.pth', dst)
    model = init_detector('config.py', dst, device='cpu')
    assert len(inference_detector(model, 'image.png').pred_instances) > 0
    if kind != 'nothing':
        assert model.dataset_meta['classes'] == NAMES
    inferencer = DetInferencer(
        Config.fromfile('config.py'), dst, device='cpu', show_progress=False
    )
    found = inferencer('image.png', return_vis=True, no_save_vis=True)
    assert found['visualization'][0].shape == (64, 64, 3)


class TestConfigOfACheckpoint:
    """A checkpoint of this package keeps its config where the result fits it."""

    @pytest.fixture(autouse=True)
    def _setup(self, trained):
        self.model = trained(SEGMENTER, METAS['1.x'] | dict(cfg=SEGMENTER, epoch=3))

    def convert(self, **options):
        report = convert_checkpoint('trained.pth', 'dst.pth', force=True, **options)
        assert report.complete
        written = read_checkpoint('dst.pth')
        return report, written['meta'].get('cfg'), written['state_dict']

    def test_inferencer_needs_weights_alone(self):
        from mmseg.apis import MMSegInferencer

        _, cfg, _ = self.convert()
        assert cfg == SEGMENTER
        inferencer = MMSegInferencer(None, 'dst.pth', device='cpu')
        name = 'backbone.norm0.weight'
        assert torch.equal(
            inferencer.model.state_dict()[name], self.model.state_dict()[name]
        )

    @pytest.mark.parametrize(
        'options', [dict(in_channels=4), dict(in_channels=1), dict(warm_start='pelk')]
    )
    def test_is_adjusted(self, options):
        report, cfg, weights = self.convert(**options)
        assert 'meta.cfg' not in report.dropped
        model = MODELS.build(Config.fromstring(cfg, '.py').model)
        model.load_state_dict(weights)

    def test_is_dropped_with_the_heads(self):
        report, cfg, _ = self.convert(prefix='')
        assert cfg is None
        assert 'does not fit' in report.dropped['meta.cfg']

    def test_safetensors(self):
        pytest.importorskip('safetensors')
        convert_checkpoint('trained.pth', 'dst.safetensors')
        meta = read_checkpoint('dst.safetensors')['meta']
        assert meta['cfg'] == SEGMENTER
        assert meta['dataset_meta'] == METAS['1.x']['dataset_meta'] | dict(
            classes=NAMES
        )


def test_config_of_another_package_is_dropped(small, convert):
    _, released = small()
    weights = {f'backbone.{name}': value for name, value in released.items()}
    meta = dict(cfg=SEGMENTER, mmengine_version='0.10.7')
    report, written = convert({'state_dict': weights, 'meta': meta})
    assert report.complete
    assert 'cfg' not in written['meta']
    assert 'meta.cfg' in report.dropped
