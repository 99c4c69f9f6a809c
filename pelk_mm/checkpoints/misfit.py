"""Why weights do not fit a backbone, and what to do."""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from .rules import BACKBONE_TYPES, detect_family

#: Shape by name; None where it is unknown or the value is no tensor.
Shapes = Mapping[str, tuple[int, ...] | None]

#: Buffers without any effect on the features; mmengine does not miss them either.
COUNTER = 'num_batches_tracked'

#: Start of the names of a stage, or of the downsampling before it.
PART = re.compile(r'(?:downsample_layers|stages)\.(\d+)\.')

_OURS = ', '.join(BACKBONE_TYPES.values())

#: What to do where checkpoint and backbone are in these two forms.
_FORMS = {
    ('deployed', 'training'): (
        'it is in the deployment form; set deploy=True in the backbone, or load the '
        'checkpoint that it was made of'
    ),
    ('deployed', 'merged'): (
        'it is in the deployment form; set deploy=True instead of '
        'small_kernel_merged=True in the backbone'
    ),
    ('merged', 'training'): (
        'its large kernels are merged with the small ones; set '
        'small_kernel_merged=True in the backbone'
    ),
    ('merged', 'deployed'): (
        'its large kernels are merged with the small ones, but nothing else is folded; '
        'set small_kernel_merged=True instead of deploy=True in the backbone'
    ),
    ('training', 'merged'): (
        'it is in the training form; remove small_kernel_merged=True from the backbone'
    ),
    ('training', 'deployed'): (
        'it is in the training form; remove deploy=True from the backbone, or convert '
        'it with `pelk-mm switch_to_deploy CONFIG CKPT OUT`'
    ),
}

#: Names that come with an option of the backbone, what it means that a checkpoint has
#: none of them, and what it means that it has them and the backbone does not.
_OPTIONS = (
    (
        r'\.mixer\.vertical\.(?:conv\.)?weight$',
        'its large kernels are dense; set decomposed=False in the arch dict',
        'its large kernels are stripes; remove decomposed=False from the arch dict',
    ),
    (
        r'\.mixer\.small\.(?:conv\.)?weight$',
        'it has no small kernels; set small_kernel=None in the arch dict',
        'it has small kernels; set small_kernel to their size in the arch dict',
    ),
    (
        r'\.gamma$',
        'it has no layer scales; set layer_scale_init_value=0 in the backbone',
        'it has layer scales; set layer_scale_init_value=1e-6 in the backbone',
    ),
    (
        r'(?:large|vertical|conv\d)\.norm\.weight$',
        'it has no norms after its convolutions; set norm_cfg=None in the backbone',
        'it has norms after its convolutions; set their norm_cfg in the backbone',
    ),
    (
        r'norm\d*\.running_mean$',
        'its norms have no running statistics and are no BatchNorms; set norm_cfg in '
        'the backbone as it was trained with',
        "its norms are BatchNorms; set norm_cfg=dict(type='BN') in the backbone",
    ),
)


class Backbone(NamedTuple):
    """What weights have to fit.

    Attributes:
        type: Type of the backbone.
        shapes: Shape of each of its parameters and buffers by name.
        archs: Settings of the named architectures of its type.
        warm_start: What ``pelk-mm convert_checkpoint --warm-start`` has to be given for
            a checkpoint of another family; '' if the backbone starts from none.
        has_weights: Whether its weights are others than random ones already.
        partial: Whether weights may leave a part of it at random.
    """

    type: str
    shapes: Mapping[str, tuple[int, ...]]
    archs: Mapping[str, Mapping[str, Any]]
    warm_start: str = ''
    has_weights: bool = False
    partial: bool = False


class Difference(NamedTuple):
    """What does not fit.

    Attributes:
        missing: Names that the checkpoint lacks.
        mismatched: Shape in the checkpoint and in the backbone by name.
        left_over: Names of stages in the checkpoint that the backbone does not have.
    """

    missing: list[str]
    mismatched: dict[str, tuple[tuple[int, ...] | None, tuple[int, ...]]]
    left_over: list[str]


