"""Names there and back, over every name of the released models."""

import json

import pytest
import torch

from pelk_mm.checkpoints import (
    detect_family,
    families,
    from_released,
    rename,
    rules_for,
    to_released,
)

MANIFESTS = [
    *(
        f'replknet{size}_{form}'
        for size in ('31b', '31l', 'xl')
        for form in ('cls', 'downstream')
    ),
    *(f'slak_{size}_{form}' for size in 'tsb' for form in ('cls', 'downstream')),
]
GOLDEN = [
    'replknet31_small',
    'replknet31_cls_small',
    'slak51_small',
    'slak51_cls_small',
]


@pytest.mark.parametrize('name', MANIFESTS)
def test_names_of_full_size_models_go_there_and_back(shared, name):
    released = json.loads((shared / f'golden/manifests/{name}.json').read_text())
    family = detect_family(released)
    assert name.startswith(family)
    converted, dropped, unknown = from_released(released, family)
    assert unknown == []
    assert len(converted) + len(dropped) == len(released)
    back = to_released(converted, family)
    assert back.unknown == []
    kept = {k: v for k, v in released.items() if k not in dropped}
    assert list(back.converted.items()) == list(kept.items())


@pytest.mark.parametrize('name', GOLDEN)
def test_tensors_go_there_and_back_as_they_are(shared, name):
    data = torch.load(shared / f'golden/{name}.pt', weights_only=True)
    released = data['state_dict']
    family = detect_family(released)
    converted, dropped, _ = from_released(released, family)
    back = to_released(converted, family).converted
    assert all(value is released[key] for key, value in back.items())
    assert set(back) | set(dropped) == set(released)


@pytest.mark.parametrize('family', families())
def test_no_two_rules_share_a_name(family):
    """Whatever a rule makes of a name leads back to that name alone."""
    fill = dict(stage=2, block=4, layer=1, even=4, odd=5, rest='weight')
    for released, ours in rules_for(family):
        theirs, mine = released.format(**fill), ours.format(**fill)
        assert rename(theirs, family) == mine
        assert rename(mine, family, to_released=True) == theirs


@pytest.mark.parametrize(
    ('family', 'released', 'ours'),
    [
        (
            'slak',
            'stages.0.1.large_kernel.LoRA1.conv.weight',
            'stages.0.blocks.1.mixer.vertical.conv.weight',
        ),
        (
            'slak',
            'stages.2.26.large_kernel.LoRA2.bn.running_var',
            'stages.2.blocks.26.mixer.horizontal.norm.running_var',
        ),
        (
            'slak',
            'stages.3.2.large_kernel.lkb_origin.conv.weight',
            'stages.3.blocks.2.mixer.large.conv.weight',
        ),
        (
            'slak',
            'stages.0.0.large_kernel.lkb_reparam.bias',
            'stages.0.blocks.0.mixer.large.bias',
        ),
        ('slak', 'stages.0.0.gamma', 'stages.0.blocks.0.gamma'),
        ('slak', 'norm2.bias', 'norm2.bias'),
        ('replknet', 'stem.3.bn.weight', 'downsample_layers.0.3.norm.weight'),
        (
            'replknet',
            'transitions.2.1.conv.weight',
            'downsample_layers.3.1.conv.weight',
        ),
        (
            'replknet',
            'stages.2.blocks.34.prelkb_bn.weight',
            'stages.2.blocks.34.pointwise_conv1.pre_norm.weight',
        ),
        (
            'replknet',
            'stages.2.blocks.35.preffn_bn.weight',
            'stages.2.blocks.35.pointwise_conv1.pre_norm.weight',
        ),
        (
            'replknet',
            'stages.0.blocks.0.large_kernel.lkb_reparam.weight',
            'stages.0.blocks.0.mixer.large.weight',
        ),
        ('replknet', 'stages.1.norm.running_mean', 'norm1.running_mean'),
    ],
)
def test_single_names(family, released, ours):
    assert rename(released, family) == ours
    assert rename(ours, family, to_released=True) == released
    assert detect_family(['head.weight', released]) in (family, None)


def test_classifier_is_dropped_with_reasons_and_the_rest_reported():
    names = dict.fromkeys(['norm.weight', 'head.bias', 'norm0.weight', 'fc.weight'])
    converted, dropped, unknown = from_released(names, 'slak')
    assert list(converted) == ['norm0.weight']
    assert list(dropped) == ['norm.weight', 'head.bias']
    assert all('classifier' in reason for reason in dropped.values())
    assert unknown == ['fc.weight']


def test_deployment_form_has_no_released_names():
    name = 'stages.0.blocks.0.pointwise_conv1.weight'
    assert to_released({name: 0}, 'replknet') == ({}, {}, [name])


@pytest.mark.parametrize(
    'names', [[], ['layer1.0.conv1.weight'], ['head.weight', 'norm.weight']]
)
def test_other_models_are_of_no_family(names):
    assert detect_family(names) is None


def test_unknown_family():
    with pytest.raises(
        ValueError, match="no released 'pelk' models; choose slak or rep"
    ):
        rules_for('pelk')
