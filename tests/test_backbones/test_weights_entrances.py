"""Wherever a user names a checkpoint, one that does not fit stops the run at once."""

import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel, PretrainedInit
from mmengine.registry import MODELS
from mmengine.runner import Runner

import pelk_mm  # noqa: F401
from pelk_mm.checkpoints.fit import WeightsError

ARCH = dict(channels=[8, 12], depths=[1, 1], kernel_sizes=[9, 7], central_radius=2)
PELK = dict(type='PeLK', arch=ARCH, out_indices=(0, 1))


class Model(BaseModel):
    """A backbone and a head."""

    def __init__(self, init_cfg=None, **backbone):
        super().__init__(init_cfg=init_cfg)
        self.backbone = MODELS.build(PELK | backbone)
        self.head = torch.nn.Conv2d(12, 1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        out = self.head(self.backbone(torch.stack(inputs))[-1])
        return dict(loss=out.square().mean()) if mode == 'loss' else [out]


class Metric:
    """Stands in for an evaluator."""

    def process(self, data_samples, data_batch=None):
        """Ignore predictions."""

    def evaluate(self, size):
        """No score."""
        return {}


@pytest.fixture
def save(tmp_path):
    """Writes a state dict under a prefix; returns the path."""

    def write(state, prefix='', **more):
        path = tmp_path / 'weights.pth'
        state = {f'{prefix}{name}': value for name, value in state.items()}
        torch.save(dict(state_dict=state, meta={}, **more), path)
        return str(path)

    return write


@pytest.fixture
def make_runner(tmp_path):
    """Makes a runner of one iteration."""

    def make(model, **kwargs):
        loader = dict(
            batch_size=1,
            dataset=[dict(inputs=torch.randn(3, 32, 32))],
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        )
        return Runner(
            model=model,
            work_dir=str(tmp_path / 'out'),
            train_dataloader=loader,
            train_cfg=dict(by_epoch=False, max_iters=1),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            test_dataloader=loader,
            test_cfg=dict(),
            test_evaluator=Metric(),
            default_hooks=dict(checkpoint=None, logger=None),
            log_level='ERROR',
            experiment_name=tmp_path.name,
            **kwargs,
        )

    return make


def deployed():
    model = Model().eval()
    model.backbone.switch_to_deploy()
    return model.state_dict()


SPARSE = dict(type='DynamicSparsityHook', mode='fixed')
EMA = dict(type='EMAHook')


@pytest.mark.parametrize('hooks', [[], [SPARSE], [EMA]], ids=['', 'sparse', 'ema'])
@pytest.mark.parametrize('resume', [False, True])
def test_load_from_and_resume(make_runner, save, hooks, resume):
    """The hook for sparsity, which finds no zeros in random weights, comes later."""
    path = save(deployed())
    runner = make_runner(Model(), load_from=path, resume=resume, custom_hooks=hooks)
    with pytest.raises(WeightsError, match='deployment form; set deploy=True'):
        runner.train()
    assert runner.iter == 0


def test_test(make_runner, save):
    path = save(deployed())
    with pytest.raises(WeightsError, match='deployment form; set deploy=True'):
        make_runner(Model(), load_from=path).test()


@pytest.mark.parametrize('run', [Runner.train, Runner.test])
def test_weights_that_fit(make_runner, save, run):
    path = save(deployed())
    model = Model(deploy=True)
    run(make_runner(model, load_from=path))
    assert model.backbone.has_weights
    run(make_runner(Model(partial_weights=True), load_from=path))


SPELLINGS = ['Pretrained', 'mmengine.Pretrained', PretrainedInit]


@pytest.mark.parametrize('kind', SPELLINGS)
@pytest.mark.parametrize('as_list', [False, True])
def test_init_cfg_of_the_backbone(save, kind, as_list):
    source = Model().backbone.state_dict()
    others = [dict(type='Constant', val=7, layer=['Conv2d', 'LayerNorm2d'])]

    def init_cfg(path, **kwargs):
        cfg = dict(type=kind, checkpoint=path, **kwargs)
        return [cfg, *others] if as_list else cfg

    model = Model()
    model.backbone.init_cfg = init_cfg(save(source, 'backbone.'))
    with pytest.raises(WeightsError, match=r"set prefix='backbone\.'"):
        model.init_weights()
    model = Model()
    model.backbone.init_cfg = init_cfg(save(source, 'backbone.'), prefix='backbone')
    model.init_weights()
    for name, value in model.backbone.state_dict().items():
        assert torch.equal(value, source[name]), name


@pytest.mark.parametrize('kind', SPELLINGS)
def test_init_cfg_of_the_model(save, kind):
    path = save(deployed())
    with pytest.raises(WeightsError, match='deployment form'):
        Model(init_cfg=dict(type=kind, checkpoint=path)).init_weights()
    source = Model().state_dict()
    model = Model(init_cfg=dict(type=kind, checkpoint=save(source)))
    if kind == 'mmengine.Pretrained':  # before, not after, its parts are initialised
        with pytest.raises(
            WeightsError, match="overwrite; write its type='Pretrained'"
        ):
            model.init_weights()
        return
    model.init_weights()
    for name, value in model.state_dict().items():
        assert torch.equal(value, source[name]), name


def test_override_of_the_model(save):
    init_cfg = dict(
        type='Normal',
        layer='Conv2d',
        override=dict(type='Pretrained', name='backbone', checkpoint=save(deployed())),
    )
    with pytest.raises(WeightsError, match=r"set prefix='backbone\.'"):
        Model(init_cfg=init_cfg).init_weights()


# --- what the frameworks offer for inference --------------------------------------

SEGMENTER = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor'),
    backbone=PELK,
    decode_head=dict(
        type='FCNHead', in_channels=12, in_index=1, channels=4, num_classes=2
    ),
    test_cfg=dict(mode='whole'),
)
DETECTOR = dict(
    type='FCOS',
    data_preprocessor=dict(type='DetDataPreprocessor'),
    backbone=PELK,
    neck=dict(type='FPN', in_channels=[8, 12], out_channels=4, num_outs=2),
    bbox_head=dict(
        type='FCOSHead', num_classes=2, in_channels=4, feat_channels=4, norm_cfg=None
    ),
)


def config(scope, model, load):
    pipeline = [dict(type=load), dict(type=f'Pack{scope[2:].title()}Inputs')]
    return Config(
        dict(
            default_scope=scope,
            model=model,
            test_dataloader=dict(dataset=dict(pipeline=pipeline)),
            visualizer=dict(type=f'{scope[2:].title()}LocalVisualizer', name=scope),
        )
    )


def segmenter_tools():
    from mmseg.apis import MMSegInferencer, init_model

    cfg = config('mmseg', SEGMENTER, 'LoadImageFromFile')
    return (
        lambda path: init_model(cfg, path, device='cpu'),
        lambda path: MMSegInferencer(cfg, path, device='cpu').model,
    )


def detector_tools():
    from mmdet.apis import DetInferencer, init_detector

    cfg = config('mmdet', DETECTOR, 'LoadImageFromFile')
    return (
        lambda path: init_detector(cfg, path, device='cpu', palette='random'),
        lambda path: DetInferencer(cfg, path, device='cpu', palette='random').model,
    )


@pytest.mark.parametrize('tools', [segmenter_tools, detector_tools])
@pytest.mark.filterwarnings('ignore')
def test_inference(save, tools):
    for load in tools():
        with pytest.raises(WeightsError, match='deployment form; set deploy=True'):
            load(save(deployed()))
        good = {n: v for n, v in Model().state_dict().items() if 'head' not in n}
        assert load(save(good)).backbone.has_weights
