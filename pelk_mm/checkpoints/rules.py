"""Released parameter names and ours, written once and read in both directions.

A rule is a pair of templates, the released name first. ``{stage}``, ``{block}`` and
``{layer}`` stand for a number, ``{rest}`` for the remainder of a name. The first rule
whose template matches decides. Within a family no two rules share a name on either
side, so converting there and back gives the names one started from.
"""

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

Rule = tuple[str, str]

#: Type of the backbone of each family. No PeLK was ever released.
BACKBONE_TYPES = {'pelk': 'PeLK', 'slak': 'SLaK', 'replknet': 'RepLKNet'}

#: Branches of the large-kernel module, which both families name alike; a merged module
#: is a single convolution with a bias.
_LARGE_KERNEL = (
    ('LoRA1.conv.{rest}', 'vertical.conv.{rest}'),
    ('LoRA1.bn.{rest}', 'vertical.norm.{rest}'),
    ('LoRA2.conv.{rest}', 'horizontal.conv.{rest}'),
    ('LoRA2.bn.{rest}', 'horizontal.norm.{rest}'),
    ('lkb_origin.conv.{rest}', 'large.conv.{rest}'),
    ('lkb_origin.bn.{rest}', 'large.norm.{rest}'),
    ('small_conv.conv.{rest}', 'small.conv.{rest}'),
    ('small_conv.bn.{rest}', 'small.norm.{rest}'),
    ('lkb_reparam.{rest}', 'large.{rest}'),
)

#: Convolution and the norm after it, in RepLKNet's names and ours.
_CONV_NORM = (('conv', 'conv'), ('bn', 'norm'))

#: A block's name, which RepLKNet has as we do.
_BLOCK = 'stages.{stage}.blocks.{block}.'
_SLAK_BLOCK = 'stages.{stage}.{block}.'

_RULES: dict[str, tuple[Rule, ...]] = {
    'slak': (
        ('downsample_layers.{rest}', 'downsample_layers.{rest}'),
        *(
            (f'{_SLAK_BLOCK}large_kernel.{theirs}', f'{_BLOCK}mixer.{ours}')
            for theirs, ours in _LARGE_KERNEL
        ),
        (f'{_SLAK_BLOCK}pwconv1.{{rest}}', f'{_BLOCK}pointwise_conv1.{{rest}}'),
        (f'{_SLAK_BLOCK}pwconv2.{{rest}}', f'{_BLOCK}pointwise_conv2.{{rest}}'),
        (f'{_SLAK_BLOCK}norm.{{rest}}', f'{_BLOCK}norm.{{rest}}'),
        (f'{_SLAK_BLOCK}gamma', f'{_BLOCK}gamma'),
        ('norm{stage}.{rest}', 'norm{stage}.{rest}'),
    ),
    'replknet': (
        *(
            (
                f'{part}.{{layer}}.{theirs}.{{rest}}',
                f'downsample_layers.{i}.{{layer}}.{ours}.{{rest}}',
            )
            for i, part in enumerate(('stem', *(f'transitions.{i}' for i in range(3))))
            for theirs, ours in _CONV_NORM
        ),
        *(
            (f'{_BLOCK}large_kernel.{theirs}', f'{_BLOCK}mixer.{ours}')
            for theirs, ours in _LARGE_KERNEL
            if not theirs.startswith('LoRA')
        ),
        # Blocks alternate: the even ones have a large kernel, the odd ones are FFNs.
        *(
            (
                f'stages.{{stage}}.blocks.{{{parity}}}.{theirs}.{{rest}}',
                f'stages.{{stage}}.blocks.{{{parity}}}.pointwise_conv1.pre_norm.{{rest}}',
            )
            for parity, theirs in (('even', 'prelkb_bn'), ('odd', 'preffn_bn'))
        ),
        *(
            (
                f'{_BLOCK}pw{i}.{theirs}.{{rest}}',
                f'{_BLOCK}pointwise_conv{i}.{ours}.{{rest}}',
            )
            for i in (1, 2)
            for theirs, ours in _CONV_NORM
        ),
        ('stages.{stage}.norm.{rest}', 'norm{stage}.{rest}'),
    ),
}

#: Names that SLaK's code used before or after the released files were made.
_OTHER_SPELLINGS: dict[str, tuple[Rule, ...]] = {
    'slak': tuple(
        (
            f'{_SLAK_BLOCK}large_kernel.Decom{i}.{theirs}.{{rest}}',
            f'{_BLOCK}mixer.{branch}.{ours}.{{rest}}',
        )
        for i, branch in ((1, 'vertical'), (2, 'horizontal'))
        for theirs, ours in _CONV_NORM
    ),
    'replknet': (),
}

