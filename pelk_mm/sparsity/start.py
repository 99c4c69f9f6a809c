"""What a training with sparsity starts from: mode, masks, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .initializers import is_sparse

MODES = ('dynamic', 'fixed', 'auto', 'off')
INITS = ('snip', 'erk', 'uniform', 'resume')

#: Version of the checkpoint's ``sparsity`` entry.
VERSION = 1


@dataclass(frozen=True)
class Start:
    """What is to be done before the first step of a training.

    Attributes:
        mode: ``dynamic`` or ``fixed``.
        masks: Where the masks come from: ``checkpoint``, the resumed one's entry;
            ``zeros``, those of the weights; or the rule to draw them by, ``snip``,
            ``erk`` or ``uniform``.
        density: What the density of the checkpoint's masks has to be, None where it
            may be any.
        reason: Why ``auto`` became this mode, None for the other modes.
    """

    mode: str
    masks: str
    density: float | None = None
    reason: str | None = None


def start(
    mode: str,
    init: str,
    sparsity: float,
    *,
    resumed: bool,
    saved: Mapping[str, Any] | None,
    zeros: float,
) -> Start:
    """Decide what a training starts from.

    Args:
        mode: ``dynamic``, ``fixed`` or ``auto``.
        init: ``snip``, ``erk``, ``uniform`` or ``resume``.
        sparsity: Share of zeros that is asked for.
        resumed: Whether the training goes on with an interrupted one.
        saved: The ``sparsity`` entry of the checkpoint to resume, None if it has none.
        zeros: Share of zeros among the chosen weights that a new training starts from.

    Raises:
        ValueError: If the resumed checkpoint has no entry or one of another version;
            if masks are to be drawn over weights that were trained sparse; or if the
            zeros of weights without any are to be kept.
    """
    reason = None
    if resumed:
        if saved is None:
            raise ValueError(
                'the resumed checkpoint was trained without DynamicSparsityHook; to '
                'start from its weights use load_from without resume, to go on dense '
                "set mode='off'"
            )
        if saved.get('version') != VERSION:
            raise ValueError(
                f'the sparsity entry of the checkpoint has version '
                f'{saved.get("version")!r}, this pelk_mm reads {VERSION}; resume with '
                'the pelk_mm that wrote it'
            )
        if mode == 'auto':
            # Entries without the mode are older than auto; the configs that have auto
            # now were dynamic then.
            mode = saved.get('mode', 'dynamic')
            reason = 'the resumed run was'
    elif mode == 'auto':
        mode = 'fixed' if is_sparse(zeros) else 'dynamic'
        reason = f'{zeros:.1%} of the weights that the training starts from are zero'
    drawn = mode == 'dynamic' and init != 'resume'
    if resumed:
        return Start(mode, 'checkpoint', 1 - sparsity if drawn else None, reason)
    if drawn and is_sparse(zeros):
        raise ValueError(
            f'{zeros:.1%} of the weights that the training starts from are zero, so '
            "they were trained sparse; keep the zeros with mode='fixed' or 'auto', or "
            "start from them with init='resume'"
        )
    if not drawn and not is_sparse(zeros):
        raise ValueError(
            f'{zeros:.1%} of the weights are zero, so there is no sparsity to keep; '
            'load a checkpoint that was trained sparse (load_from or init_cfg), or '
            "set mode='dynamic' and init='snip'"
        )
    return Start(mode, init if drawn else 'zeros', reason=reason)
