"""Whether a checkpoint's weights fit a backbone; names and shapes decide.

torch and mmengine load by name. mmengine only warns of what does not fit, and the model
goes on with random weights.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from .files import CheckpointError
from .misfit import (
    COUNTER,
    PART,
    Backbone,
    Difference,
    Shapes,
    explain,
    in_other_entry,
    shorten,
    type_of,
)
from .rules import BACKBONE_TYPES, backbone_prefixes, detect_family
from .weights import WRAPPERS

#: The argument of a backbone that lets weights pass though they do not fit.
WAY_ROUND = 'partial_weights=True'

_OUTPUT_NORM = re.compile(r'norm\d+\.')
_STEM = re.compile(r'downsample_layers\.0\.0\.(?:conv\.)?weight')


class WeightsError(CheckpointError, RuntimeError):
    """Weights that do not fit a backbone; a RuntimeError, as torch raises for such."""


class Fit(NamedTuple):
    """How weights fit a backbone that accepts them.

    Attributes:
        complete: Whether they leave nothing at random but what is meant to be.
        note: What they leave out, a phrase that follows the backbone's name; '' if
            nothing.
    """

    complete: bool
    note: str = ''


def refuse_released_names(names: Sequence[str]) -> None:
    """Raise an error if parameter names are released ones.

    Args:
        names: Names without the prefix of the backbone.

    Raises:
        WeightsError: If they are.
    """
    family = detect_family(names)
    if family is not None:
        raise WeightsError(
            f'the checkpoint has the released names of {BACKBONE_TYPES[family]}; '
            'convert it with\n  pelk-mm convert_checkpoint SRC DST\nand load DST'
        )


def require_fit(
    backbone: Backbone, weights: Shapes, prefix: str = '', elsewhere: Sequence[str] = ()
) -> Fit:
    """Raise an error if weights would leave a part of a backbone at random.

    Weights that do so on purpose pass with a note: a classifier's, which have no output
    norms; those of a stem for other image channels; of a PeLK started from a RepLKNet,
    which has another stem; of more stages than the backbone has. A backbone with
    weights may be given a part of them anew, or none.

    Args:
        backbone: The backbone.
        weights: What is loaded into it, by name without its prefix.
        prefix: What the backbone's names start with in the model that is loaded.
        elsewhere: Full names of other weights that the model has no place for.

    Raises:
        WeightsError: If they would; the message has the likely cause and the remedy.
    """
    refuse_released_names(list(weights))
    difference, notes = _compare(backbone, weights)
    loaded = backbone.shapes.keys() & weights.keys()
    problem = ''
    if not loaded and not difference.left_over:
        problem = _explain_nothing(backbone.type, weights, prefix, elsewhere)
        if not problem and backbone.has_weights:
            return Fit(False, 'keeps its weights, since the checkpoint has none for it')
        problem = problem or _explain_foreign(weights, prefix, elsewhere)
    elif difference.mismatched or difference.left_over:
        problem = explain(backbone, weights, difference)
    elif difference.missing and backbone.has_weights:
        left = len(difference.missing)
        return Fit(False, f'keeps {left} tensors that the checkpoint does not have')
    elif difference.missing:
        problem = explain(backbone, weights, difference)
    if not problem:
        return Fit(True, '; '.join(notes))
    if backbone.partial:
        return Fit(False, f'starts partly at random ({WAY_ROUND}): {problem}')
    way_round = 'load what fits and leave the rest' if loaded else 'leave the backbone'
    raise WeightsError(
        f'the checkpoint does not fit the backbone, a {backbone.type}: {problem}. '
        f'To {way_round} at random, set {WAY_ROUND} in the backbone.'
    )


def _compare(backbone: Backbone, weights: Shapes) -> tuple[Difference, list[str]]:
    """What does not fit, and what does not either but is meant, as notes."""
    own = {name: s for name, s in backbone.shapes.items() if COUNTER not in name}
    missing = [name for name in own if name not in weights]
    mismatched = {
        name: (weights[name], shape)
        for name, shape in own.items()
        if name in weights and weights[name] != shape
    }
    left_over = [
        name
        for name in weights
        if PART.match(name) and name not in own and COUNTER not in name
    ]
    notes = []
    norms = dict.fromkeys(match[0] for match in map(_OUTPUT_NORM.match, own) if match)
    absent = tuple(n for n in norms if not any(w.startswith(n) for w in weights))
    if absent:
        missing = [name for name in missing if not name.startswith(absent)]
        listed = ', '.join(norm.rstrip('.') for norm in absent)
        notes.append(
            f'keeps the initial values of its output norms ({listed}), which the '
            'checkpoint does not have'
        )
    added = [n for n in missing if not PART.match(n) and not _OUTPUT_NORM.match(n)]
    if added:
        missing = [name for name in missing if name not in added]
        notes.append(f'starts with random {shorten(added)}, which a subclass has added')
    for name, (given, shape) in list(mismatched.items()):
        if _STEM.fullmatch(name) and given and _outputs(given) == _outputs(shape):
            del mismatched[name]
            notes.append(
                f'starts with a random {name}, since that of the checkpoint is for '
                f'{given[1]} image channels, not {shape[1]}'
            )
    stages = 1 + max((_stage(name) for name in own if PART.match(name)), default=-1)
    beyond = {name for name in left_over if _stage(name) >= stages}
    if beyond:
        left_over = [name for name in left_over if name not in beyond]
        notes.append(f'does not use the stages of the checkpoint from {stages} on')
    stem = [name for name in own if name.startswith('downsample_layers.')]
    if backbone.warm_start and missing == stem:
        missing = []
        notes.append(
            'starts with random downsample_layers, which the checkpoint does not have, '
            'as where a PeLK is started from a RepLKNet'
        )
    return Difference(missing, mismatched, left_over), notes


def _outputs(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A convolution's shape without its input channels."""
    return shape[:1] + shape[2:]


