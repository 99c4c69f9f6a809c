"""The large kernels of a backbone by stage and block, as dense ones."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.layers import ConvNorm, PeripheralConv2d, ReparamDepthwise, fold_norm
from pelk_mm.ops import expand_kernel

#: Weights of which less is not zero count as sparse: a few zeros come from rounding.
DENSE = 0.999


@dataclass(frozen=True)
class Part:
    """One of the parallel convolutions of a block.

    Attributes:
        name: Its name in the block's mixer.
        weight: Its kernels with the norm folded in, (C, kh, kw), the grid expanded.
        nonzero: Where the weights themselves are not zero, of the same shape.
    """

    name: str
    weight: Tensor
    nonzero: Tensor


@dataclass(frozen=True)
class Block:
    """The kernels of a block.

    Attributes:
        name: The block's name in the backbone.
        parts: Its parallel convolutions, the largest first.
        size: K, the longest side of its kernels.
    """

    name: str
    parts: tuple[Part, ...]
    size: int

    def kernel(self) -> Tensor:
        """Sum of the parts, (C, K, K); 0 where none of them has a tap."""
        return torch.stack([self.framed(part.weight) for part in self.parts]).sum(0)

    def framed(self, kernels: Tensor) -> Tensor:
        """Centre kernels (..., kh, kw) among zeros to (..., K, K)."""
        dh, dw = ((self.size - side) // 2 for side in kernels.shape[-2:])
        return F.pad(kernels, (dw, dw, dh, dh))

    def taps(self, part: Part | None = None) -> Tensor:
        """Taps of one part, or of all of them: True in (K, K)."""
        parts = self.parts if part is None else (part,)
        masks = [self.framed(torch.ones(each.weight.shape[-2:])) for each in parts]
        return torch.stack(masks).amax(0) > 0

    def shares(self) -> Tensor:
        """Share of the channels that have a weight at each tap, (K, K)."""
        nonzero = [self.framed(part.nonzero.float()) for part in self.parts]
        return torch.stack(nonzero).amax(0).mean(0)

    def largest(self, count: int) -> list[int]:
        """Channels whose kernels have the largest norms, the largest first."""
        norms = self.kernel().flatten(1).norm(dim=1)
        return norms.argsort(descending=True, stable=True)[:count].tolist()


@dataclass(frozen=True)
class StageKernels:
    """What there is to see of a stage.

    Attributes:
        number: The stage, from 1.
        blocks: Its blocks with large kernels.
        width: Channels of the stage's feature map.
        sharing_grid: Cell sizes along an axis of PeLK's kernels, or None.
        embedding: PeLK's positional embedding (C_conv, K, K), None without one.
        densities: Share of non-zero weights of each layer, by the kind of the layer
            and the number of the block from 0.
        notes: What the kernels contain or lack.
    """

    number: int
    blocks: Sequence[Block]
    width: int
    sharing_grid: tuple[int, ...] | None
    embedding: Tensor | None
    densities: Mapping[str, Mapping[int, float]]
    notes: Sequence[str] = field(default=())

    @property
    def sparse(self) -> bool:
        """Whether a layer has zeros."""
        shares = (each for kind in self.densities.values() for each in kind.values())
        return min(shares, default=1.0) < DENSE


@torch.no_grad()
def stage_kernels(backbone: LargeKernelBackbone, stage: int) -> StageKernels:
    """Take the kernels of a stage apart.

    Args:
        backbone: The backbone, in evaluation mode.
        stage: Index of the stage, from 0.
    """
    module: Any = backbone.stages[stage]
    notes: dict[str, None] = {}
    blocks = []
    densities: dict[str, dict[int, float]] = {}
    grid = None
    for number, block in enumerate(module.blocks):
        for name, weight in block.named_parameters():
            if weight.ndim in (2, 4):
                kind = name.removeprefix('mixer.').partition('.')[0]
                share = weight.count_nonzero().item() / max(weight.numel(), 1)
                densities.setdefault(kind, {})[number] = share
        mixer = getattr(block, 'mixer', None)
        if isinstance(mixer, ReparamDepthwise):
            name = f'stages.{stage}.blocks.{number}'
            parts = tuple(_part(*child, notes) for child in mixer.named_children())
            size = max(side for part in parts for side in part.weight.shape[-2:])
            blocks.append(Block(name, parts, size))
            first = next(m for m in mixer.modules() if hasattr(m, 'kernel_size'))
            grid = getattr(first, 'sharing_grid', None)
    embedding = getattr(module, 'position_embedding', None)
    if grid is not None and embedding is None:
        notes['the deployment form has the positional embedding in its biases'] = None
    return StageKernels(
        stage + 1,
        blocks,
        backbone.channels[stage],
        grid,
        None if embedding is None else embedding.detach().float(),
        densities,
        tuple(notes),
    )


def _part(name: str, module: nn.Module, notes: dict[str, None]) -> Part:
    """Kernels of a branch of a mixer."""
    conv: Any = module.conv if isinstance(module, ConvNorm) else module
    own = conv.sum_weight() if isinstance(conv, PeripheralConv2d) else conv.weight
    folded = None
    if isinstance(module, ConvNorm):
        problems = list(module.unfoldable())
        if problems:
            notes[f'without the norm after the convolution, which {problems[0][1]}'] = (
                None
            )
        elif not isinstance(module.norm, nn.Identity):
            notes['with the BatchNorms after the convolutions folded in'] = None
            folded, _ = fold_norm(own, conv.bias, module.norm)
    weight = (own if folded is None else folded).detach().float().squeeze(1)
    nonzero = conv.weight.squeeze(1) != 0
    if isinstance(conv, PeripheralConv2d):
        weight = expand_kernel(weight, conv.sharing_grid)
        nonzero = expand_kernel(nonzero.float(), conv.sharing_grid) > 0
    return Part(name, weight, nonzero)