#: Parts of whole models other than the backbone. mmdet renamed the predictors of FCOS;
#: everything else has kept its name since mmseg 0.x and mmdet 2.x.
_HEAD_RULES: tuple[Rule, ...] = (
    ('bbox_head.fcos_{predictor}.{rest}', 'bbox_head.conv_{predictor}.{rest}'),
    ('{head}.{rest}', '{head}.{rest}'),
)

#: Released names without a counterpart, and why they have none.
_DROPPED: tuple[tuple[str, str], ...] = (
    ('norm.{rest}', "the classifier's norm, which a feature pyramid does not have"),
    ('head.{rest}', "the classifier's weights, which a feature pyramid does not have"),
)

#: Names around a backbone without a counterpart.
_DROPPED_HEADS: tuple[tuple[str, str], ...] = (
    ('head.{rest}', "the classifier's weights, which a feature pyramid does not have"),
    (
        'ema_{word}',
        'the weights without averaging, which EMAHook of mmcv 1.x swapped with the '
        'averaged ones when it saved',
    ),
)

#: Segments that wrappers of a model put into its names.
_MODEL_WRAPPERS = 'module', '_orig_mod', '_fsdp_wrapped_module'

#: Names that the blocks of all families have, in the released names and in ours.
_BLOCK_MARKS: tuple[str, ...] = tuple(
    f'{{prefix}}{block}{mixer}.{{rest}}'
    for block in (_BLOCK, _SLAK_BLOCK)
    for mixer in ('large_kernel', 'mixer')
)

#: Names that only one family uses.
_FAMILY_MARKS: dict[str, tuple[str, ...]] = {
    'slak': (f'{_SLAK_BLOCK}large_kernel.{{rest}}', f'{_SLAK_BLOCK}pwconv1.{{rest}}'),
    'replknet': ('stem.{layer}.conv.{rest}', 'transitions.{stage}.{rest}'),
}

#: Names of ours that tell the families apart; the first that matches decides.
_OUR_MARKS: dict[str, tuple[str, ...]] = {
    'pelk': ('stages.{stage}.position_embedding',),
    'replknet': ('downsample_layers.0.{layer}.conv.{rest}',),
    'slak': (f'{_BLOCK}mixer.{{rest}}',),
}

_FIELDS = {
    'stage': r'\d+',
    'block': r'\d+',
    'layer': r'\d+',
    'even': r'\d*[02468]',
    'odd': r'\d*[13579]',
    'head': 'neck|decode_head|auxiliary_head|rpn_head|roi_head|bbox_head',
    'predictor': 'cls|reg|centerness',
    'word': r'\w+',
    'prefix': r'(?:.*\.)?',
    'rest': r'.+',
}


class Renamed(NamedTuple):
    """A state dict under other names.

    Attributes:
        converted: The tensors under their new names, in the order given.
        dropped: Names without a counterpart, each with the reason.
        unknown: Names that no rule knows.
    """

    converted: dict[str, Any]
    dropped: dict[str, str]
    unknown: list[str]


def families() -> tuple[str, ...]:
    """Families with released models."""
    return tuple(_RULES)


def rules_for(family: str) -> tuple[Rule, ...]:
    """Ordered pairs of (released, our) name templates of a family.

    Raises:
        ValueError: If there are no released models of that family.
    """
    if family not in _RULES:
        raise ValueError(
            f'there are no released {family!r} models; choose {" or ".join(_RULES)}'
        )
    return _RULES[family]


def detect_family(names: Iterable[str], ours: bool = False) -> str | None:
    """Family whose models use such parameter names; None if it is none of them.

    Args:
        names: Parameter names without prefixes.
        ours: Whether to look for this package's names instead of the released.
    """
    names = list(names)
    for family, marks in (_OUR_MARKS if ours else _FAMILY_MARKS).items():
        if any(_pattern(mark).fullmatch(name) for name in names for mark in marks):
            return family
    return None


