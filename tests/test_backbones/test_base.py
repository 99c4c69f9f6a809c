"""The contract that all backbones keep, over all of them."""

import pickle
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from torch import nn

import pelk_mm  # noqa: F401
from pelk_mm.layers import ConvNorm

CHANNELS, DEPTHS = (8, 12, 16, 20), (1, 2, 4, 1)
SIZES = dict(channels=CHANNELS, depths=DEPTHS, kernel_sizes=(15, 13, 11, 7))
PARTS = {
    'pelk': dict(type='PeLK', arch=dict(SIZES, central_radius=2)),
    'pelk-small': dict(
        type='PeLK',
        arch=dict(SIZES, central_radius=2, small_kernel=5),
        norm_cfg=dict(type='BN'),
    ),
    'pelk-coarse': dict(
        type='PeLK',
        arch=dict(SIZES, central_radius=0, small_kernel=5),
        norm_cfg=dict(type='BN'),
    ),
    'slak': dict(type='SLaK', arch=SIZES),
    'slak-dense': dict(type='SLaK', arch=dict(SIZES, decomposed=False)),
    'replknet': dict(type='RepLKNet', arch=SIZES),
    'replknet-xl': dict(
        type='RepLKNet',
        arch=dict(SIZES, small_kernel=None, dw_ratio=1.5),
        norm_intermediate_features=True,
    ),
}


@pytest.fixture(params=PARTS)
def build(request):
    """Builds one of the small backbones, given further arguments."""
    return lambda **kwargs: MODELS.build({**deepcopy(PARTS[request.param]), **kwargs})


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 96)


def is_batch_norm(module):
    return isinstance(module, (nn.BatchNorm2d, nn.SyncBatchNorm))


def total(maps):
    return sum((m * torch.linspace(-1, 1, m.numel()).view_as(m)).sum() for m in maps)


# --- forward and backward ---------------------------------------------------------


@pytest.mark.parametrize('out_indices', [(0, 1, 2, 3), (1, 3), (2,)])
def test_maps_of_the_requested_stages(build, images, out_indices):
    maps = build(out_indices=out_indices)(images)
    assert isinstance(maps, tuple)
    assert [tuple(m.shape) for m in maps] == [
        (2, CHANNELS[i], 64 // 2 ** (i + 2), 96 // 2 ** (i + 2)) for i in out_indices
    ]


@pytest.mark.parametrize('size', [(75, 101), (33, 32), (32, 160)])
def test_odd_sizes_and_maps_smaller_than_the_kernel(build, size):
    maps = build().eval()(torch.randn(1, 3, *size))
    assert all(m.isfinite().all() for m in maps)


@pytest.mark.parametrize('layout', [torch.contiguous_format, torch.channels_last])
def test_maps_are_contiguous(build, images, layout):
    """Operators of mmcv, RoIAlign for one, read any map as if it were."""
    model = build().to(memory_format=layout)
    maps = model(images.contiguous(memory_format=layout))
    assert all(each.is_contiguous() for each in maps)


def test_every_parameter_learns(build, images):
    model = build(drop_path_rate=0.0).train()
    total(model(images)).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None]
    assert without == []
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_other_image_channels(build):
    maps = build(in_channels=1)(torch.randn(2, 1, 64, 64))
    assert maps[0].shape == (2, CHANNELS[0], 16, 16)


def test_drop_path_rises_from_0_to_the_given_rate(build):
    model = build(drop_path_rate=0.4)
    rates = [
        getattr(block.drop_path, 'drop_prob', 0.0)
        for stage in model.stages
        for block in stage.blocks
    ]
    rates = rates[:: model.blocks_per_layer]
    expected = torch.linspace(0, 0.4, sum(DEPTHS)).tolist()
    assert rates == pytest.approx(expected)


def test_same_weights_whatever_the_random_state_of_other_models(build):
    torch.manual_seed(3)
    first = build()
    first.init_weights()
    torch.manual_seed(3)
    second = build()
    second.init_weights()
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


# --- training options -------------------------------------------------------------


