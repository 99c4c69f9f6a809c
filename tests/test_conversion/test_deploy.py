"""Deployment of whole models; the command line is in test_tools."""

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from pelk_mm.checkpoints.files import CheckpointError, read_checkpoint
from pelk_mm.conversion.deploy import deploy_checkpoint

SEGMENTER = """
default_scope = 'mmseg'
custom_imports = dict(imports=['pelk_mm'], allow_failed_imports=False)
model = dict(
    type='EncoderDecoder',
    backbone=dict(
        type='{backbone}',
        arch=dict(
            channels=(8, 8, 8, 8),
            depths=(1, 1, 1, 1),
            kernel_sizes=(13, 11, 9, 7){more}
        ),
    ),
    decode_head=dict(
        type='FCNHead', in_channels=8, in_index=3, channels=8, num_convs=1,
        num_classes=3, norm_cfg=dict(type='SyncBN'),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
"""
DETECTOR = """
default_scope = 'mmdet'
custom_imports = dict(imports=['pelk_mm'], allow_failed_imports=False)
model = dict(
    type='FCOS',
    backbone=dict(
        type='RepLKNet',
        arch=dict(
            channels=(8, 8, 8, 8), depths=(1, 1, 1, 1), kernel_sizes=(13, 11, 9, 7)
        ),
        norm_cfg=dict(type='SyncBN'),
        norm_intermediate_features=True,
    ),
    neck=dict(type='FPN', in_channels=[8, 8, 8, 8], out_channels=8, num_outs=5),
    bbox_head=dict(
        type='FCOSHead', num_classes=3, in_channels=8, feat_channels=32, stacked_convs=1
    ),
)
"""
CONFIGS = {
    'pelk': SEGMENTER.format(backbone='PeLK', more=', central_radius=2'),
    'slak': SEGMENTER.format(backbone='SLaK', more=''),
    'detector': DETECTOR,
}


def build(path, **backbone):
    cfg = Config.fromfile(path)
    cfg.model.backbone.update(backbone)
    init_default_scope(cfg.default_scope)
    return MODELS.build(cfg.model).eval()


@pytest.fixture
def trained(tmp_path, randomise):
    """Writes a config and a checkpoint of its model; returns both and the model."""

    def make(kind='slak'):
        config, checkpoint = tmp_path / 'config.py', tmp_path / 'trained.pth'
        config.write_text(CONFIGS[kind])
        model = build(config)
        randomise(model)
        meta = dict(epoch=3, dataset_meta=dict(classes=['a', 'b', 'c']))
        torch.save(
            dict(meta=meta, state_dict=model.state_dict(), optimizer={}), checkpoint
        )
        return config, checkpoint, model

    return make


@torch.no_grad()
@pytest.mark.parametrize('kind', CONFIGS)
def test_whole_model_computes_the_same(trained, tmp_path, kind):
    config, checkpoint, model = trained(kind)
    out = tmp_path / 'deployed.pth'
    report = deploy_checkpoint(config, checkpoint, out)
    assert report.backbone == type(model.backbone).__name__
    assert report.difference < 1e-5
    assert report.folded['ConvNorm'] >= 4
    assert report.parameters[1] < report.parameters[0]

    saved = torch.load(out, weights_only=True)
    assert saved['meta']['dataset_meta']['classes'] == ['a', 'b', 'c']
    assert len(saved['meta']['dataset_meta']['palette']) == 3
    assert saved['meta']['epoch'] == 3
    assert 'optimizer' not in saved
    deployed = build(config, deploy=True)
    deployed.load_state_dict(saved['state_dict'])
    images = torch.randn(1, 3, 64, 64)
    before, after = model.extract_feat(images), deployed.extract_feat(images)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    rebuilt = Config.fromstring(saved['meta']['cfg'], '.py').model.backbone
    assert rebuilt.deploy is True


@pytest.mark.parametrize('meta', [None, [], dict(CLASSES=('a',), seed=np.int64(1))])
def test_meta_of_any_kind(trained, tmp_path, meta):
    pytest.importorskip('safetensors')
    config, checkpoint, model = trained()
    torch.save(dict(meta=meta, state_dict=model.state_dict()), checkpoint)
    out = tmp_path / 'deployed.safetensors'
    deploy_checkpoint(config, checkpoint, out)
    saved = read_checkpoint(out)['meta']
    assert saved['backbone_deployed'] is True
    if meta:
        assert saved['seed'] == 1
        assert saved['dataset_meta']['classes'] == ['a']


