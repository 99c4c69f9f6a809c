"""What a type means and which framework a config is for, in every spelling."""

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from pelk_mm.backbones import PeLK, RepLKNet, SLaK
from pelk_mm.config_types import (
    ConfigError,
    entry,
    find_class,
    find_framework,
    read_config,
    section,
    type_name,
)

ARCH = dict(channels=[8], depths=[1], kernel_sizes=[5])
NARROW = {
    'PeLK': dict(arch=ARCH | dict(central_radius=2), out_indices=[0]),
    'SLaK': dict(arch=ARCH, out_indices=[0]),
    'RepLKNet': dict(arch=ARCH, out_indices=[0]),
}


@pytest.mark.parametrize(
    'kind', ['PeLK', 'mmseg.PeLK', 'pelk_mm.backbones.pelk.PeLK', PeLK]
)
def test_name_of_a_type(kind):
    assert type_name(kind) == 'PeLK'


@pytest.mark.parametrize(
    'kind', ['NoNet', 'nowhere.NoNet', '.NoNet', '..', '', 'a b.c']
)
@pytest.mark.parametrize('scope', [None, 'mmseg'])
def test_names_that_mean_no_class(kind, scope):
    assert find_class(kind, scope) is None


def test_class_of_a_type():
    assert find_class(SLaK) is SLaK
    assert find_class('SLaK') is SLaK
    assert find_class('pelk_mm.SLaK') is SLaK
    assert find_class('pelk_mm.backbones.SLaK') is SLaK
    assert find_class('NoSuchModel') is None


@pytest.mark.parametrize('name', NARROW)
@pytest.mark.parametrize('scope', ['mmengine', 'mmseg', 'mmdet'])
@pytest.mark.parametrize('spelling', ['{}', 'pelk_mm.{}', 'mmengine.{}'])
def test_our_backbones_are_found_in_every_scope(name, scope, spelling):
    if scope != 'mmengine':
        pytest.importorskip(scope)
    cfg = dict(type=spelling.format(name), **NARROW[name])
    with DefaultScope.overwrite_default_scope(scope):
        model = MODELS.build(
            cfg | dict(init_cfg=dict(type='Constant', layer='Conv2d', val=0))
        )
    assert type(model).__module__ == f'pelk_mm.backbones.{name.lower()}'
    model.init_weights()
    assert not next(model.parameters()).any()


def test_name_of_ours_that_another_framework_takes_for_itself():
    """As mmpretrain does with its own RepLKNet."""
    from mmengine.registry import Registry

    theirs = Registry('model', parent=MODELS, scope='like_mmpretrain')
    try:

        @theirs.register_module(name='RepLKNet')
        class Theirs:
            pass

        with DefaultScope.overwrite_default_scope('like_mmpretrain'):
            assert type(MODELS.build(dict(type='RepLKNet'))) is Theirs
            ours = MODELS.build(dict(type='pelk_mm.RepLKNet', **NARROW['RepLKNet']))
        assert type(ours) is RepLKNet
    finally:
        MODELS._children.pop('like_mmpretrain')


def framework_of(**entries):
    return find_framework(Config(entries))


@pytest.mark.parametrize('scope', [None, 'mmengine', 'pelk_mm'])
def test_framework_of_a_config_without_its_scope(scope):
    segmenters = pytest.importorskip('mmseg.models')
    detectors = pytest.importorskip('mmdet.models')

    class OfTheUsersOwn(segmenters.EncoderDecoder):
        pass

    for kind, framework in (
        (segmenters.EncoderDecoder, 'mmseg'),
        (OfTheUsersOwn, 'mmseg'),
        ('mmseg.EncoderDecoder', 'mmseg'),
        ('mmseg.models.segmentors.EncoderDecoder', 'mmseg'),
        ('EncoderDecoder', 'mmseg'),
        ('mmdet.MaskRCNN', 'mmdet'),
        ('MaskRCNN', 'mmdet'),
        (detectors.FCOS, 'mmdet'),
        ('mmpretrain.ImageClassifier', 'mmpretrain'),
    ):
        model = dict(type=kind, backbone=dict(type='PeLK'))
        assert framework_of(default_scope=scope, model=model) == framework
        wrapper = dict(type='MMDistributedDataParallel', module=[model])
        assert framework_of(default_scope=scope, model=wrapper) == framework
    bare = dict(type='PeLK')
    assert framework_of(default_scope=scope, model=bare) is None