@pytest.mark.parametrize('frozen', [-1, 0, 1, 4])
def test_frozen_stages(build, frozen):
    model = build(frozen_stages=frozen)
    frozen_at_once = {n for n, p in model.named_parameters() if not p.requires_grad}
    model.train()
    parts = [*model.downsample_layers[: max(frozen, 1)], *model.stages[:frozen]]
    parts = parts if frozen >= 0 else []
    expected = {id(p) for part in parts for p in part.parameters()}
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad != (id(parameter) in expected), name
        assert (name in frozen_at_once) == (id(parameter) in expected), name
    assert not any(m.training for part in parts for m in part.modules())
    assert model.stages[3].training == (frozen < 4)
    model.eval()
    model.train()
    assert not any(m.training for part in parts for m in part.modules())


def test_norm_eval_keeps_the_running_statistics(build, images):
    model = build(norm_eval=True).train()
    before = deepcopy(model.state_dict())
    model(images)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert not any(m.training for m in model.modules() if is_batch_norm(m))
    assert model.training
    assert model.stages[0].training


@pytest.mark.parametrize('drop_path_rate', [0.0, 0.5])
@pytest.mark.parametrize('norm', ['BN', 'SyncBN'])
def test_with_cp_gives_the_same_gradients_and_statistics(
    build, images, randomise, drop_path_rate, norm
):
    options = dict(drop_path_rate=drop_path_rate, norm_cfg=dict(type=norm))
    plain = randomise(build(**options)).train()
    cheap = build(**options, with_cp=True).train()
    cheap.load_state_dict(plain.state_dict())
    for model in (plain, cheap):
        torch.manual_seed(1)
        total(model(images)).backward()
    for (name, a), b in zip(plain.named_parameters(), cheap.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad), name
    for (name, a), b in zip(plain.named_buffers(), cheap.buffers(), strict=True):
        assert torch.equal(a, b), name


def test_with_cp_saves_memory_for_the_backward_pass(build, images):
    def saved(model):
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t: sizes.append(t.numel()) or t, lambda t: t
        ):
            model.train()(images)
        return sum(sizes)

    assert saved(build(with_cp=True)) < 0.7 * saved(build())


def test_pretrained_with_and_without_prefix(build, randomise, tmp_path):
    source = randomise(build())
    state = source.state_dict()
    torch.save(dict(state_dict=state), tmp_path / 'backbone.pth')
    torch.save(
        dict(state_dict={f'backbone.{k}': v for k, v in state.items()}),
        tmp_path / 'model.pth',
    )
    for name, prefix in (('backbone', {}), ('model', dict(prefix='backbone.'))):
        path = str(tmp_path / f'{name}.pth')
        init_cfg = dict(type='Pretrained', checkpoint=path, **prefix)
        target = build(init_cfg=init_cfg)
        target.init_weights()
        for key, value in target.state_dict().items():
            assert torch.equal(value, state[key]), key


def test_released_names_do_not_load(build):
    """Whatever a subclass and its prefix; a copy and a pickle of it refuse too."""
    released = {'model.stages.0.0.pwconv1.weight': torch.zeros(1)}
    for model in (build(), deepcopy(build()), pickle.loads(pickle.dumps(build()))):  # noqa: S301
        whole = nn.ModuleDict(dict(model=model))
        with pytest.raises(ValueError, match='has the released names of SLaK'):
            whole.load_state_dict(released, strict=False)


# --- layer decay ------------------------------------------------------------------


def test_layer_depth(build):
    model = build()
    layer = partial(model.get_layer_depth, prefix='backbone.')
    # stem 0, stages of 1, 1, 2 (four layers make two groups of three) and 1, rest
    blocks = model.blocks_per_layer
    expected = {
        'downsample_layers.0.0.conv.weight': 0,
        'stages.0.blocks.0.norm.weight': 1,
        'downsample_layers.1.0.weight': 2,
        'stages.1.blocks.1.norm.weight': 2,
        'stages.2.blocks.0.norm.weight': 3,
        f'stages.2.blocks.{3 * blocks - 1}.norm.weight': 3,
        f'stages.2.blocks.{3 * blocks}.norm.weight': 4,
        'stages.2.position_embedding': 3,
        'downsample_layers.3.1.weight': 5,
        'stages.3.blocks.0.norm.weight': 5,
        'norm3.weight': 6,
    }
    for name, depth in expected.items():
        assert layer(f'backbone.{name}') == (depth, 7), name
    assert layer('decode_head.stages.0.weight') == (6, 7)
    assert model.get_layer_depth('norm0.weight') == (6, 7)


