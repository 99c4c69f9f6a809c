"""How many weights of each layer are active at first, and which.

A rule gives every layer a share of the active weights; `allocate` makes whole numbers
of the shares that add up to exactly what was asked for.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from .masks import DENSE

#: From layers and the number of active weights to the share of each layer.
Rule = Callable[[Mapping[str, Tensor], int], dict[str, float]]


def uniform(params: Mapping[str, Tensor], active: int) -> dict[str, float]:
    """The same density for every layer.

    Args:
        params: The layers' weights by name.
        active: How many weights shall be active in all.

    Returns:
        How many of each layer, not rounded.
    """
    total = sum(param.numel() for param in params.values())
    return {name: active * param.numel() / total for name, param in params.items()}


def erk(params: Mapping[str, Tensor], active: int) -> dict[str, float]:
    """Erdos-Renyi-Kernel: density proportional to sum over product of the shape.

    Evci et al., "Rigging the Lottery" (RigL), ICML 2020, section 3. A share may be
    larger than its layer; `allocate` then makes the layer dense.

    Args:
        params: The layers' weights by name.
        active: How many weights shall be active in all.

    Returns:
        How many of each layer, not rounded.
    """
    total = sum(sum(param.shape) for param in params.values())
    return {name: active * sum(param.shape) / total for name, param in params.items()}


def snip(scores: Mapping[str, Tensor]) -> Rule:
    """Rule by connection sensitivity: the best scores of all layers together.

    Lee et al., "SNIP", ICLR 2019; as in SLaK only the layers' densities are kept.

    Args:
        scores: |weight * gradient| of each layer, of the weights' shapes.

    Returns:
        The rule.
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

    Layers to which the rule gives a density of 0.99 or more become dense, and what
    is left is divided anew among the others.

    Args:
        params: The layers' weights by name.
        density: Active weights over all, in (0, 1).
        rule: `uniform`, `erk` or what `snip` returns.

    Returns:
        The number for each layer, at least 1; their sum is the requested number,
        rounded to a whole one.

    Raises:
        ValueError: If that is fewer than one weight a layer.
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
        dense = [name for name, share in shares.items() if share >= DENSE * sizes[name]]
        after = left - sum(sizes[name] for name in dense)
        if not dense or after < len(open_params) - len(dense):
            counts |= _round_to_sum(shares, sizes, left)
            break
        for name in dense:
            counts[name] = sizes[name]
            del open_params[name]
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
        room = [
            name
            for name in by_remainder[::step]
            if (counts[name] < sizes[name] if step > 0 else counts[name] > 1)
        ]
        for name in room[: abs(missing)]:
            counts[name] += step
    return counts


def draw_masks(
    params: Mapping[str, Tensor], counts: Mapping[str, int], generator: torch.Generator
) -> dict[str, Tensor]:
    """Draw which weights are active, each layer's with equal probability.

    Args:
        params: The layers' weights by name.
        counts: How many of each layer.
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
    """Share of the weights that are zero.

    Layers of nothing but zeros do not count: some are initialised like that.
    """
    total = sum(param.numel() for param in params.values())
    counts = [(param.numel(), int(param.count_nonzero())) for param in params.values()]
    return sum(size - nonzero for size, nonzero in counts if nonzero) / total


def trained_sparse(params: Mapping[str, Tensor]) -> bool:
    """Whether 1 % or more of the weights are zero, as only masks leave them."""
    return share_of_zeros(params) >= 1 - DENSE


def check_not_sparse(params: Mapping[str, Tensor]) -> None:
    """Refuse to draw masks over weights that were trained with others.

    Raises:
        ValueError: If they were.
    """
    if trained_sparse(params):
        raise ValueError(
            f'{share_of_zeros(params):.1%} of the weights that the training starts '
            'from are zero, so they were trained sparse; keep the zeros with '
            "mode='fixed' or 'auto', or start from them with init='resume'"
        )


def masks_of_zeros(params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take the masks from the zeros of weights that were trained sparse.

    Raises:
        ValueError: If the weights have no zeros to speak of.
    """
    if not trained_sparse(params):
        raise ValueError(
            f'{share_of_zeros(params):.1%} of the weights are zero, so there is no '
            'sparsity to keep; load a checkpoint that was trained sparse (load_from or '
            "init_cfg), or set mode='dynamic' and init='snip'"
        )
    return {name: param.detach() != 0 for name, param in params.items()}