def backbone_prefixes(names: Iterable[str]) -> list[str]:
    """What the names of backbones of ours start with, in the order found.

    Args:
        names: Full parameter names of anything that may contain backbones.

    Returns:
        One prefix per backbone, '' for one without; empty where there is none.
    """
    names = list(names)
    marks = (*_FAMILY_MARKS.values(), *_OUR_MARKS.values())
    others = tuple(f'{{prefix}}{mark}' for family in marks for mark in family)
    for templates in (_BLOCK_MARKS, others):
        matches = (_pattern(t).fullmatch(name) for name in names for t in templates)
        prefixes = dict.fromkeys(match['prefix'] for match in matches if match)
        if prefixes:
            return list(prefixes)
    return []


def model_prefix(prefix: str) -> str | None:
    """What the names of the model around a backbone start with.

    Args:
        prefix: What the backbone's names start with.

    Returns:
        The prefix without its last segment where that is ``backbone``, as in models of
        mmseg and mmdet; None where the backbone is no such model's.
    """
    segments = prefix.split('.')[:-1]
    while segments and segments[-1] in _MODEL_WRAPPERS:
        segments.pop()
    if not segments or segments[-1] != 'backbone':
        return None
    return ''.join(f'{segment}.' for segment in segments[:-1])


def is_plain_prefix(prefix: str) -> bool:
    """Whether nothing but a model of mm or a wrapper put a backbone's names there."""
    return set(prefix.split('.')[:-1]) <= {'backbone', *_MODEL_WRAPPERS}


def rename(name: str, family: str, to_released: bool = False) -> str | None:
    """Translate one parameter name, from released to ours or back.

    Returns:
        The new name, or None if no rule matches.

    Raises:
        ValueError: If there are no released models of that family.
    """
    rules: Iterable[Rule] = rules_for(family)
    if to_released:
        return _translate(name, ((ours, theirs) for theirs, ours in rules))
    return _translate(name, (*rules, *_OTHER_SPELLINGS[family]))


def rename_head(name: str) -> str | None:
    """Translate a name of mmseg 0.x or mmdet 2.x to that of mmseg 1.x or mmdet 3.x.

    Returns:
        The new name, or None if it belongs to no head or neck.
    """
    return _translate(name, _HEAD_RULES)


def explain_dropped(name: str) -> str | None:
    """Why a tensor around a backbone has no place in a model; None if it may have one.

    Args:
        name: Its name, as models of mm before 1.x have it.
    """
    for template, reason in _DROPPED_HEADS:
        if _pattern(template).fullmatch(name):
            return reason
    return None


def _translate(name: str, rules: Iterable[Rule]) -> str | None:
    """Apply the first (source, target) template that matches; None if none does."""
    for source, target in rules:
        match = _pattern(source).fullmatch(name)
        if match:
            return target.format(**match.groupdict())
    return None


def from_released(state_dict: Mapping[str, Any], family: str) -> Renamed:
    """Rename a released backbone's parameters to ours.

    The classifier's own parameters are dropped. A merged model (``lkb_reparam``)
    becomes the state dict of a backbone with ``small_kernel_merged=True``.

    Args:
        state_dict: Parameters by released name, without prefixes.
        family: ``slak`` or ``replknet``.

    Raises:
        ValueError: If there are no released models of that family.
    """
    return _rename_all(state_dict, family, dropped=_DROPPED)


def to_released(state_dict: Mapping[str, Any], family: str) -> Renamed:
    """Rename our backbone's parameters to the released names, nothing being dropped.

    The deployment form of whole backbones has no released counterpart: what it
    merges beyond the token mixers is in ``unknown``.

    Args:
        state_dict: Parameters by our name, without prefixes.
        family: See `from_released`.

    Raises:
        ValueError: See `from_released`.
    """
    return _rename_all(state_dict, family, to_released=True)


def _rename_all(
    state_dict: Mapping[str, Any],
    family: str,
    to_released: bool = False,
    dropped: Iterable[tuple[str, str]] = (),
) -> Renamed:
    names = {name: rename(name, family, to_released) for name in state_dict}
    reasons = {
        name: reason
        for name, new_name in names.items()
        for template, reason in dropped
        if new_name is None and _pattern(template).fullmatch(name)
    }
    converted = {new: state_dict[name] for name, new in names.items() if new}
    unknown = [n for n, new in names.items() if new is None and n not in reasons]
    return Renamed(converted, reasons, unknown)


@lru_cache(maxsize=1024)
def _pattern(template: str) -> re.Pattern[str]:
    """Regular expression of a template, with a named group per field."""
    parts = re.split(r'\{(\w+)\}', template)
    return re.compile(
        ''.join(
            f'(?P<{part}>{_FIELDS[part]})' if i % 2 else re.escape(part)
            for i, part in enumerate(parts)
        )
    )