def test_stage_depth(build):
    model = build()
    assert model.get_stage_depth('downsample_layers.2.0.weight') == (0, 7)
    assert model.get_stage_depth('stages.2.blocks.3.norm.weight') == (3, 7)
    assert model.get_stage_depth('norm2.weight') == (6, 7)


def test_every_own_parameter_has_a_layer(build):
    model = build()
    last = model.get_layer_depth('head')[1] - 1
    for name, _ in model.named_parameters():
        depth, _ = model.get_layer_depth(name)
        assert (depth == last) == name.startswith('norm'), name


# --- deployment -------------------------------------------------------------------


def relative_difference(before, after):
    return max(
        ((a - b).abs().max() / a.abs().max()).item()
        for a, b in zip(before, after, strict=True)
    )


@torch.no_grad()
def test_deployment_form_computes_the_same(build, randomise):
    model = randomise(build()).eval()
    images = torch.randn(1, 3, 75, 101)
    before = model(images)
    modules = sum(1 for _ in model.modules())
    model.switch_to_deploy()
    assert relative_difference(before, model(images)) < 1e-5
    assert sum(1 for _ in model.modules()) < modules
    assert not any(isinstance(m, ConvNorm) for m in model.modules())

    fresh = build(deploy=True).eval()
    fresh.load_state_dict(model.state_dict())
    assert [n for n, _ in fresh.named_parameters()] == [
        n for n, _ in model.named_parameters()
    ]
    assert all(map(torch.equal, model(images), fresh(images)))


@torch.no_grad()
def test_folding_is_exact_in_float64(build, randomise):
    model = randomise(build()).double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    before = model(images)
    model.switch_to_deploy()
    assert relative_difference(before, model(images)) < 1e-12


def test_second_switch_does_nothing_and_says_so(build, randomise, monkeypatch):
    said = []
    monkeypatch.setattr(
        'pelk_mm.backbones.base.print_log', lambda message, **_: said.append(message)
    )
    model = randomise(build()).eval()
    model.switch_to_deploy()
    assert said == []
    state = deepcopy(model.state_dict())
    model.switch_to_deploy()
    assert said == [f'{type(model).__name__} is in its deployment form already.']
    assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())


def test_sync_bn_folds(build, randomise):
    model = build()
    if any(is_batch_norm(m) for m in model.modules()):
        model = build(norm_cfg=dict(type='SyncBN'))
        assert any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
    model = randomise(model).eval()
    images = torch.randn(1, 3, 64, 64)
    before = model(images)
    model.switch_to_deploy()
    assert relative_difference(before, model(images)) < 1e-5


def test_deployment_form_trains_and_freezes(build, images):
    model = build(deploy=True, with_cp=True, frozen_stages=1).train()
    total(model(images)).backward()
    assert all((p.grad is None) != p.requires_grad for p in model.parameters())


def test_deployment_form_exports(build):
    model = build(deploy=True).eval()
    images = torch.randn(1, 3, 64, 64)
    program = torch.export.export(model, (images,), strict=False).module()
    for a, b in zip(model(images), program(images), strict=True):
        torch.testing.assert_close(a, b)


def test_frozen_norms_fold_in_training_mode(build, randomise, images):
    model = randomise(build(norm_eval=True, with_cp=True)).train()
    before = model(images)
    model.switch_to_deploy()
    assert relative_difference(before, model(images)) < 1e-5


