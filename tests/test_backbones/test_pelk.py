import pytest
import torch

from pelk_mm.analysis.stage_kernels import stage_kernels
from pelk_mm.backbones import PeLK
from pelk_mm.ops import expand_kernel

ARCH = dict(
    channels=(8, 8, 16, 16),
    depths=(1, 2, 1, 1),
    kernel_sizes=(31, 29, 27, 13),
    central_radius=2,
)


@pytest.mark.parametrize(
    ('arch', 'channels', 'depths', 'kernels', 'cells'),
    [
        ('tiny', (124, 249, 499, 998), (3, 3, 9, 3), (51, 49, 47, 13), (13, 13, 13, 9)),
        ('small', (124, 249, 499, 998), (3, 3, 27, 3), (51, 49, 47, 13), None),
        ('base', (166, 332, 665, 1331), (3, 3, 27, 3), (51, 49, 47, 13), None),
        (
            'base-101',
            (166, 332, 665, 1331),
            (3, 3, 27, 3),
            (101, 69, 67, 13),
            (17, 17, 15, 11),
        ),
    ],
)
def test_architectures_of_the_paper(arch, channels, depths, kernels, cells):
    with torch.device('meta'):
        model = PeLK(arch)
    assert model.channels == channels
    assert tuple(len(stage.blocks) for stage in model.stages) == depths
    convs = [stage.blocks[0].mixer.large.conv for stage in model.stages]
    assert tuple(conv.kernel_size for conv in convs) == kernels
    assert [conv.channels for conv in convs] == [3 * c // 8 for c in channels]
    if cells is not None:
        assert tuple(len(conv.sharing_grid) for conv in convs) == cells


def test_warm_start_asks_for_the_named_sizes():
    with torch.device('meta'):
        assert PeLK('tiny-101').warm_start == 'pelk-tiny-101'
        assert PeLK(ARCH).warm_start == 'pelk'


def test_one_embedding_per_stage():
    model = PeLK(ARCH)
    shapes = [tuple(stage.position_embedding.shape) for stage in model.stages]
    assert shapes == [(3, 31, 31), (3, 29, 29), (6, 27, 27), (6, 13, 13)]
    assert sum('position_embedding' in n for n, _ in model.named_parameters()) == 4


def test_embedding_and_kernel_both_get_gradients():
    model = PeLK(ARCH, layer_scale_init_value=1.0)
    sum(m.square().sum() for m in model(torch.randn(1, 3, 64, 64))).backward()
    assert all(stage.position_embedding.grad.abs().max() > 0 for stage in model.stages)


@torch.no_grad()
def test_blocks_add_the_literal_embedding():
    """Eq. 3 with the embedding at every tap of every block of the stage."""
    stage = PeLK(ARCH).double().stages[1]
    x = torch.randn(1, 8, 9, 12, dtype=torch.float64)
    mixed = []
    for block in stage.blocks:
        block.mixer.register_forward_hook(lambda m, a, out: mixed.append((a[0], out)))
    stage(x)
    assert len(mixed) == 2
    for block, (before, after) in zip(stage.blocks, mixed, strict=True):
        conv = block.mixer.large.conv
        weight = expand_kernel(conv.weight.squeeze(1), conv.sharing_grid)
        patches = torch.nn.functional.unfold(before[:, :3], 29, padding=14)
        patches = patches.view(3, 29 * 29, -1) + stage.position_embedding.view(3, -1, 1)
        expected = torch.einsum('ckp,ck->cp', patches, weight.view(3, -1))
        torch.testing.assert_close(after[:, :3], expected.view(1, 3, 9, 12))
        assert torch.equal(after[:, 3:], before[:, 3:])


def test_cell_means_are_a_matter_of_training_alone(randomise):
    means = randomise(PeLK(ARCH, cell_means=True)).eval()
    sums = PeLK(ARCH).eval()
    sums.load_state_dict(means.state_dict())
    image = torch.randn(1, 3, 64, 64)
    expected = sums(image)
    assert all(map(torch.equal, means(image), expected))
    for stage in range(4):
        kernels = [
            [block.kernel() for block in stage_kernels(model, stage).blocks]
            for model in (means, sums)
        ]
        assert all(map(torch.equal, *kernels))
    means.switch_to_deploy()
    sums.switch_to_deploy()
    assert all(map(torch.equal, means.parameters(), sums.parameters()))
    assert PeLK(ARCH, cell_means=True, deploy=True).state_dict().keys() == (
        means.state_dict().keys()
    )


def test_explicit_grids_override_the_rule():
    grids = [(5, 5, 11, 5, 5), (9, 11, 9), (27,), (1,) * 13]
    model = PeLK(dict(ARCH, sharing_grids=grids))
    used = [stage.blocks[0].mixer.large.conv.sharing_grid for stage in model.stages]
    assert used == grids


def test_one_central_radius_per_stage():
    model = PeLK(dict(ARCH, central_radius=(2, 1, 0, 3)))
    grid = model.stages[2].blocks[0].mixer.large.conv.sharing_grid
    assert grid[len(grid) // 2 :][:3] == (1, 2, 4)


def test_deployment_keeps_a_small_kernel_that_the_grid_cannot_take():
    arch = dict(ARCH, central_radius=0, small_kernel=5)
    model = PeLK(arch)
    model.eval().switch_to_deploy()
    assert [n for n, _ in model.stages[0].blocks[0].mixer.named_children()] == [
        'large',
        'small',
    ]
    model = PeLK(dict(arch, central_radius=2))
    model.eval().switch_to_deploy()
    assert [n for n, _ in model.stages[0].blocks[0].mixer.named_children()] == ['large']


def test_deployment_drops_the_embedding():
    model = PeLK(ARCH)
    model.switch_to_deploy()
    assert not any('embedding' in name for name in model.state_dict())
    assert all(s.blocks[0].mixer.large.bias is not None for s in model.stages)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (
            dict(sharing_grids=[(5, 5, 11, 5, 6), (29,), (27,), (13,)]),
            'sums to 32, not to the kernel size 31',
        ),
        (
            dict(sharing_grids=[(31,), (29, 0), (27,), (13,)]),
            'is not a positive integer',
        ),
        (dict(sharing_grids=[(31,), (29,)]), 'one value per stage'),
        (dict(kernel_sizes=(30, 29, 27, 13)), 'kernel size 30 is not a positive odd'),
        (dict(central_radius=-1), 'central_radius -1'),
        (dict(central_radius=(1, 2)), 'one value per stage'),
        (dict(conv_ratio=0.01), 'conv_ratio in'),
        (dict(conv_ratio=1.5), 'conv_ratio in'),
    ],
)
def test_bad_arch(change, message):
    with pytest.raises(ValueError, match=message):
        PeLK({**ARCH, **change})


@pytest.mark.parametrize('size', [(3, 64), (64, 31), (16, 16)])
def test_images_too_small(size):
    height, width = size
    with pytest.raises(
        ValueError, match=f'{height} x {width} pixels.*stage .*pad them'
    ):
        PeLK(ARCH)(torch.randn(1, 3, *size))
