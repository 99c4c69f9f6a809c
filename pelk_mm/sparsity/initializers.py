"""How many weights of each layer are active at first, and which.

A rule gives every layer a share of the active weights; `allocate` rounds the shares to
whole numbers that add up to exactly the requested total.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .masks import DENSE_FROM

#: From the layers' weights by name and the total number of active ones to the number of
#: each layer, not rounded; where it exceeds the layer `allocate` makes the layer dense.
Rule = Callable[[Mapping[str, Tensor], int], dict[str, float]]


def uniform(params: Mapping[str, Tensor], active: int) -> dict[str, float]:
    """`Rule` of the same density for every layer."""
    total = sum(param.numel() for param in params.values())
    return {name: active * param.numel() / total for name, param in params.items()}


def erk(params: Mapping[str, Tensor], active: int) -> dict[str, float]:
    """`Rule` Erdos-Renyi-Kernel: density by sum over product of a shape's sizes.

    Evci et al., "Rigging the Lottery" (RigL), ICML 2020, section 3.
    """
    total = sum(sum(param.shape) for param in params.values())
    return {name: active * sum(param.shape) / total for name, param in params.items()}


def snip(scores: Mapping[str, Tensor]) -> Rule:
    """Rule by connection sensitivity: the highest scores over all layers are active.

    As in SLaK only each layer's density is taken from them, not the positions.

    Args:
        scores: |weight * gradient| of each layer, of the weights' shapes.
    """

    def rule(params: Mapping[str, Tensor], active: int) -> dict[str, float]:
        flat = torch.cat([scores[name].flatten() for name in params])
        threshold = flat.kthvalue(flat.numel() - active + 1).values
        above = {name: int((scores[name] > threshold).sum()) for name in params}
        ties = {name: int((scores[name] == threshold).sum()) for name in params}
        share = (active - sum(above.values())) / sum(ties.values())
        return {name: above[name] + share * ties[name] for name in params}

    return rule


def allocate(
    params: Mapping[str, Tensor], density: float, rule: Rule
) -> dict[str, int]:
    """Decide how many weights of each layer are active.

    Layers to which the rule gives a density of 0.99 or more become dense, and the
    rest of the active weights is divided anew among the other layers.

    Args:
        params: The layers' weights by name.
        density: Active weights over all, in (0, 1).
        rule: `uniform`, `erk` or what `snip` returns.

    Returns:
        Number of active weights per layer, at least 1; they add up to the requested
        total, rounded to a whole number.

    Raises:
        ValueError: If that is fewer than one weight per layer.
    """
    sizes = {name: param.numel() for name, param in params.items()}
    left = round(density * sum(sizes.values()))
    if left < len(sizes):
        raise ValueError(
            f'density {density} leaves {left} weights for {len(sizes)} layers; a layer '
            'keeps one at least, so ask for a lower sparsity or choose more weights'
        )
    counts: dict[str, int] = {}
    open_params = dict(params)
    while open_params:
        shares = rule(open_params, left)
        dense = {n: sizes[n] for n in shares if shares[n] >= DENSE_FROM * sizes[n]}
        after = left - sum(dense.values())
        if not dense or after < len(open_params) - len(dense):
            counts |= _round_to_sum(shares, sizes, left)
            break
        counts |= dense
        open_params = {name: params[name] for name in shares if name not in dense}
        left = after
    return {name: counts[name] for name in params}


def _round_to_sum(
    shares: Mapping[str, float], sizes: Mapping[str, int], total: int
) -> dict[str, int]:
    """Round shares to whole numbers in [1, size] that add up to a total."""
    counts = {name: min(max(int(s), 1), sizes[name]) for name, s in shares.items()}
    by_remainder = sorted(shares, key=lambda name: int(shares[name]) - shares[name])
    while missing := total - sum(counts.values()):
        step = 1 if missing > 0 else -1
        for name in by_remainder[::step]:
            if missing and 1 <= counts[name] + step <= sizes[name]:
                counts[name] += step
                missing -= step
    return counts


def draw_masks(
    params: Mapping[str, Tensor], counts: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw which weights are active, uniformly within each layer.

    Args:
        params: The layers' weights by name.
        counts: Number of active weights per layer.
        generator: On the CPU, so that every device draws the same.

    Returns:
        Boolean masks on the weights' devices.
    """
    masks = {}
    for name, param in params.items():
        mask = torch.zeros(param.numel(), dtype=torch.bool)
        mask[torch.randperm(param.numel(), generator=generator)[: counts[name]]] = True
        masks[name] = mask.view(param.shape).to(param.device)
    return masks


def share_of_zeros(params: Mapping[str, Tensor]) -> float:
    """Share of the weights that are zero, in [0, 1).

    Zeros of layers that are zero throughout do not count: some are initialised so.
    """
    total = sum(param.numel() for param in params.values())
    return sum(int((p == 0).sum()) for p in params.values() if p.any()) / total


def is_sparse(zeros: float) -> bool:
    """Whether a share of zeros is 1 % or more, as only masks leave it."""
    return 1 - zeros <= DENSE_FROM


def masks_from_zeros(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Boolean masks of weights that were trained sparse, True where one is not zero."""
    return {name: param.detach() != 0 for name, param in params.items()}
