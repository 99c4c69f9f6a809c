"""Prune-and-grow: one update of a layer's mask, and the schedule of its size."""

from math import cos, pi

import torch
from torch import Tensor

GROWTHS = ('random', 'gradient')


def prune_rate(step: int, steps: int, start: float, end: float) -> float:
    """Share of a layer's active weights that an update prunes, along half a cosine.

    Args:
        step: Optimizer steps made, in [0, steps].
        steps: Optimizer steps of the training.
        start: The rate at step 0.
        end: The rate at the end.
    """
    return end + (start - end) * (1 + cos(pi * step / steps)) / 2


def prune_and_grow(
    weight: Tensor,
    mask: Tensor,
    rate: float,
    generator: torch.Generator,
    grad: Tensor | None = None,
) -> Tensor:
    """Drop the smallest active weights and activate as many inactive ones.

    As in SET, RigL and SLaK a weight that was just dropped may come back.

    Args:
        weight: A layer's weights.
        mask: True or 1 where a weight is active, of the same shape.
        rate: Share of the active weights to drop, in [0, 1); their number is rounded
            down, so that a layer always keeps one at least.
        generator: On the CPU; draws which weights grow.
        grad: The weights' gradient; where it is given, the weights with the largest
            magnitudes of it grow instead of random ones.

    Returns:
        The new mask, boolean, with as many active weights as before.
    """
    active = mask.bool().flatten()
    number = int(rate * int(active.count_nonzero()))
    if number == 0:
        return active.view_as(mask)
    dropped = _smallest(weight.detach().abs().flatten(), active, number)
    active = active & ~dropped
    if grad is None:
        candidates = (~active).nonzero().squeeze(1)
        drawn = torch.randperm(candidates.numel(), generator=generator)[:number]
        active[candidates[drawn.to(candidates.device)]] = True
    else:
        active |= _smallest(-grad.abs().flatten(), ~active, number)
    return active.view_as(mask)


def _smallest(values: Tensor, candidates: Tensor, number: int) -> Tensor:
    """Mark the ``number`` smallest candidates, the first ones of equal values."""
    # Selection instead of sorting (or `topk`): linear in n, and ties go to the lowest
    # index on every device.
    threshold = values[candidates].kthvalue(number).values
    marked = candidates & (values < threshold)
    ties = (candidates & (values == threshold)).nonzero().squeeze(1)
    marked[ties[: number - int(marked.count_nonzero())]] = True
    return marked
