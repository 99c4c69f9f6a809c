import pytest
import torch
from torch import nn

from pelk_mm.backbones import PeLK
from pelk_mm.sparsity import SparsityMasks, select_parameters
from pelk_mm.sparsity.masks import GROWN_VALUE


def pair(**shapes):
    return {name: nn.Parameter(torch.randn(shape)) for name, shape in shapes.items()}


def halves(params):
    masks = {}
    for name, param in params.items():
        mask = torch.zeros(param.numel(), dtype=torch.bool)
        mask[::2] = True
        masks[name] = mask.view(param.shape)
    return masks


def test_all_2d_and_4d_weights_of_the_backbone_are_chosen(classifier):
    model = classifier()
    chosen = select_parameters(model)
    assert set(chosen) == {
        name
        for name, param in model.named_parameters()
        if name.startswith('backbone.') and param.ndim in (2, 4)
    }
    assert 'backbone.stages.0.blocks.0.mixer.large.conv.weight' in chosen
    assert not any('position_embedding' in name for name in chosen)


def test_large_kernels_only(classifier):
    chosen = select_parameters(classifier(), large_kernels_only=True)
    assert chosen
    assert all('.mixer.large.conv.weight' in name for name in chosen)


def test_patterns_and_frozen_stages(classifier):
    assert set(select_parameters(classifier(), [r'^head'])) == {'head.weight'}
    model = classifier(frozen_stages=2).train()
    assert not any('stages.1.' in name for name in select_parameters(model))
    assert any('stages.2.' in name for name in select_parameters(model))


def test_nothing_to_choose(classifier):
    with pytest.raises(ValueError, match=r'parts: .*backbone.* matches .*nowhere'):
        select_parameters(classifier(), ['nowhere'])


@pytest.mark.parametrize(
    ('arch', 'paper'), [('tiny', 28.95e6), ('small', 50e6), ('base', 89e6)]
)
def test_the_papers_parameter_counts(arch, paper):
    with torch.device('meta'):
        backbone = PeLK(arch)
    chosen = sum(p.numel() for p in select_parameters(backbone, ['']).values())
    total = sum(p.numel() for p in backbone.parameters())
    assert total - 0.4 * chosen == pytest.approx(paper, rel=0.02)


def test_apply_masks_weights_and_optimizer_state():
    params = pair(a=(4, 5), b=(3, 1, 3, 3))
    masks = SparsityMasks(params, halves(params))
    for optimizer in (
        torch.optim.SGD(params.values(), lr=0.1, momentum=0.9),
        torch.optim.AdamW(params.values(), lr=0.1, amsgrad=True),
    ):
        for param in params.values():
            param.grad = torch.randn_like(param)
        optimizer.step()
        masks.apply(optimizer)
        for name, param in params.items():
            off = masks.masks[name] == 0
            assert (param[off] == 0).all()
            kept = [v for v in optimizer.state[param].values() if v.ndim]
            assert kept
            for value in kept:
                assert (value[off] == 0).all()
                assert (value[~off] != 0).all()


def test_replace_starts_grown_weights_afresh():
    params = pair(a=(2, 3))
    before = params['a'].detach().clone()
    masks = SparsityMasks(params, dict(a=torch.tensor([[1, 1, 1], [0, 0, 0]])))
    masks.apply()
    grown = masks.replace(dict(a=torch.tensor([[1, 0, 0], [1, 1, 0]])))
    assert grown == 2
    expected = torch.tensor([[before[0, 0], 0, 0], [GROWN_VALUE, GROWN_VALUE, 0]])
    assert torch.equal(params['a'], expected)
    assert masks.active == 3


def test_layers_that_are_nearly_dense_leave_the_set():
    params = pair(a=(10, 20), b=(10, 20))
    halved = halves(params)
    nearly = torch.ones(200)
    nearly[:2] = 0
    masks = SparsityMasks(params, dict(a=nearly.view(10, 20), b=halved['b']))
    assert list(masks.masks) == ['b']
    assert list(masks.dense) == ['a']
    assert (masks.total, masks.active, masks.density) == (400, 300, 0.75)
    assert masks.layer_densities() == {'b': 0.5}


def test_state_dict_round_trip(tmp_path):
    params = pair(a=(4, 5), b=(3, 1, 3, 3), c=(2, 2))
    masks = SparsityMasks(params, halves(params) | dict(c=torch.ones(2, 2)))
    torch.save(masks.state_dict(), tmp_path / 'masks.pth')
    state = torch.load(tmp_path / 'masks.pth', weights_only=True)
    again = SparsityMasks.from_state_dict(params, state)
    assert again.checksum() == masks.checksum()
    assert list(again.dense) == ['c']
    with pytest.raises(ValueError, match=r'other weights: b differ'):
        SparsityMasks.from_state_dict({k: params[k] for k in 'ac'}, state)
    with pytest.raises(ValueError, match=r'mask of b has shape \(3, 1, 3, 3\)'):
        SparsityMasks.from_state_dict(params | pair(b=(3, 1, 5, 5)), state)


def test_checksum_notices_one_weight():
    params = pair(a=(40, 50))
    halved = halves(params)
    sums = {SparsityMasks(params, halved).checksum()}
    for i, j in ((0, 0), (0, 1), (39, 49)):
        other = halved['a'].clone()
        other[i, j] ^= True
        sums.add(SparsityMasks(params, dict(a=other)).checksum())
    assert len(sums) == 4


def test_an_empty_mask_is_refused():
    params = pair(a=(4, 5))
    with pytest.raises(ValueError, match='mask of a leaves no weight'):
        SparsityMasks(params, dict(a=torch.zeros(4, 5)))


def test_apply_to_a_copy():
    params = pair(weight=(4, 5))
    masks = SparsityMasks(params, halves(params))
    copy = nn.Linear(5, 4)
    masks.apply_to(copy)
    assert torch.equal(copy.weight != 0, masks.masks['weight'].bool())