def in_other_entry(key: str) -> str:
    """What is wrong with weights in an entry that mmengine does not read."""
    return (
        f'its weights are in its entry {key!r}, and mmengine reads only '
        "'state_dict'; `pelk-mm convert_checkpoint SRC DST` puts them there"
    )


def shorten(names: Sequence[str], shown: int = 3) -> str:
    """The first names of a list, and how many there are if that is not all."""
    more = f', ... ({len(names)} in all)' * (len(names) > shown)
    return ', '.join(names[:shown]) + more


def _has(names: Iterable[str], pattern: str) -> bool:
    return any(re.search(pattern, name) for name in names)


def family_of(shapes: Shapes) -> str | None:
    """Family of names of ours, in whatever form; None if they are not ours."""
    family = detect_family(shapes, ours=True)
    if family == 'slak':  # or a form that lacks what marks the others
        if any(name.startswith('downsample_layers.0.3.') for name in shapes):
            return 'replknet'
        if _is_dense_deployed(shapes) and not _convolves_all(shapes):
            return 'pelk'
    return family


def type_of(shapes: Shapes) -> str:
    """Type of the backbone of ours that has such names."""
    family = family_of(shapes)
    if family is None:
        return 'backbone'
    if _is_dense_deployed(shapes) and not any(shapes.values()):
        return 'PeLK or SLaK'
    return BACKBONE_TYPES[family]


def _is_dense_deployed(shapes: Shapes) -> bool:
    """Whether names are those of PeLK's deployment form, or of a dense SLaK's."""
    return (
        _has(shapes, r'\.mixer\.large\.weight$')
        and not _has(shapes, r'\.gamma$')
        and not _has(shapes, r'^downsample_layers\.0\.(?:3|0\.conv)\.')
    )


def _convolves_all(shapes: Shapes) -> bool:
    """Whether the large kernels have all channels of their stage; PeLK's do not."""
    kernels = r'blocks\.\d+\.mixer\.large\.(?:conv\.)?weight'
    convolved = _per_stage(shapes, kernels, 0)
    return bool(convolved) and convolved == _channels(shapes)


def explain(backbone: Backbone, weights: Shapes, difference: Difference) -> str:
    """Likely causes of a difference with their remedies, and an example.

    Args:
        backbone: The backbone.
        weights: Names of the checkpoint, without prefix, and shapes.
        difference: What does not fit.
    """
    missing, mismatched, left_over = difference
    at_random = len(missing) + len(mismatched)
    example = f'{at_random} of {len(backbone.shapes)} tensors would stay at random; '
    if mismatched:
        name, (given, own) = next(iter(mismatched.items()))
        found = 'no tensor' if given is None else given
        example += f'{name} is {found} in the checkpoint, {own} in the backbone'
    elif missing:
        example += f'{missing[0]} is missing'
    else:
        example = f'the backbone has no {shorten(left_over, 1)}'
    causes = '; '.join(_causes(backbone, weights, difference))
    return f'{causes} ({example})'


def _causes(
    backbone: Backbone, weights: Shapes, difference: Difference
) -> Iterator[str]:
    missing, mismatched, left_over = difference
    if mismatched and all(given is None for given, _ in mismatched.values()):
        yield (
            'its values are no tensors; make them some with `pelk-mm '
            'convert_checkpoint SRC DST`'
        )
        return
    own = backbone.shapes
    families = {kind: family for family, kind in BACKBONE_TYPES.items()}
    family, expected = family_of(weights), families.get(backbone.type, family_of(own))
    if family is None and left_over:
        yield f'the names of its stages are not those of {_OURS}; give another'
        return
    if (
        (family, expected) == ('slak', 'pelk')
        and _is_dense_deployed(weights)
        and _convolves_all(own)  # then a PeLK's deployment form has a SLaK's names
    ):
        family = expected
    if family not in (None, expected):
        other = f' or start from it with {_warm_start(backbone)}'
        yield (
            f'it is of a {type_of(weights)}; give one of a {backbone.type}'
            f'{other * bool(backbone.warm_start)}'
        )
        return
    causes = []
    if family is not None:
        forms = _form(weights, family), _form(own, family)
        causes += [_FORMS[forms]] if forms in _FORMS else []
        causes += _sizes(backbone, weights)
        if not causes and _depths(weights):
            causes = _options(weights, difference)
    if not causes and (mismatched or left_over):
        causes = ['build the backbone with the arch of the config it was trained with']
    yield from causes or ['it is only a part of a checkpoint; give a whole one']


