"""Other people's names for the arguments of our backbones."""

import inspect

import pytest
from mmengine.registry import MODELS

import pelk_mm  # noqa: F401
from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.backbones.arguments import RENAMED

BACKBONES = (PeLK, SLaK, RepLKNet)
SIZES = dict(channels=(8, 8), depths=(1, 1), kernel_sizes=(9, 7))
ARCH = {
    'PeLK': dict(SIZES, central_radius=1),
    'SLaK': dict(SIZES, small_kernel=5),
    'RepLKNet': SIZES,
}


def refusal(**cfg):
    """The remedies by name and the last line of the error that a config's reader sees.

    mmengine catches what a constructor raises and words it anew.
    """
    with pytest.raises((TypeError, ValueError)) as caught:
        MODELS.build(cfg)
    first, _, rest = str(caught.value).partition('Write instead of\n')
    assert cfg['type'] in first
    lines = rest.splitlines()
    remedies = dict(line.strip().split(': ', 1) for line in lines if line[0] == ' ')
    assert all(name in first for name in remedies)
    return remedies, lines[-1]


def test_config_of_the_authors_of_slak():
    remedies, together = refusal(
        type='SLaK',
        in_chans=4,
        depths=[3, 3, 9, 3],
        dims=[96, 192, 384, 768],
        drop_path_rate=0.4,
        layer_scale_init_value=1.0,
        out_indices=[0, 1, 2, 3],
        kernel_size=[51, 49, 47, 13, 5],
        LoRA=True,
        width_factor=1.3,
        sparse=True,
        bn=True,
        pretrained=None,
        head_init_scale=1.0,
    )
    assert remedies.pop('in_chans') == 'in_channels=4'
    assert 'DynamicSparsityHook' in remedies.pop('sparse')
    assert remedies.pop('bn').startswith("norm_cfg=dict(type='BN') for True")
    assert 'convert_checkpoint' in remedies.pop('pretrained')
    assert 'no classifier' in remedies.pop('head_init_scale')
    assert remedies.pop('kernel_size') == (
        'kernel_sizes=[51, 49, 47, 13], small_kernel=5 in the arch dict'
    )
    assert remedies.pop('dims') == 'channels=[96, 192, 384, 768] in the arch dict'
    assert remedies.pop('LoRA') == 'decomposed=True in the arch dict'
    assert remedies.keys() == {'depths', 'width_factor'}
    # What it says to write is SLaK-T.
    head, _, arch = together.partition('arch=')
    assert head == 'Together: '
    assert {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in eval(arch).items()  # noqa: S307
    } == SLaK.resolve_arch('tiny')


def test_config_of_the_authors_of_replknet():
    remedies, together = refusal(
        type='RepLKNet',
        large_kernel_sizes=[27, 27, 27, 13],
        layers=[2, 2, 18, 2],
        channels=[256, 512, 1024, 2048],
        drop_path_rate=0.5,
        small_kernel=None,
        dw_ratio=1.5,
        ffn_ratio=4,
        num_classes=None,
        out_indices=(0, 1, 2, 3),
        use_checkpoint=True,
        use_sync_bn=True,
        small_kernel_merged=False,
        norm_intermediate_features=True,
    )
    assert remedies['use_checkpoint'] == 'with_cp=True'
    assert remedies['use_sync_bn'].startswith("norm_cfg=dict(type='SyncBN') for True")
    assert 'no classifier' in remedies['num_classes']
    arch = eval(together.partition('arch=')[2])  # noqa: S307
    xl = RepLKNet.resolve_arch('XL')
    assert {k: tuple(v) if isinstance(v, list) else v for k, v in arch.items()} == xl


def test_arch_of_mmpretrain():
    theirs = dict(
        large_kernel_sizes=[31, 29],
        layers=[2, 2],
        channels=[128, 256],
        small_kernel=5,
        dw_ratio=1,
        drop_path_rate=0.1,
        in_chans=4,
    )
    remedies, _ = refusal(type='RepLKNet', arch=theirs, strides=(2, 2))
    assert remedies == {
        'large_kernel_sizes': 'kernel_sizes=[31, 29]',
        'layers': 'depths=[2, 2]',
        'drop_path_rate': 'drop_path_rate=0.1 next to arch, not in it',
        'in_chans': 'in_channels=4 next to arch, not in it',
    }
    remedies, _ = refusal(type='RepLKNet', strides=(2, 2), act_cfg=dict(type='ReLU'))
    assert remedies == dict.fromkeys(
        ('strides', 'act_cfg'), 'leave it out; it is fixed'
    )


@pytest.mark.parametrize('kind', ARCH)
@pytest.mark.parametrize(
    ('name', 'meant'),
    [
        ('drop_path_rates', 'drop_path_rate'),
        ('in_chan', 'in_channels'),
        ('Depth', 'depths'),
        ('out_index', 'out_indices'),
    ],
)
def test_a_name_of_nobody_gets_the_closest(kind, name, meant):
    for cfg in ({name: 1}, dict(arch=dict(ARCH[kind], **{name: 1}))):
        assert refusal(type=kind, **cfg)[0] == {name: f'did you mean {meant}?'}
    remedies, _ = refusal(type=kind, zzz=1)
    assert remedies == {'zzz': 'nothing here is like it'}


@pytest.mark.parametrize('kind', ARCH)
def test_what_only_other_families_have(kind):
    said = {name: refusal(type=kind, **{name: 1})[0][name] for name in ('Decom', 'bn')}
    decomposed = kind == 'SLaK'
    assert ('decomposed=1' in said['Decom']) == decomposed
    assert ('only SLaK has' in said['Decom']) != decomposed
    assert 'norm_cfg' in said['bn']


@pytest.mark.parametrize('name', ['depths', 'channels', 'settings', 'make_mixer'])
@pytest.mark.parametrize('kind', ARCH)
def test_parameters_of_base_classes_are_no_arguments(kind, name):
    refusal(type=kind, **{name: (1, 1)})


@pytest.mark.parametrize('backbone', BACKBONES)
def test_every_suggested_name_exists(backbone):
    arguments = backbone._arguments()
    known = {*arguments, *backbone._arch_keys()}
    everyone = {name for b in BACKBONES for name in (*b._arguments(), *b._arch_keys())}
    assert set(RENAMED.values()) <= everyone
    assert not known & {name for name, ours in RENAMED.items() if ours in known}
    assert set(inspect.signature(backbone).parameters) - {'kwargs'} <= set(arguments)
    for name in set(arguments) - {'arch'}:
        assert f'``{name}``' in every_docstring(backbone) or (
            f'        {name}: ' in every_docstring(backbone)
        )


def every_docstring(backbone):
    return ''.join(b.__doc__ for b in backbone.__mro__ if b.__module__[:7] == 'pelk_mm')


@pytest.mark.parametrize('kind', BACKBONES)
@pytest.mark.parametrize(
    ('key', 'value', 'largest'),
    [('depths', 501, 500), ('channels', 10**9, 65536), ('kernel_sizes', 1025, 1023)],
)
def test_sizes_beyond_any_use(kind, key, value, largest):
    arch = ARCH[kind.__name__] | {key: (1, value)}
    message = rf'{key} \(1, {value}\) .* list of integers from 1 to {largest}'
    with pytest.raises(ValueError, match=message):
        kind(arch)
