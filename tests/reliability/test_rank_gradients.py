"""Gradients of two processes against one with twice the batch, and no warnings.

The loss is a mean over images of what each gives by itself: norms keep their running
statistics and nothing is drawn at random. The average over two processes is then the
gradient of the doubled batch but for the order of float32 sums, to which `BOUND` leaves
room. BatchNorms in training mode see other statistics, unless they are synchronised,
which torch does on GPUs alone.
"""

import warnings

import pytest
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.sparsity.masks import SparsityMasks

pytestmark = pytest.mark.skipif(
    not distributed.is_available(), reason='torch is built without'
)

#: Of the largest entry of a parameter's gradient.
BOUND = 2e-5
STEPS = 2
SIZES = dict(channels=(8, 12, 16), depths=(1, 2, 1), kernel_sizes=(15, 13, 7))
BACKBONES = {
    'pelk': lambda **kw: PeLK(
        dict(SIZES, central_radius=2, small_kernel=5),
        norm_cfg=dict(type='BN'),
        layer_scale_init_value=1.0,
        **kw,
    ),
    'slak': lambda **kw: SLaK(SIZES, layer_scale_init_value=1.0, **kw),
    'replknet': lambda **kw: RepLKNet(SIZES, **kw),
}
SETTINGS = {
    'plain': dict(out_indices=(0, 1, 2)),
    'all options': dict(out_indices=(0, 1), frozen_stages=1, with_cp=True),
}
CASES = [
    (kind, name, sparse)
    for kind in BACKBONES
    for name in SETTINGS
    for sparse in (False, True)
    if not sparse or (name != 'plain' and kind != 'replknet')
]


def make_model(kind, sparse, settings):
    """A backbone, the same in all processes, and its masks."""
    torch.manual_seed(0)
    model = BACKBONES[kind](norm_eval=True, **settings)
    model.init_weights()
    model.train()
    chosen = {}
    if sparse:
        chosen = {
            name: param
            for name, param in model.named_parameters()
            if param.requires_grad and param.ndim > 1
        }
    masks = {name: torch.rand(param.shape) > 0.4 for name, param in chosen.items()}
    return model, SparsityMasks(chosen, masks)


def learn(model, masks, images):
    """Gradients of some steps of plain descent, by name."""
    inner = getattr(model, 'module', model)
    wanted = [param for param in model.parameters() if param.requires_grad]
    optimizer = torch.optim.SGD(wanted, lr=0.01)
    masks.apply()
    found = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        # Of every second channel: those of all are the same after a LayerNorm, whatever
        # the weights, and their gradients nothing but rounding.
        sum(maps[:, ::2].square().mean() for maps in model(images)).backward()
        found.append(
            {
                name: param.grad.clone()
                for name, param in inner.named_parameters()
                if param.grad is not None
            }
        )
        optimizer.step()
        masks.apply()
    return found


def learn_and_listen(model, masks, images):
    """The same, with all warnings."""
    torch.set_warn_always(True)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        found = learn(model, masks, images)
    texts = [str(warning.message) for warning in caught]
    return dict(gradients=found, warnings=texts, weights=list(model.parameters()))


def largest_difference(found, expected):
    """Of two gradients, relative to the largest entry of each parameter's."""
    assert found.keys() == expected.keys()
    return max(
        ((found[name] - value).abs().max() / value.abs().max()).item()
        for name, value in expected.items()
        if value.any()
    )


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 48)


@pytest.mark.parametrize(('kind', 'setting', 'sparse'), CASES)
def test_gradients_are_those_of_the_doubled_batch(
    kind, setting, sparse, images, kills, tmp_path
):
    settings = SETTINGS[setting]

    def train(rank):
        model, masks = make_model(kind, sparse, settings)
        wrapped = DistributedDataParallel(model, broadcast_buffers=False)
        return learn_and_listen(wrapped, masks, images[2 * rank : 2 * rank + 2])

    notes = kills.run_two_ranks(tmp_path / 'ranks', train)
    expected = learn(*make_model(kind, sparse, settings), images)
    for note in notes:
        assert note['warnings'] == []
        for found, wanted in zip(note['gradients'], expected, strict=True):
            assert largest_difference(found, wanted) < BOUND
    assert all(map(torch.equal, *(note['weights'] for note in notes)))
    # What one of them would have found alone is something else.
    alone = learn(*make_model(kind, sparse, settings), images[:2])
    assert largest_difference(alone[0], expected[0]) > 0.01
    trained = set(expected[0])
    names = [
        name for name, _ in make_model(kind, sparse, settings)[0].named_parameters()
    ]
    stages = {name.split('.')[1] for name in trained if name.startswith('stages.')}
    first, last = (settings.get('frozen_stages', 0), settings['out_indices'][-1])
    assert stages == {str(stage) for stage in range(first, last + 1)}
    assert any(name.startswith('stages.2.') for name in names)


class Unused(nn.Module):
    """A model with a layer that it does not run."""

    def __init__(self):
        super().__init__()
        self.used, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x):
        return (self.used(x),)


def test_what_an_unused_layer_would_do(images, kills, tmp_path):
    def train(rank):
        wrapped = DistributedDataParallel(Unused())
        try:
            learn_and_listen(wrapped, SparsityMasks({}, {}), images)
        except RuntimeError as error:
            return str(error)
        return ''

    for error in kills.run_two_ranks(tmp_path / 'ranks', train):
        assert 'parameters that were not used in producing loss' in error