def test_scope_comes_before_the_model():
    model = dict(type='mmseg.EncoderDecoder')
    assert framework_of(default_scope='mmdet', model=model) == 'mmdet'
    assert framework_of(default_scope='mmpretrain') == 'mmpretrain'
    assert framework_of() is None


@pytest.mark.parametrize(
    ('name', 'text'),
    [
        ('a.py', 'n = 3\n'),
        ('a.json', '{"n": 3}'),
        ('a.yaml', 'n: 3\n'),
        ('a.yml', 'n: 3\n'),
    ],
)
def test_files_that_mmengine_reads(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    assert read_config(tmp_path / name).n == 3
    assert read_config(tmp_path / name, {'m.k': 4}).m.k == 4


@pytest.mark.parametrize(
    ('name', 'text', 'message'),
    [
        ('a.py', 'model = 1 +\n', 'cannot be read'),
        ('a.py', 'import nowhere\nmodel = dict(type=nowhere.Net)\n', 'cannot be read'),
        ('a.py', "_base_ = 'gone.py'\n", 'cannot be read'),
        ('a.toml', 'n = 3\n', r'ends in none of \.py, '),
        ('gone.py', None, 'does not exist'),
    ],
)
def test_files_that_cannot_be_read(tmp_path, name, text, message):
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_config(path)
    assert str(path) in str(error.value)
    assert '\n' not in str(error.value)


LAUGHS = 'a0: &a0 [x, x]\n' + ''.join(
    f'a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n' for i in range(1, 40)
)


@pytest.mark.parametrize(
    ('name', 'text', 'reason'),
    [
        (
            'a.yaml',
            'model: !!python/object/apply:os.system ["touch {}"]',
            'could run code',
        ),
        ('a.yml', 'x: !!python/object/apply:builtins.open ["{}", "w"]', 'run code'),
        ('a.yaml', LAUGHS, 'its aliases stand for more than'),
        ('a.yaml', 'a: &a [*a]', 'its aliases stand for more than'),
        ('a.json', '[' * 100_000, 'recursion'),
        ('a.json', '{{"default_scope": ["mmseg"]}}', r"default_scope \['mmseg'\]"),
        ('a.py', 'import sys\nsys.exit(3)', '3'),
        ('a.py', f'x = {"(" * 50_000}1{")" * 50_000}', 'nested'),
        ('a.py', 'raise MemoryError', 'not enough of the memory'),
        (
            'a.json',
            f'{{{{"model": {{{{"head": {{{{"num_convs": [1, {2**31}]}}}}}}}}}}}}',
            r'model.head.num_convs.1 is a number beyond 2147483647: 2147483648',
        ),
        ('a.py', 'model = dict(n=-(10**400))', r'model.n is .*: of 1329 bits'),
    ],
)
def test_config_that_is_data_runs_nothing(tmp_path, name, text, reason):
    marker = tmp_path / 'marker'
    path = tmp_path / name
    path.write_text(text.format(marker) if '{' in text else text)
    with pytest.raises(ConfigError, match=f'(?s){name} cannot be read: .*{reason}'):
        read_config(path)
    assert not marker.exists()


def test_plain_yaml_is_read(tmp_path):
    path = tmp_path / 'a.yaml'
    path.write_text('a: &a {b: 1}\nc: *a\nmodel: {type: PeLK}\n')
    assert read_config(path).c.b == 1


@pytest.mark.parametrize(
    ('keys', 'value'),
    [
        ((), None),
        (('a',), dict(b=dict(c=3))),
        (('a', 'b', 'c'), 3),
        (('a', 'x', 'c'), None),
        (('a', 'b', 'c', 'd'), None),  # no dict
        (('word', 'get'), None),
    ],
)
def test_entries_of_nested_dicts(keys, value):
    cfg = Config(dict(a=dict(b=dict(c=3)), word='x'))
    assert entry(cfg, *keys) == (value if keys else cfg)
    assert entry(cfg._cfg_dict, *keys) == (value if keys else cfg._cfg_dict)
    assert entry('x', 'a') is None


def test_sections_are_dicts_in_place():
    cfg = Config(dict(a=dict(b=dict(c=3)), word='x', none=None))
    section(cfg, 'a', 'b')['c'] = 4
    assert cfg.a.b.c == 4
    for keys in (('word',), ('none',), ('a', 'x'), ('a', 'b', 'c')):
        assert section(cfg, *keys) == {}
