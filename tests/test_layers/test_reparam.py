import pytest
import torch

from pelk_mm.layers import (
    PeripheralConv2d,
    ReparamDepthwise,
    large_and_small,
    stripes_and_small,
)

BN = dict(type='BN')
BRANCHES = {
    'dense': (lambda: large_and_small(4, 9, 3), ['large']),
    'dense alone': (lambda: large_and_small(4, 9, None), ['large']),
    'stripes': (lambda: stripes_and_small(4, 9, 3), ['vertical', 'horizontal']),
    'square stripes': (lambda: stripes_and_small(4, 5, 5), ['vertical']),
    'grid': (
        lambda: {
            'large': PeripheralConv2d(4, (3, 1, 1, 1, 3)),
            **{'small': large_and_small(4, 3, None)['large']},
        },
        ['large'],
    ),
}


@torch.no_grad()
@pytest.mark.parametrize('norm_cfg', [BN, None])
@pytest.mark.parametrize('kind', BRANCHES)
def test_merged_branches_sum_to_the_same(kind, norm_cfg, randomise):
    branches, left = BRANCHES[kind]
    mixer = randomise(ReparamDepthwise(branches(), norm_cfg)).eval()
    x = torch.randn(2, 4, 11, 6)
    expected = sum(branch(x) for branch in mixer.children())
    torch.testing.assert_close(mixer(x), expected)
    mixer.switch_to_deploy()
    assert [name for name, _ in mixer.named_children()] == left
    torch.testing.assert_close(mixer(x), expected, rtol=1e-5, atol=1e-5)

    fresh = ReparamDepthwise(branches(), norm_cfg, deploy=True)
    fresh.load_state_dict(mixer.state_dict())
    assert torch.equal(fresh(x), mixer(x))
    mixer.switch_to_deploy()
    assert torch.equal(fresh(x), mixer(x))


def test_stripes_are_k_by_5_5_by_k_and_5_by_5():
    sizes = {name: c.kernel_size for name, c in stripes_and_small(2, 51, 5).items()}
    assert sizes == {'vertical': (51, 5), 'horizontal': (5, 51), 'small': (5, 5)}


@pytest.mark.parametrize('branches', [large_and_small, stripes_and_small])
def test_small_kernel_larger_than_the_large_one(branches):
    with pytest.raises(ValueError, match='small_kernel 7 is larger .* 5'):
        branches(4, 5, 7)