def _stage(name: str) -> int:
    match = PART.match(name)
    assert match is not None
    return int(match[1])


def _explain_nothing(
    backbone_type: str, weights: Shapes, prefix: str, elsewhere: Sequence[str]
) -> str:
    """Why no name of a checkpoint is one of the backbone; '' if there is no sign.

    Raises:
        WeightsError: If its backbone has the released names.
    """
    names: dict[str, tuple[int, ...] | None] = dict.fromkeys(elsewhere)
    names |= {prefix + name: shape for name, shape in weights.items()}
    found = {}
    for other in backbone_prefixes(names):
        bare = {
            n.removeprefix(other): s for n, s in names.items() if n.startswith(other)
        }
        refuse_released_names(list(bare))
        found[other] = type_of(bare)
    if '' in found and found[''] in set(BACKBONE_TYPES.values()) - {backbone_type}:
        return f'it is a {found[""]} alone; give a checkpoint with a {backbone_type}'
    if '' in found:
        return (
            f'it is a backbone alone, a {found[""]}, and the model has its own under '
            f'{prefix!r}; start a training from it by '
            "backbone=dict(init_cfg=dict(type='Pretrained', checkpoint=...)), and test "
            'with the checkpoint of a whole model'
        )
    if found:
        where = ' and '.join(f'a {kind} under {p!r}' for p, kind in found.items())
        other = next(iter(found))
        if not prefix:
            return (
                f'it has {where}; set prefix={other!r} in init_cfg, or with '
                f"load_checkpoint revise_keys=[('^{re.escape(other)}', '')]"
            )
        return (
            f'it has {where}, the model its backbone under {prefix!r}; rename with '
            f'`pelk-mm convert_checkpoint SRC DST --from-prefix {other}`, or load the '
            "backbone alone: backbone=dict(init_cfg=dict(type='Pretrained', "
            f'checkpoint=..., prefix={other!r}))'
        )
    wrapper = next((key for key in WRAPPERS if key in names), None)
    if wrapper == 'state_dict':
        return "its weights are in its entry 'state_dict'; load that"
    if wrapper is not None:
        return in_other_entry(wrapper)
    return ''


def _explain_foreign(weights: Shapes, prefix: str, elsewhere: Sequence[str]) -> str:
    """Why a checkpoint without any backbone of ours is refused."""
    advice = 'load weights into the backbone first, by its own init_cfg'
    if weights:
        ours = ', '.join(BACKBONE_TYPES.values())
        return f'its names, {shorten(list(weights))}, are not those of {ours}; {advice}'
    others = f', but {shorten(elsewhere)}' * bool(elsewhere)
    return f'it has no name that starts with {prefix!r}{others}; {advice}'
