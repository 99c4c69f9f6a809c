"""The same weights in other people's files: other names, prefixes and entries."""

import numpy as np
import pytest
import torch

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.conversion.convert import convert_checkpoint

HEADS = {
    f'{name}.weight': torch.randn(3, 4)
    for name in ('panoptic_head.x', 'query_embedding', 'mask_head.y')
}


def prefixed(state_dict, prefix='backbone.'):
    return {f'{prefix}{name}': value for name, value in state_dict.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def norms(stages, width):
    """Output norms of RepLKNet's stages, in the released names."""
    norm = torch.nn.BatchNorm2d(1)
    return {
        f'stages.{i}.norm.{name}': torch.full(value.shape and (width[i],), 2).to(value)
        for i in stages
        for name, value in norm.state_dict().items()
    }


class TestMMPretrain:
    """RepLKNet: ``backbone.``, ``head.fc``, the classifier's norm in the last stage."""

    @pytest.fixture
    def classifier(self, small):
        model, released = small('replknet')
        head = {'head.fc.weight': torch.ones(5, 16), 'head.fc.bias': torch.ones(5)}
        return model, prefixed(released | norms([1], [8, 16])) | head

    @pytest.mark.parametrize('meta', [None, {}, dict(mmengine_version='0.10.7')])
    def test_classifier_becomes_a_backbone(self, classifier, convert, build, meta):
        model, weights = classifier
        content = {'state_dict': weights, 'meta': meta}
        if meta is None:
            content = weights
        report, written = convert(content)
        assert report.complete
        assert same(written['state_dict'], model.state_dict())
        build(written['meta']['backbone']).load_state_dict(written['state_dict'])
        reasons = report.dropped
        assert len(reasons) == 7
        assert 'classifier' in reasons['head.fc.weight']
        assert 'mmpretrain' in reasons['backbone.stages.1.norm.running_mean']

    def test_prefix_of_the_result(self, classifier, convert):
        model, weights = classifier
        _, written = convert(weights, prefix='backbone.')
        assert same(written['state_dict'], prefixed(model.state_dict()))

    def test_norms_of_all_stages_stay(self, small, convert, build):
        _, released = small('replknet')
        weights = prefixed(released | norms([0, 1], [8, 16]))
        report, written = convert({'state_dict': weights})
        assert report.complete
        assert not report.dropped
        assert report.backbone['norm_intermediate_features'] is True
        assert written['state_dict']['norm0.running_mean'].tolist() == [2] * 8
        build(report.backbone).load_state_dict(written['state_dict'])

    def test_norm_that_heads_were_trained_on_stays(self, small, convert, build):
        _, released = small('replknet')
        weights = prefixed(released | norms([1], [8, 16]))
        weights['decode_head.conv_seg.bias'] = torch.zeros(2)
        for prefix in (None, ''):
            report, written = convert({'state_dict': weights}, prefix=prefix)
            assert report.complete
            assert report.backbone['out_indices'] == (1,)
            weights_of_backbone = {
                name.removeprefix('backbone.'): value
                for name, value in written['state_dict'].items()
                if 'head' not in name
            }
            build(report.backbone).load_state_dict(weights_of_backbone)

    def test_pelk_starts_from_it(self, classifier, convert):
        report, _ = convert(classifier[1], warm_start='pelk')
        assert report.complete
        assert report.backbone['type'] == 'PeLK'


@pytest.mark.parametrize('family', ['slak', 'pelk'])
def test_outputs_of_some_stages(build, convert, family):
    arch = dict(channels=[8, 16, 16], depths=[1, 1, 1], kernel_sizes=[9, 9, 7])
    if family == 'pelk':
        arch['central_radius'] = 2
    kind = dict(slak='SLaK', pelk='PeLK')[family]
    model = build(dict(type=kind, arch=arch, out_indices=(1, 2)))
    report, written = convert({'state_dict': prefixed(model.state_dict())})
    assert report.complete
    assert report.backbone['out_indices'] == (1, 2)
    build(report.backbone).load_state_dict(written['state_dict'])


class TestNoBatchNorm:
    """SLaK trained with ``--bn False``."""

    @pytest.mark.parametrize('decomposed', [True, False])
    def test_converts_there_and_back(self, small, convert, build, decomposed):
        arch = dict(channels=[8, 16], depths=[1, 2], kernel_sizes=[11, 9])
        model, released = small(norm_cfg=None, arch=arch | dict(decomposed=decomposed))
        assert not any('.bn.' in name for name in released)
        report, written = convert({'model': released})
        assert report.complete
        assert report.backbone['norm_cfg'] is None
        build(report.backbone).load_state_dict(written['state_dict'])
        _, back = convert(written, official=True)
        assert same(back['model'], released)

    def test_pelk_starts_from_it(self, small, convert, build):
        _, released = small(norm_cfg=None)
        report, written = convert({'model': released}, warm_start='pelk')
        assert report.complete
        assert 'norm_cfg' not in report.backbone
        build(report.backbone).load_state_dict(written['state_dict'])

    def test_norms_of_some_branches_are_damage(self, small, convert):
        _, released = small()
        del released['stages.1.1.large_kernel.small_conv.bn.weight']
        report, _ = convert({'model': released})
        assert report.missing == ['stages.1.1.large_kernel.small_conv.bn.weight']
        assert 'norm_cfg' not in report.backbone


def test_other_names_of_the_stripes(small, convert):
    model, released = small()
    renamed = {name.replace('LoRA', 'Decom'): v for name, v in released.items()}
    assert renamed.keys() != released.keys()
    report, written = convert({'model': renamed})
    assert report.complete
    assert same(written['state_dict'], model.state_dict())


class TestPrefixes:
    """The backbone is found under any prefix, and told where it was."""

    @pytest.mark.parametrize('family', ['slak', 'replknet'])
    @pytest.mark.parametrize('ours', [False, True])
    @pytest.mark.parametrize(
        ('prefix', 'told'),
        [
            ('student.', True),
            ('img_backbone.', True),
            ('model.encoder.', True),
            ('module.backbone.module.', False),
            ('_orig_mod.backbone.', False),
        ],
    )
    def test_only_backbone(self, small, convert, family, ours, prefix, told):
        model, released = small(family)
        weights = prefixed(model.state_dict() if ours else released, prefix)
        weights['pts_neck.weight'] = torch.ones(1)
        report, written = convert({'state_dict': weights})
        assert report.complete
        assert same(written['state_dict'], model.state_dict())
        assert 'does not start with' in report.dropped['pts_neck.weight']
        notes = [f'the backbone is under {prefix} (--from-prefix {prefix})']
        assert report.notes == notes * told

    def test_model_under_a_prefix_keeps_its_heads(self, small, convert):
        model, released = small()
        weights = prefixed(released, 'model.backbone.')
        weights['model.decode_head.conv_seg.bias'] = torch.ones(2)
        weights['criterion.weight'] = torch.ones(2)
        content = {'state_dict': weights, 'hyper_parameters': dict(lr=1), 'epoch': 1}
        report, written = convert(content)
        assert report.whole
        heads = {'decode_head.conv_seg.bias': torch.ones(2)}
        assert same(written['state_dict'], prefixed(model.state_dict()) | heads)
        assert 'criterion.weight' in report.dropped

    @pytest.mark.parametrize('nested', [True, False])
    def test_several_are_an_error_with_the_choices(self, small, convert, nested):
        (model, released), (other, teacher) = small(), small()
        if nested:
            content = {'student': released, 'teacher': teacher, 'epoch': 3}
        else:
            weights = prefixed(released, 'student.') | prefixed(teacher, 'teacher.')
            content = {'state_dict': weights}
        with pytest.raises(CheckpointError) as error:
            convert(content)
        assert str(error.value).endswith(
            'it has 2 backbones; choose one with --from-prefix student. or '
            '--from-prefix teacher.'
        )
        for prefix, expected in (('student.', model), ('teacher', other)):
            _, written = convert(content, from_prefix=prefix)
            assert same(written['state_dict'], expected.state_dict())

    def test_chosen_by_its_model(self, small, convert):
        (model, released), (_, teacher) = small(), small()
        weights = prefixed(released, 'student.backbone.')
        weights |= prefixed(teacher, 'teacher.backbone.')
        heads = {'bbox_head.fcos_cls.bias': torch.ones(2)}
        weights |= prefixed(heads, 'student.') | prefixed(heads, 'teacher.')
        report, written = convert({'state_dict': weights}, from_prefix='student')
        heads = {'bbox_head.conv_cls.bias': torch.ones(2)}
        assert same(written['state_dict'], prefixed(model.state_dict()) | heads)
        assert 'teacher.bbox_head.fcos_cls.bias' in report.dropped

    def test_wrong_choice(self, small, convert):
        with pytest.raises(
            CheckpointError, match="start with 'teacher'; give --from-prefix ''"
        ):
            convert(small()[1], from_prefix='teacher')


class TestHeads:
    """Heads whose names nobody here knows."""

    @pytest.fixture
    def weights(self, small):
        model, released = small()
        return model, {'state_dict': prefixed(released) | HEADS}

    def test_backbone_alone(self, weights, convert):
        model, content = weights
        report, written = convert(content, prefix='')
        assert report.complete
        assert same(written['state_dict'], model.state_dict())
        assert report.dropped.keys() == HEADS.keys()
        assert all(reason.startswith('a head;') for reason in report.dropped.values())

    def test_backbone_alone_starts_pelk(self, weights, convert):
        report, _ = convert(weights[1], prefix='', warm_start='pelk')
        assert report.complete

    def test_otherwise_the_remedy_is_named(self, weights, convert):
        report, written = convert(weights[1])
        assert written is None
        assert report.summarise_problems().endswith(
            "(--prefix '' leaves the heads out)"
        )

    @pytest.mark.parametrize('why', ['names of ours', 'mm 1.x'])
    def test_current_names_pass_as_they_are(self, weights, convert, why):
        model, content = weights
        if why == 'mm 1.x':
            content['meta'] = dict(mmengine_version='0.10.7')
        else:
            content = {'state_dict': prefixed(model.state_dict()) | HEADS}
        report, written = convert(content)
        assert report.complete
        assert same(written['state_dict'], prefixed(model.state_dict()) | HEADS)

    def test_copies_of_older_averages(self, small, convert):
        """EMAHook of mmcv 1.x keeps the other weights as buffers of the model."""
        model, released = small()
        copies = {
            'ema_' + n.replace('.', '_'): v for n, v in prefixed(released).items()
        }
        report, written = convert({'state_dict': prefixed(released) | copies})
        assert report.complete
        assert same(written['state_dict'], model.state_dict())
        assert report.dropped.keys() == copies.keys()


class TestAverages:
    """mmengine's EMAHook swaps ``state_dict`` and ``ema_state_dict`` when it saves."""

    @pytest.fixture
    def content(self, small):
        (model, averaged), (other, raw) = small(), small()
        ema = prefixed(prefixed(raw), 'module.') | {'steps': torch.tensor(7)}
        content = {'state_dict': prefixed(averaged), 'ema_state_dict': ema, 'meta': {}}
        return model, other, content

    @pytest.mark.parametrize('ema', [None, True, False])
    def test_either_can_be_taken(self, content, convert, ema):
        averaged, raw, content = content
        report, written = convert(content, ema=ema)
        expected = raw if ema is False else averaged
        assert same(written['state_dict'], expected.state_dict())
        (entry, reason), *others = report.dropped.items()
        assert not others
        if ema is False:
            assert report.key == 'ema_state_dict'
            assert (entry, '--no-ema' in reason) == ('state_dict', True)
        else:
            assert report.key == 'state_dict'
            assert entry == 'ema_state_dict'
            assert 'EMAHook swaps the two' in reason

    @pytest.mark.parametrize('key', ['model_ema', 'state_dict_ema', 'params_ema'])
    def test_averages_of_others(self, small, convert, key):
        model, released = small()
        content = {'state_dict': {}, key: released}
        report, written = convert(content, ema=True)
        assert report.key == key
        assert same(written['state_dict'], model.state_dict())
        with pytest.raises(CheckpointError, match='averaged weights only; give --ema'):
            convert({key: released})


@pytest.mark.parametrize(
    ('wrap', 'key'),
    [
        (lambda w: {'network': w, 'epoch': 1}, 'network'),
        (lambda w: {'net': w}, 'net'),
        (
            lambda w: {'model_state_dict': w, 'optimizer': {'state': {}}},
            'model_state_dict',
        ),
        (lambda w: {'model': {'state_dict': w}}, 'model.state_dict'),
        (lambda w: {'state_dict': {'model': w, 'step': 1}}, 'state_dict.model'),
        (lambda w: {'encoder': w, 'optimizer': {'state': {0: {'x': w}}}}, None),
    ],
)
def test_entries(small, convert, wrap, key):
    model, released = small()
    report, written = convert(wrap(released))
    assert report.key == key
    assert report.complete
    assert same(written['state_dict'], model.state_dict())


@pytest.mark.parametrize('meta', [None, {}, [], 3])
def test_meta_of_any_kind(small, convert, meta):
    _, released = small()
    _, written = convert({'state_dict': released, 'meta': meta})
    assert written['meta'].keys() == {'source', 'pelk_mm_version', 'backbone'}


@pytest.mark.parametrize('form', ['torch', 'pickle', 'npz', 'bare'])
def test_arrays(small, tmp_path, save, form):
    import pickle

    model, released = small()
    arrays = {name: value.numpy() for name, value in released.items()}
    path = tmp_path / 'src.pkl'
    if form == 'torch':
        path = save({'model': arrays})
    elif form == 'npz':
        path = tmp_path / 'src.npz'
        np.savez(path, **arrays)
    else:
        content = {'model': arrays, 'author': 'me'} if form == 'pickle' else arrays
        path.write_bytes(pickle.dumps(content))
    report = convert_checkpoint(path, tmp_path / 'dst.pth')
    assert report.complete
    written = torch.load(tmp_path / 'dst.pth', weights_only=True)['state_dict']
    assert same(written, model.state_dict())


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('warm_start', [None, 'pelk'])
def test_other_precisions(small, convert, dtype, warm_start):
    _, released = small()
    weights = {
        n: v.to(dtype) if v.is_floating_point() else v for n, v in released.items()
    }
    _, written = convert({'model': weights}, warm_start=warm_start)
    dtypes = {v.dtype for v in written['state_dict'].values() if v.ndim}
    assert dtypes == {dtype}
