"""Whether weights fit a backbone: names and shapes, no models.

tests/test_backbones/test_weights.py has the causes, model by model.
"""

import re

import pytest

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.checkpoints.fit import WeightsError, refuse_released_names, require_fit
from pelk_mm.checkpoints.misfit import Backbone, family_of, type_of

STEM = {'downsample_layers.0.0.weight': (8, 3, 4, 4)}
BLOCK = {
    'stages.0.blocks.0.mixer.vertical.conv.weight': (8, 1, 11, 5),
    'stages.0.blocks.0.pointwise_conv2.weight': (8, 32),
}
NORM = {'norm0.weight': (8,), 'norm0.bias': (8,)}
OWN = STEM | BLOCK | NORM
SLAK = Backbone('SLaK', OWN, archs={})


def under(prefix, shapes=OWN):
    return [f'{prefix}{name}' for name in shapes]


def test_complete():
    assert require_fit(SLAK, OWN) == (True, '')
    more = {'head.weight': (5, 8), 'norm0.num_batches_tracked': ()}
    assert require_fit(SLAK, OWN | more) == (True, '')


@pytest.mark.parametrize(
    ('weights', 'note'),
    [
        (STEM | BLOCK, r'output norms \(norm0\), which the checkpoint does not have'),
        (
            OWN | {'downsample_layers.0.0.weight': (8, 5, 4, 4)},
            r'random downsample_layers\.0\.0\.weight, .* for 5 image channels, not 3',
        ),
        (OWN | {'stages.1.blocks.0.gamma': (9,)}, 'stages of the checkpoint from 1 on'),
    ],
)
def test_meant(weights, note):
    fit = require_fit(SLAK, weights)
    assert fit.complete
    assert re.search(note, fit.note)


def test_what_a_subclass_adds_is_random():
    fit = require_fit(SLAK._replace(shapes=OWN | {'adapter.weight': (2,)}), OWN)
    assert fit == (
        True,
        'starts with random adapter.weight, which a subclass has added',
    )


@pytest.mark.parametrize(
    ('weights', 'message'),
    [
        (STEM | NORM, '2 of 5 tensors would stay at random; stages.* is missing'),
        (
            OWN | {'norm0.bias': (9,)},
            r'norm0\.bias is \(9,\) in the checkpoint, \(8,\)',
        ),
        ({n: s for n, s in OWN.items() if n != 'norm0.bias'}, 'norm0.bias is missing'),
        (OWN | {'downsample_layers.0.0.weight': (9, 3, 4, 4)}, 'build the backbone wi'),
        (
            OWN | {'stages.0.blocks.0.a': (1,)},
            r'backbone has no stages\.0\.blocks\.0\.a',
        ),
        (dict.fromkeys(OWN), 'its values are no tensors'),
    ],
)
def test_misfit(weights, message):
    with pytest.raises(WeightsError, match=message) as error:
        require_fit(SLAK, weights)
    assert isinstance(error.value, (CheckpointError, RuntimeError))
    fit = require_fit(SLAK._replace(partial=True), weights)
    assert not fit.complete
    assert 'starts partly at random (partial_weights=True)' in fit.note


def test_part_of_the_weights_where_there_are_others():
    """Only if all that is loaded fits."""
    there = SLAK._replace(has_weights=True)
    assert require_fit(there, STEM) == (
        False,
        'keeps 2 tensors that the checkpoint does not have',
    )
    with pytest.raises(WeightsError, match='would stay at random'):
        require_fit(there, STEM | {'norm0.bias': (9,)})


@pytest.mark.parametrize(
    ('prefix', 'elsewhere', 'message'),
    [
        (
            'backbone.',
            under(''),
            "backbone alone, a SLaK, .* its own under 'backbone.'",
        ),
        (
            'backbone.',
            under('img_backbone.'),
            "a SLaK under 'img_backbone.', the model",
        ),
        (
            'model.backbone.',
            under('student.backbone.') + under('teacher.backbone.'),
            "a SLaK under 'student.backbone.' and a SLaK under 'teacher.backbone.'",
        ),
        (
            'backbone.',
            ['model', 'optimizer'],
            "in its entry 'model', and mmengine reads",
        ),
        (
            'backbone.',
            ['a.weight'],
            "no name that starts with 'backbone.', but a.weight",
        ),
        ('backbone.', [], "no name that starts with 'backbone.'; load weights into"),
        ('backbone.', ['stem.0.conv.weight'], 'released names of RepLKNet'),
        ('backbone.', ['x.stages.0.0.pwconv1.weight'], 'released names of SLaK'),
    ],
)
def test_nothing_under_the_prefix(prefix, elsewhere, message):
    with pytest.raises(WeightsError, match=message):
        require_fit(SLAK, {}, prefix, elsewhere)


@pytest.mark.parametrize('prefix', ['backbone.', 'module.', 'a.b.'])
def test_nothing_without_prefix(prefix):
    weights = dict.fromkeys(under(prefix)) | {'decode_head.weight': (1,)}
    with pytest.raises(WeightsError, match=f"under '{prefix}'; set prefix='{prefix}'"):
        require_fit(SLAK, weights)


def test_nothing_where_there_are_weights():
    there = SLAK._replace(has_weights=True)
    for weights, elsewhere in (({}, []), ({'layer1.0.weight': (1,)}, ['b'])):
        fit = require_fit(there, weights, 'backbone.', elsewhere)
        assert fit == (False, 'keeps its weights, since the checkpoint has none for it')
    with pytest.raises(WeightsError, match="under 'img_backbone.'"):
        require_fit(there, {}, 'backbone.', under('img_backbone.'))


def test_released_names():
    refuse_released_names([*OWN, 'decode_head.conv_seg.weight'])
    released = ['stages.0.0.pwconv1.weight']
    message = 'released names of SLaK; convert it with\n  pelk-mm convert_checkpoint'
    with pytest.raises(WeightsError, match=message):
        refuse_released_names(released)
    with pytest.raises(WeightsError, match=message):
        require_fit(SLAK._replace(partial=True), dict.fromkeys(released))


def test_deployment_form_of_pelk_and_of_a_dense_slak():
    """The names are the same; the shapes tell unless a PeLK convolves all channels."""
    point = {'stages.0.blocks.0.pointwise_conv2.weight': (8, 32)}
    name = 'stages.0.blocks.0.mixer.large.weight'
    pelk, slak = ({name: shape} | point for shape in ((3, 1, 9, 9), (8, 1, 11, 11)))
    assert (family_of(pelk), family_of(slak)) == ('pelk', 'slak')
    assert (type_of(pelk), type_of(dict.fromkeys(pelk))) == ('PeLK', 'PeLK or SLaK')
    training = {
        'stages.0.blocks.0.mixer.large.conv.weight': (8, 1, 9, 9),
        'stages.0.position_embedding': (8, 11, 11),
    }
    for own in (training | point, {name: (8, 1, 9, 9)} | point):
        with pytest.raises(WeightsError) as error:
            require_fit(Backbone('PeLK', own | STEM, {}), slak)
        assert 'of a SLaK' not in str(error.value)
    with pytest.raises(WeightsError, match='it is of a PeLK; give one of a SLaK'):
        require_fit(SLAK, pelk)
