"""Training in bfloat16 on the CPU: small models of the three families."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from mmengine.device import get_device
from mmengine.hooks import EMAHook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.optim import AmpOptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn
from torch.utils.checkpoint import checkpoint

from pelk_mm.checkpoints import load_weights_only
from pelk_mm.engine import Bfloat16OptimWrapper, FiniteLossHook, IterationSeedHook
from pelk_mm.engine import bfloat16 as room
from pelk_mm.engine.finite_loss import NotFiniteError
from pelk_mm.sparsity import DynamicSparsityHook

from .precision_models import (
    BACKBONES,
    CHANNELS,
    Head,
    Images,
    Model,
    batch,
    gradients,
    tensors,
    wrap,
)

pytestmark = pytest.mark.skipif(get_device() != 'cpu', reason='mmengine finds a GPU')


@pytest.fixture(autouse=True, scope='module')
def _one_thread(one_thread):
    """Small models are faster on one thread."""


@pytest.fixture(params=BACKBONES)
def family(request):
    return request.param


# ------------------------------------------------------------------ what `--amp` means


def test_amp_means_ours_without_a_gpu():
    wrapper = wrap(Model(), loss_scale='dynamic')
    assert type(wrapper) is Bfloat16OptimWrapper
    assert type(wrap(Model(), 'Bfloat16OptimWrapper')) is Bfloat16OptimWrapper
    with pytest.raises(AssertionError, match='only available training on gpu'):
        AmpOptimWrapper(optimizer=wrapper.optimizer)


@pytest.mark.parametrize(
    ('device', 'kind'),
    [
        ('cpu', Bfloat16OptimWrapper),
        ('cuda', AmpOptimWrapper),
        ('npu', AmpOptimWrapper),
        ('mps', AmpOptimWrapper),
    ],
)
def test_amp_stays_mmengines_with_a_gpu(monkeypatch, device, kind):
    monkeypatch.setitem(OPTIM_WRAPPERS.module_dict, 'AmpOptimWrapper', AmpOptimWrapper)
    room.register_amp(device)
    assert OPTIM_WRAPPERS.get('AmpOptimWrapper') is kind


@pytest.mark.parametrize('scale', ['dynamic', 512.0, dict(init_scale=8.0)])
def test_arguments_of_mmengines_are_taken(scale):
    model = Model()
    plain = gradients(model, wrap(model), batch())
    model = Model()
    wrapper = wrap(model, loss_scale=scale, dtype='bfloat16', use_fsdp=True)
    for name, grad in gradients(model, wrapper, batch()).items():
        assert torch.equal(grad, plain[name])


@pytest.mark.parametrize('dtype', ['float16', torch.float16, 'float32', 'int8'])
def test_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match='float16|float32|int8') as error:
        wrap(Model(), dtype=dtype)
    assert 'set optim_wrapper.dtype=bfloat16' in str(error.value)


def test_unknown_loss_scale_is_refused():
    with pytest.raises(TypeError, match=r"loss_scale 'static' is not .* leave it out"):
        wrap(Model(), loss_scale='static')


@pytest.mark.parametrize(('has', 'warned'), [(False, 1), (True, 0), (None, 0)])
def test_slow_processors_are_named(monkeypatch, caplog, has, warned):
    monkeypatch.setattr(room, 'multiplies_bfloat16', lambda: has)
    logger = MMLogger.get_current_instance()
    logger.addHandler(caplog.handler)
    try:
        wrap(Model())
    finally:
        logger.removeHandler(caplog.handler)
    assert caplog.text.count('has no instructions for bfloat16') == warned


# ------------------------------------------------------------------- what computes how


def test_losses_weights_and_moments_are_float32(family):
    model = Model(family)
    wrapper = wrap(model)
    log = model.train_step(batch(), wrapper)
    assert model.seen == [(torch.bfloat16, True)]
    for seen in (model.head.seen, model.head.loss_cls.seen, model.loss_aux.seen):
        assert seen == [(torch.float32, False)]
    assert {value.dtype for value in log.values()} == {torch.float32}
    states = wrapper.optimizer.state
    for param in model.parameters():
        assert param.dtype is torch.float32
        assert states[param]['exp_avg'].dtype is torch.float32
        assert states[param]['exp_avg_sq'].dtype is torch.float32


def test_nothing_of_it_stays_on_the_model():
    model = Model()
    before = {name: set(vars(part)) for name, part in model.named_modules()}
    wrapper = wrap(model)
    with pytest.raises(RuntimeError), wrapper.optim_context(model):
        model(**batch(0), mode='loss')  # no images to stack
    model.train_step(batch(), wrapper)
    assert before == {name: set(vars(part)) for name, part in model.named_modules()}
    other = copy.deepcopy(model)
    other.head.factor = 0.0
    labels = torch.tensor([0, 1])
    scores = torch.tensor([[9.0, 0, 0], [0, 9, 0]])
    loss = other.head.loss_by_feat(dict(scores=[scores]), labels)
    assert loss.item() == pytest.approx(1.0986, abs=1e-3)  # of its own factor


def test_a_method_that_was_replaced_before_comes_back():
    model = Model()
    model.head.loss_by_feat = replaced = lambda scores, labels: scores['scores'][
        0
    ].sum()
    with wrap(model).optim_context(model):
        assert model.head.loss_by_feat is not replaced
    assert model.head.loss_by_feat is replaced


def test_steps_below_the_precision_of_bfloat16_count():
    model = Model()
    model.backbone.requires_grad_(False)
    nn.init.ones_(model.head.conv.weight)
    wrapper = wrap(model, lr=1e-5)  # bfloat16 has 2**-8 after 1
    for _ in range(3):
        model.train_step(batch(), wrapper)
    moved = (model.head.conv.weight - 1).abs()
    assert 1e-5 < moved.max() < 2**-10


def test_gradients_are_those_of_float32_rounded(family):
    model = Model(family)
    exact = gradients(model, wrap(model, 'OptimWrapper'), batch())
    model = Model(family)
    rounded = gradients(model, wrap(model), batch())
    assert any(not torch.equal(rounded[name], exact[name]) for name in exact)
    both = [torch.cat([g.flatten() for g in s.values()]) for s in (exact, rounded)]
    assert F.cosine_similarity(*both, dim=0) > 0.97
    assert both[1].norm() == pytest.approx(both[0].norm().item(), rel=0.05)


def test_checkpointing_does_not_change_a_bit(family):
    found = []
    for with_cp in (False, True):
        model = Model(family, with_cp=with_cp)
        found.append(gradients(model, wrap(model), batch()))
    for name, grad in found[0].items():
        assert torch.equal(grad, found[1][name]), name


def test_clipping_and_accumulation(family):
    model = Model(family)
    halves = [batch(2), dict(inputs=batch()['inputs'][2:], label=batch()['label'][2:])]
    parts = []
    for half in halves:
        model.load_state_dict(Model(family).state_dict())
        model.zero_grad()
        parts.append(gradients(model, wrap(model), half))
    model = Model(family)
    wrapper = wrap(model, accumulative_counts=2, clip_grad=dict(max_norm=1e-3))
    wrapper.initialize_count_status(model, 0, 2)
    stepped = []
    wrapper.optimizer.register_step_pre_hook(
        lambda *_: stepped.append({n: p.grad for n, p in model.named_parameters()})
    )
    model.train_step(halves[0], wrapper)
    assert stepped == []
    # The statistics of BatchNorms do not enter into what training computes.
    model.train_step(halves[1], wrapper)
    (grads,) = stepped
    mean = {name: (parts[0][name] + parts[1][name]) / 2 for name in grads}
    norm = torch.linalg.vector_norm(torch.stack([g.norm() for g in mean.values()]))
    assert norm > 1e-3
    for name, grad in grads.items():
        expected = mean[name] * (1e-3 / norm)
        torch.testing.assert_close(grad, expected, rtol=1e-3, atol=1e-9)


# ---------------------------------------------------------------- what takes part in it


class Deformed(BaseModel):
    """A deformable convolution in a part that is computed twice."""

    def __init__(self, with_cp=True):
        super().__init__()
        ops = pytest.importorskip('mmcv.ops')
        torch.manual_seed(0)
        self.with_cp = with_cp
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.deformed = ops.ModulatedDeformConv2dPack(4, 4, 3, padding=1)

    def forward(self, inputs, mode='loss'):
        x = self.stem(inputs)
        if self.with_cp:
            x = checkpoint(self.deformed, x, use_reentrant=False)
        else:
            x = self.deformed(x)
        return dict(loss=x.float().square().mean())


def test_compiled_operators_of_mmcv_run_in_float32():
    data = dict(inputs=torch.randn(2, 3, 9, 9))
    model = Deformed()
    found = gradients(model, wrap(model), data)
    model = Deformed(with_cp=False)
    for name, grad in gradients(model, wrap(model), data).items():
        assert grad.isfinite().all()
        assert torch.equal(found[name], grad), name
    with torch.autocast('cpu', torch.bfloat16), pytest.raises(RuntimeError):
        Deformed()(**data)  # what they do otherwise


def test_regions_of_interest_keep_their_coordinates():
    models = pytest.importorskip('mmdet.models')
    layer = dict(type='RoIAlign', output_size=7, sampling_ratio=1)
    extractor = models.SingleRoIExtractor(layer, 4, [4, 8])
    rois = torch.tensor([[0, 3.3, 100.7, 201.4, 255.1], [1, 0.6, 1.2, 20.9, 30.3]])
    features = [torch.randn(2, 4, 64 // k, 64 // k).bfloat16() for k in (1, 2)]
    expected = extractor([f.float() for f in features], rois)
    whole = nn.Sequential(extractor)
    with wrap(nn.Linear(1, 1)).optim_context(whole):
        found = extractor(features, rois)
    assert found.dtype is torch.float32
    assert torch.equal(found, expected)
    with pytest.raises(RuntimeError):
        extractor(features, rois)


def make_runner(
    folder, family, hooks=(), resume=False, iters=8, with_cp=True, **kwargs
):
    return Runner(
        model=Model(family, with_cp=True),
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=Images(),
            batch_size=4,
            num_workers=0,
            sampler=dict(type='InfiniteSampler', shuffle=True),
        ),
        train_cfg=dict(type='IterBasedTrainLoop', max_iters=iters),
        optim_wrapper=dict(
            type='AmpOptimWrapper',
            loss_scale='dynamic',
            optimizer=dict(type='AdamW', lr=0.01, weight_decay=0.05),
            constructor='LargeKernelLayerDecayOptimizerConstructor',
            paramwise_cfg=dict(decay_rate=0.9),
            accumulative_counts=2,
            clip_grad=dict(max_norm=1.0),
        ),
        param_scheduler=dict(type='PolyLR', by_epoch=False, end=iters),
        default_hooks=dict(
            logger=dict(type='LoggerHook', interval=100),
            checkpoint=dict(type='SafeCheckpointHook', by_epoch=False, interval=4),
        ),
        custom_hooks=[*hooks, FiniteLossHook(), IterationSeedHook()],
        log_processor=dict(by_epoch=False),
        randomness=dict(seed=3),
        experiment_name=f'bfloat16_{folder.name}_{next(COUNT)}',
        default_scope='mmengine',
        log_level='ERROR',
        resume=resume,
        **kwargs,
    )


COUNT = itertools.count()


@pytest.mark.parametrize('growth', ['random', 'gradient'])
def test_a_resumed_training_is_the_uninterrupted_one(tmp_path, family, growth):
    def hooks():
        sparsity = DynamicSparsityHook(growth=growth, update_interval=1)
        return [EMAHook(momentum=0.1), sparsity]

    runner = make_runner(tmp_path, family, hooks())
    runner.train()
    assert type(runner.optim_wrapper) is Bfloat16OptimWrapper
    groups = runner.optim_wrapper.optimizer.param_groups
    rates = {group['lr_scale'] for group in groups}
    assert len(rates) > 2
    whole = load_weights_only(tmp_path / 'iter_8.pth')
    (tmp_path / 'iter_8.pth').unlink()
    (tmp_path / 'last_checkpoint').write_text(str(tmp_path / 'iter_4.pth'))
    make_runner(tmp_path, family, hooks(), resume=True).train()
    resumed = load_weights_only(tmp_path / 'iter_8.pth')
    for entry in ('state_dict', 'ema_state_dict', 'optimizer', 'sparsity'):
        expected = dict(tensors(whole[entry]))
        found = dict(tensors(resumed[entry]))
        assert expected.keys() == found.keys()
        assert expected
        for name, tensor in found.items():
            assert torch.equal(tensor, expected[name]), (entry, name)
    zeros = sum(int((p == 0).sum()) for p in runner.model.backbone.parameters())
    assert zeros >= whole['sparsity']['steps']  # of which there are four
    assert whole['sparsity']['steps'] == 4


def test_a_loss_that_is_not_finite_is_traced(tmp_path):
    runner = make_runner(tmp_path, 'PeLK')
    runner.model.head.factor = float('inf')
    with pytest.raises(NotFiniteError, match=r'^iteration 1: loss_cls is nan') as stop:
        runner.train()
    assert 'the input of head.loss_cls (Loss) is not finite' in str(stop.value)


def test_a_gpus_checkpoint_goes_on(tmp_path):
    """With the state of a loss scaler, which is needed no more."""
    model = Model()
    wrapper = wrap(model)
    model.train_step(batch(), wrapper)
    state = copy.deepcopy(wrapper.state_dict())
    state['loss_scaler'] = dict(scale=65536.0, growth_factor=2.0)
    other = wrap(Model())
    other.load_state_dict(state)
    expected = dict(tensors(wrapper.state_dict()))
    found = dict(tensors(other.state_dict()))
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


class Pointwise(BaseModel):
    """A convolution and a head: what is compiled is the precision."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, CHANNELS[-1], 1)
        self.head = Head()

    def forward(self, inputs, label=None, mode='loss'):
        scores = self.head(self.conv(torch.stack(inputs)))
        loss = self.head.loss_by_feat(dict(scores=[scores]), torch.stack(label))
        return dict(loss_cls=loss)


@pytest.mark.long
def test_compiled_training_step():
    losses = []
    for compiled in (False, True):
        torch.compiler.reset()
        model = Pointwise()
        if compiled:
            model.train_step = torch.compile(model.train_step, backend='eager')
        wrapper = wrap(model)
        losses.append([model.train_step(batch(), wrapper)['loss'] for _ in range(3)])
        assert set(model.head.loss_cls.seen) == {(torch.float32, False)}
    torch.compiler.reset()
    assert losses[0][0] != losses[0][2]
    assert torch.equal(*map(torch.stack, losses))
