"""Masks: which weights of a model are active, and the others kept at zero."""

import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

#: A layer of this density or more is not worth masking and counts as dense.
DENSE_FROM = 0.99

#: Value that a grown weight starts from: too small to change any output, but not zero,
#: so that the zeros of a model are its mask at any moment, even where a tap of a large
#: kernel is out of bounds on small maps and never gets a gradient.
GROWN_VALUE = 1e-20

#: Size along an axis from which a depthwise kernel counts as large.
LARGE_KERNEL = 7


def select_parameters(
    model: nn.Module,
    patterns: Sequence[str] = (r'^backbone\.',),
    large_kernels_only: bool = False,
) -> dict[str, nn.Parameter]:
    """Choose the parameters that may become sparse.

    Args:
        model: A segmenter, a detector or a part of one.
        patterns: Regular expressions; a parameter is chosen if one of them is found
            in its name.
        large_kernels_only: Whether to choose depthwise kernels of 7 or more along an
            axis alone.

    Returns:
        The trainable 2-D and 4-D parameters by name, in the model's order.

    Raises:
        ValueError: If there are none.
    """
    chosen = {
        name: param
        for name, param in model.named_parameters()
        if param.ndim in (2, 4)
        and param.requires_grad
        and any(re.search(pattern, name) for pattern in patterns)
        and (not large_kernels_only or _is_large_kernel(param))
    }
    if not chosen:
        parts = ', '.join(name for name, _ in model.named_children())
        raise ValueError(
            f'no trainable {"large kernel" if large_kernels_only else "weight"} of '
            f'{type(model).__name__} (parts: {parts}) matches patterns '
            f'{list(patterns)}; give patterns that match, or turn sparsity off'
        )
    return chosen


def _is_large_kernel(param: Tensor) -> bool:
    return param.shape[1] == 1 and max(param.shape[2:], default=0) >= LARGE_KERNEL


class SparsityMasks:
    """Masks over parameters, which stay the model's own tensors.

    Args:
        params: The chosen parameters by name.
        masks: For each of them a tensor of its shape, True (or not zero) where the
            weight is active. Parameters of density 0.99 or more get no mask.

    Raises:
        ValueError: If the two differ in names or shapes, or a mask is zero throughout.
    """

    def __init__(
        self, params: Mapping[str, nn.Parameter], masks: Mapping[str, Tensor]
    ) -> None:
        self.params: dict[str, nn.Parameter] = {}
        self.dense: dict[str, nn.Parameter] = {}
        #: Of the parameters' dtype: their product is far faster than with booleans.
        self.masks: dict[str, Tensor] = {}
        if differing := sorted(params.keys() ^ masks.keys()):
            raise ValueError(
                f'the masks are not those of the chosen weights: {differing} differ'
            )
        for name, param in params.items():
            if param.shape != masks[name].shape:
                raise ValueError(
                    f'the mask of {name} has shape {tuple(masks[name].shape)}, its '
                    f'weight {tuple(param.shape)}'
                )
            active = int(masks[name].count_nonzero())
            if active == 0:
                raise ValueError(f'the mask of {name} leaves no weight active')
            if active >= DENSE_FROM * param.numel():
                self.dense[name] = param
            else:
                self.params[name] = param
                self.masks[name] = masks[name].to(param)

    @property
    def total(self) -> int:
        """Weights of all chosen parameters, dense ones included."""
        return sum(p.numel() for p in (*self.params.values(), *self.dense.values()))

    @property
    def active(self) -> int:
        """Active weights of all chosen parameters."""
        return self.total - sum(int((m == 0).sum()) for m in self.masks.values())

    @property
    def density(self) -> float:
        """Active weights over all, in (0, 1]."""
        return self.active / self.total

    def layer_densities(self) -> dict[str, float]:
        """Density of every parameter that has a mask."""
        return {name: float(mask.float().mean()) for name, mask in self.masks.items()}

    @torch.no_grad()
    def apply(self, optimizer: Optimizer | None = None) -> None:
        """Set inactive weights, and their state in an optimizer, to zero.

        Args:
            optimizer: Momentum, both moments of Adam and any other state of a
                weight's shape is masked as the weight is.
        """
        for name, param in self.params.items():
            state = {} if optimizer is None else optimizer.state.get(param, {})
            for value in (param, *state.values()):
                if torch.is_tensor(value) and value.shape == param.shape:
                    value.mul_(self.masks[name])

    @torch.no_grad()
    def apply_to(self, model: nn.Module) -> None:
        """Mask the parameters of the same names in a copy of the model."""
        copies = dict(model.named_parameters())
        for name, mask in self.masks.items():
            copies[name].mul_(mask.to(copies[name]))

    @torch.no_grad()
    def fill_active_zeros(self) -> None:
        """Set active weights that are exactly zero to `GROWN_VALUE`."""
        for name, param in self.params.items():
            param.masked_fill_((param == 0) & self.masks[name].bool(), GROWN_VALUE)

    @torch.no_grad()
    def replace(
        self, masks: Mapping[str, Tensor], optimizer: Optimizer | None = None
    ) -> int:
        """Change to new masks; newly active weights start from `GROWN_VALUE`.

        Args:
            masks: For each parameter that has a mask, the new one.
            optimizer: As for `apply`.

        Returns:
            Number of weights that were inactive before and are active now.
        """
        new = {name: masks[name].to(mask) for name, mask in self.masks.items()}
        grown = sum(int((new[name] > mask).sum()) for name, mask in self.masks.items())
        self.masks = new
        self.apply(optimizer)
        self.fill_active_zeros()
        return grown

    def checksum(self) -> int:
        """CRC-32 of the masks: equal on two processes whose masks are equal."""
        bits = torch.cat([mask.flatten().bool() for mask in self.masks.values()])
        return zlib.crc32(bits.cpu().numpy().data)

    def state_dict(self) -> dict[str, Any]:
        """Masks as boolean tensors on the CPU, and the names of dense parameters."""
        return dict(
            masks={name: mask.bool().cpu() for name, mask in self.masks.items()},
            dense=list(self.dense),
        )

    @classmethod
    def from_state_dict(
        cls, params: Mapping[str, nn.Parameter], state: Mapping[str, Any]
    ) -> 'SparsityMasks':
        """Restore the masks of a `state_dict`.

        Raises:
            ValueError: If they belong to other parameters.
        """
        saved, dense = state['masks'], state['dense']
        if differing := sorted({*saved, *dense} ^ params.keys()):
            raise ValueError(
                f'the checkpoint has masks of other weights: {", ".join(differing)} '
                'differ; resume with the model and the sparsity settings that it was '
                'trained with'
            )
        masks = {
            name: torch.ones_like(param) if name in dense else saved[name]
            for name, param in params.items()
        }
        return cls(params, masks)