@pytest.mark.parametrize('kind', ['slak', 'replknet', 'pelk-small'])
class TestRefusal:
    @staticmethod
    def refused(model, name, reason):
        state = deepcopy(model.state_dict())
        names = [n for n, _ in model.named_modules()]
        with pytest.raises(RuntimeError, match=reason) as caught:
            model.switch_to_deploy()
        assert str(caught.value).startswith(name)
        assert [n for n, _ in model.named_modules()] == names
        assert all(torch.equal(v, state[n]) for n, v in model.state_dict().items())
        assert not model.deploy

    def test_norm_that_uses_its_batch(self, kind):
        model = MODELS.build(deepcopy(PARTS[kind])).eval()
        name, norm = [(n, m) for n, m in model.named_modules() if is_batch_norm(m)][-1]
        if kind == 'replknet':
            norm = model.stages[3].blocks[1].pointwise_conv1.pre_norm
            name = 'stages.3.blocks.1.pointwise_conv1.pre_norm'
        norm.train()
        self.refused(model, name, r'statistics of its batch.*eval\(\)')

    def test_norm_without_statistics(self, kind):
        norm_cfg = dict(type='BN', track_running_stats=False)
        model = MODELS.build({**deepcopy(PARTS[kind]), 'norm_cfg': norm_cfg}).eval()
        self.refused(model, '', 'track_running_stats')

    def test_norm_of_another_kind(self, kind):
        norm_cfg = dict(type='GN', num_groups=1)
        model = MODELS.build({**deepcopy(PARTS[kind]), 'norm_cfg': norm_cfg}).eval()
        self.refused(model, '', 'is a GroupNorm; only a BatchNorm')


# --- bad input --------------------------------------------------------------------


@pytest.mark.parametrize('frozen', [-2, 5])
def test_bad_frozen_stages(build, frozen):
    with pytest.raises(ValueError, match=f'frozen_stages {frozen} .* not in -1 to 4'):
        build(frozen_stages=frozen)


@pytest.mark.parametrize('out_indices', [(0, 4), (), (1, 0), (1, 1), (-1,)])
def test_bad_out_indices(build, out_indices):
    with pytest.raises(ValueError, match='out_indices .* ascending .* 0 to 3'):
        build(out_indices=out_indices)


def test_unknown_arch_names_the_known_ones(build):
    with pytest.raises(ValueError, match="'huge' of .* unknown; choose one of"):
        build(arch='huge')


@pytest.mark.parametrize('arch', [None, 3, ['tiny']])
def test_arch_of_another_type(build, arch):
    with pytest.raises(ValueError, match='is neither a name nor a dict; choose one of'):
        build(arch=arch)


@pytest.mark.parametrize('rate', [-0.1, 1.0])
def test_bad_drop_path_rate(build, rate):
    with pytest.raises(ValueError, match=rf'drop_path_rate {rate} of .* not in \[0, 1'):
        build(drop_path_rate=rate)


def arch_of(build):
    arch = SimpleNamespace(**SIZES)
    if type(build()).__name__ == 'PeLK':
        arch.central_radius = 2
    return vars(arch)


def test_bad_arch_dicts(build):
    arch = arch_of(build)
    bad = {
        r"lacks \['depths'\]": {k: v for k, v in arch.items() if k != 'depths'},
        r"unknown keys \['kernels'\]": {**arch, 'kernels': 3},
        'one value per stage in each list': {**arch, 'depths': (1, 1, 1)},
        'depths 2 .* list of integers from 1 to 500': {**arch, 'depths': 2},
        'channels .* list of integers': {**arch, 'channels': (8, 8, 8, 0)},
        'kernel size 14 is not a pos.* odd': {**arch, 'kernel_sizes': (15, 14, 11, 7)},
        'small_kernel 9 is larger than .* 7': {**arch, 'small_kernel': 9},
    }
    for message, value in bad.items():
        with pytest.raises(ValueError, match=message):
            build(arch=value)


def test_stages_that_are_not_run_are_not_trained(build):
    """So that no process waits for their gradients, and none decays their weights."""
    model = build(out_indices=(0, 1)).train()
    total(model(torch.randn(1, 3, 64, 96))).backward()
    unused = {
        name
        for name, _ in model.named_parameters()
        if name.split('.')[0] in ('stages', 'downsample_layers')
        and int(name.split('.')[1]) > 1
    }
    found = {n: (p.requires_grad, p.grad is None) for n, p in model.named_parameters()}
    assert unused == {name for name, state in found.items() if state == (False, True)}
    assert set(found.values()) == {(False, True), (True, False)}


def test_arch_settings_are_not_shared(build):
    cls = type(build())
    name = next(iter(cls.arch_settings))
    cls.resolve_arch(name)['depths'] = None
    assert cls.resolve_arch(name)['depths'] is not None


def test_three_stages(build):
    arch = {k: v[:3] if isinstance(v, tuple) else v for k, v in arch_of(build).items()}
    model = build(arch=arch, out_indices=(0, 1, 2))
    assert len(model(torch.randn(2, 3, 64, 64))) == 3