def _warm_start(backbone: Backbone) -> str:
    return f'`pelk-mm convert_checkpoint SRC DST --warm-start {backbone.warm_start}`'


def _form(shapes: Shapes, family: str) -> str:
    """Whether weights are in the training form, the deployment form or between."""
    if not _has(shapes, r'\.mixer\.(?:large|vertical)\.weight$'):
        return 'training'
    mark = dict(slak=r'\.gamma$', replknet=r'^downsample_layers\.0\.0\.conv\.')
    return 'merged' if family in mark and _has(shapes, mark[family]) else 'deployed'


def _per_stage(shapes: Shapes, pattern: str, axis: int) -> list[int]:
    """Length along an axis of the first weight in each stage whose name matches."""
    lengths: dict[int, int] = {}
    for name, shape in shapes.items():
        match = re.fullmatch(rf'stages\.(\d+)\.{pattern}', name)
        if match and shape and len(shape) > axis:
            lengths.setdefault(int(match[1]), shape[axis])
    return [lengths[stage] for stage in sorted(lengths)]


def _channels(shapes: Shapes) -> list[int]:
    return _per_stage(shapes, r'blocks\.\d+\.pointwise_conv2\.(?:conv\.)?weight', 0)


def _depths(shapes: Shapes) -> list[int]:
    """Layers of each stage, a layer of RepLKNet being two blocks."""
    blocks: dict[int, set[int]] = {}
    for name in shapes:
        match = re.match(r'stages\.(\d+)\.blocks\.(\d+)\.', name)
        if match:
            blocks.setdefault(int(match[1]), set()).add(int(match[2]))
    step = 2 if family_of(shapes) == 'replknet' else 1
    return [-(-len(blocks[stage]) // step) for stage in sorted(blocks)]


def _kernel_sizes(shapes: Shapes) -> list[int]:
    """Sizes of the large kernels; [] for a PeLK whose weights do not show them."""
    if family_of(shapes) == 'pelk':
        return _per_stage(shapes, 'position_embedding', 1)
    kernel = r'blocks\.\d+\.mixer\.(?:large|vertical)\.(?:conv\.)?weight'
    return _per_stage(shapes, kernel, 2)


def _sizes(backbone: Backbone, weights: Shapes) -> Iterator[str]:
    """Sizes that differ, and the named architectures that have those of the weights."""
    sizes = dict(
        channels=(_channels(weights), _channels(backbone.shapes)),
        depths=(_depths(weights), _depths(backbone.shapes)),
        kernel_sizes=(_kernel_sizes(weights), _kernel_sizes(backbone.shapes)),
    )
    different = [
        f'{name} {given}, the backbone {own}'
        for name, (given, own) in sizes.items()
        if given and own and given[: len(own)] != own
    ]
    if not different:
        return
    known = {name: given for name, (given, _) in sizes.items() if given}
    archs = [
        repr(name)
        for name, settings in backbone.archs.items()
        if all(_scaled(settings, key) == value for key, value in known.items())
    ]
    remedy = ' or '.join(archs) or 'that of the config it was trained with'
    yield f'it has {" and ".join(different)}; set arch to {remedy}'


def _scaled(settings: Mapping[str, Any], key: str) -> list[int]:
    factor = settings.get('width_factor', 1) if key == 'channels' else 1
    return [int(value * factor) for value in settings[key]]


def _options(weights: Shapes, difference: Difference) -> list[str]:
    """The first option of the backbone that the weights were made with or without."""
    for pattern, without, with_them in _OPTIONS:
        if _has(difference.left_over, pattern):
            return [with_them]
        if _has(difference.missing, pattern) and not _has(weights, pattern):
            return [without]
    return []