def test_bare_state_dict(trained, tmp_path):
    config, checkpoint, model = trained()
    torch.save(model.state_dict(), checkpoint)
    deploy_checkpoint(config, checkpoint, tmp_path / 'deployed.pth')


def test_existing_file_is_kept_unless_forced(trained, tmp_path):
    config, checkpoint, _ = trained()
    out = tmp_path / 'deployed.pth'
    out.write_bytes(b'mine')
    with pytest.raises(CheckpointError, match='exists and is kept; .* --force'):
        deploy_checkpoint(config, checkpoint, out)
    assert out.read_bytes() == b'mine'
    deploy_checkpoint(config, checkpoint, out, force=True)
    assert out.stat().st_size > 1000


class TestRefusal:
    """Each is one sentence, and nothing is left on disk."""

    @pytest.fixture(autouse=True)
    def _setup(self, trained, tmp_path):
        self.config, self.checkpoint, self.model = trained()
        self.out = tmp_path / 'deployed.pth'
        self.folder = tmp_path

    def refused(self, message):
        before = sorted(self.folder.iterdir())
        with pytest.raises(CheckpointError, match=message) as caught:
            deploy_checkpoint(self.config, self.checkpoint, self.out)
        assert '\n' not in str(caught.value)
        assert sorted(self.folder.iterdir()) == before

    def test_no_config(self):
        self.config = self.folder / 'none.py'
        self.refused('config .*none.py does not exist')

    def test_broken_config(self):
        self.config.write_text('model = dict(')
        self.refused('config .* cannot be read')

    def test_config_without_backbone(self):
        self.config.write_text('model = dict(type="X")')
        self.refused('has no model with a backbone')

    def test_model_that_cannot_be_built(self):
        text = CONFIGS['slak'].replace('(13, 11', '(12, 11')
        self.config.write_text(text)
        self.refused('cannot be built: .*kernel size 12')

    def test_foreign_backbone(self):
        start, end = CONFIGS['slak'].split('backbone=dict(')[0], CONFIGS['slak']
        head = end[end.index('    decode_head') :]
        backbone = "    backbone=dict(type='ResNet', depth=18),\n"
        self.config.write_text(start.rstrip() + '\n' + backbone + head)
        self.refused('is ResNet, which has no deployment form')

    def test_config_of_a_deployed_model(self):
        text = CONFIGS['slak'].replace("type='SLaK',", "type='SLaK', deploy=True,")
        self.config.write_text(text)
        self.refused('deploy=True.* already')

    def test_no_checkpoint(self):
        self.checkpoint = self.folder / 'none.pth'
        self.refused('none.pth does not exist')

    def test_damaged_checkpoint(self):
        self.checkpoint.write_bytes(self.checkpoint.read_bytes()[:1000])
        self.refused('trained.pth is truncated')

    @pytest.mark.parametrize('content', [[1, 2], torch.ones(2)])
    def test_something_else_in_the_file(self, content):
        torch.save(content, self.checkpoint)
        self.refused('holds a (list|Tensor), not a state dict')

    def test_already_deployed(self):
        deploy_checkpoint(self.config, self.checkpoint, self.out)
        self.checkpoint, self.out = self.out, self.folder / 'again.pth'
        self.refused('in its deployment form already')

    @pytest.mark.parametrize(
        ('change', 'message'),
        [
            (lambda s: s.popitem(), r'1 missing tensor \(.*\);'),
            (
                lambda s: s.update(extra=torch.ones(1)),
                r'1 unexpected tensor \(extra\);',
            ),
            (
                lambda s: s.update({next(iter(s)): torch.ones(1)}),
                r'1 wrongly shaped tensor \(',
            ),
            (lambda s: s.clear(), r'\d+ missing tensors \(.*, \.\.\.\)'),
        ],
    )
    def test_other_model(self, change, message):
        state = self.model.state_dict()
        change(state)
        torch.save(dict(state_dict=state), self.checkpoint)
        self.refused(message)

    def test_state_dict_that_is_none(self):
        torch.save(dict(state_dict=3), self.checkpoint)
        self.refused('does not fit the config')

    def test_not_a_number(self):
        state = self.model.state_dict()
        state['backbone.stages.0.blocks.0.gamma'][0] = torch.nan
        torch.save(dict(state_dict=state), self.checkpoint)
        self.refused('differ by nan')

    def test_no_folder(self):
        self.out = self.folder / 'none' / 'deployed.pth'
        self.refused('not a file in an existing folder')

    def test_disk_full(self, monkeypatch):
        def save(*_):
            raise OSError('No space left on device')

        monkeypatch.setattr(torch, 'save', save)
        self.refused('cannot be written: No space left')
