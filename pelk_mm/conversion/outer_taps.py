"""Taps of large kernels that a training on small maps has never used.

On a map of m x m pixels a tap at offset o sees the map only if ``|o| < m``. Of a larger
kernel than 2 m - 1 the outer taps meet nothing but padding: 47 x 47 at stride 16, where
images of 224 x 224 leave 14 x 14, are 27 x 27 and a rim that no gradient has reached.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.ops import box_sum

from .infer import build_backbone, infer_backbone, stage_settings

#: What can be done about them.
CHOICES = ('keep', 'zero', 'crop')

#: Names of the token mixer's branches.
_BRANCHES = ('vertical', 'horizontal', 'large', 'small')


class Trimmed(NamedTuple):
    """Weights without taps that were never used.

    Attributes:
        backbone: Config of the backbone; another than before if kernels were cropped.
        tensors: Tensors that have changed, by name.
        notes: What was done, a phrase for each stage.
    """

    backbone: dict[str, Any]
    tensors: dict[str, Tensor]
    notes: list[str]


def used_sizes(backbone: Mapping[str, Any], image: int) -> list[int]:
    """Largest kernel of each stage all of whose taps see a square image.

    Args:
        backbone: Config of the backbone.
        image: Height and width of the image.

    Returns:
        2 m - 1 for each stage with a map of m x m.

    Raises:
        CheckpointError: If the image is too small for the backbone.
    """
    return _used_sizes(build_backbone(dict(backbone)), backbone, image)


def _used_sizes(model: Any, backbone: Mapping[str, Any], image: int) -> list[int]:
    """`used_sizes` of a backbone that is built already."""
    sizes: list[int] = []
    for stage in model.stages:
        stage.register_forward_hook(
            lambda _, __, output: sizes.append(2 * output.shape[-1] - 1)
        )
    channels = backbone.get('in_channels', 3)
    try:
        model.eval()(torch.empty(1, channels, image, image, device='meta'))
    except ValueError as error:
        raise CheckpointError(
            f'its kernels cannot be those of a training at {image} x {image}: {error}'
        ) from error
    return sizes


def trim_kernels(
    tensors: Mapping[str, Tensor], backbone: dict[str, Any], image: int, crop: bool
) -> Trimmed:
    """Set taps that square images of a size leave unused to zero, or cut them off.

    On images up to that size the backbone computes what it did before. PeLK's
    positional embedding is multiplied with every tap, used or not (equation 3), so what
    the lost ones contribute to each channel is moved to the others: by the smallest
    change of the embedding for which all blocks of the stage have their sums again.

    A cell of a sharing grid that is partly used keeps its parameter; only cropping
    makes it smaller.

    Args:
        tensors: The backbone's weights by name.
        backbone: Its config.
        image: Height and width of the images that it was trained with.
        crop: Whether to make kernels smaller instead of their outer taps zero.

    Raises:
        CheckpointError: If the image is too small for the backbone, or for its small
            kernels where it is to be cropped.
    """
    settings = stage_settings(backbone)
    model: Any = build_backbone(backbone)
    changed: dict[str, Tensor] = {}
    notes = []
    for stage, used in enumerate(_used_sizes(model, backbone, image)):
        size = settings['kernel_sizes'][stage]
        if size <= used:
            continue
        small = settings.get('small_kernel')
        if crop and small and small > used:
            raise CheckpointError(
                f'images of {image} x {image} use {used} x {used} taps in stage '
                f'{stage}, fewer than its small kernels have; leave --outer-taps out'
            )
        kept = used
        if backbone['type'] == 'PeLK':
            grid = model.stages[stage].sharing_grid
            trimmed, kept = _trim_shared(tensors, grid, stage, used, crop)
            changed |= trimmed
        changed |= {
            name: _trim_dense(tensor, used, crop)
            for name, tensor in _kernels(tensors, stage).items()
            if '.large.' not in name or backbone['type'] != 'PeLK'
        }
        if kept < size:
            notes.append(
                f'stage {stage}: kernels of {size} x {size}, of which images of '
                f'{image} x {image} use {used} x {used}, '
                + ('are' if crop else 'are zero outside of')
                + f' {kept} x {kept}'
            )
    if crop and changed:
        shapes = {name: tuple(t.shape) for name, t in {**tensors, **changed}.items()}
        arch = infer_backbone(shapes, backbone['type'].lower())['arch']
        backbone = backbone | dict(arch=arch)
    return Trimmed(backbone, changed, notes)


def _kernels(tensors: Mapping[str, Tensor], stage: int) -> dict[str, Tensor]:
    """Depthwise kernels of a stage's token mixers by name."""
    start = f'stages.{stage}.blocks.'
    ends = [
        f'.mixer.{branch}.{end}'
        for branch in _BRANCHES
        for end in ('conv.weight', 'weight')
    ]
    return {
        name: tensor
        for name, tensor in tensors.items()
        if name.startswith(start) and name.endswith(tuple(ends)) and tensor.ndim == 4
    }


def _trim_dense(kernel: Tensor, used: int, crop: bool) -> Tensor:
    """Trim kernels of shape (..., kh, kw)."""
    edges = [max(0, (size - used) // 2) for size in kernel.shape[-2:]]
    rows, columns = (
        slice(edge, size - edge)
        for edge, size in zip(edges, kernel.shape[-2:], strict=True)
    )
    inside = kernel[..., rows, columns]
    if crop:
        return inside.clone()
    trimmed = torch.zeros_like(kernel)
    trimmed[..., rows, columns] = inside
    return trimmed


def cut_grid(sharing_grid: Sequence[int], used: int) -> list[int]:
    """What is left of each cell of a sharing grid in the middle ``used`` positions."""
    edge = (sum(sharing_grid) - used) // 2
    left, start = [], 0
    for size in sharing_grid:
        end = start + size
        inner = min(end, edge + used) - max(start, edge)
        left.append(max(0, inner))
        start = end
    return left


def _trim_shared(
    tensors: Mapping[str, Tensor],
    grid: Sequence[int],
    stage: int,
    used: int,
    crop: bool,
) -> tuple[dict[str, Tensor], int]:
    """Trim the kernels of a stage of PeLK, and its positional embedding.

    Returns:
        Tensors that have changed, by name, and the size up to which taps are kept.
    """
    left = cut_grid(grid, used)
    kept = torch.tensor([i for i, size in enumerate(left) if size])
    names = [n for n in _kernels(tensors, stage) if '.large.' in n]
    cells = [left[i] if crop else grid[i] for i in kept]
    if sum(cells) == sum(grid):
        return {}, sum(grid)
    name = f'stages.{stage}.position_embedding'
    whole = tensors[name].double()
    # (C, blocks, cells): the parameters of all blocks that share the embedding.
    weights = torch.stack([tensors[n].squeeze(1).double() for n in names], dim=1)
    inner = weights[..., kept[:, None], kept]
    sums = torch.einsum('cbij,cij->cb', weights, box_sum(whole, grid))
    embedding = _trim_dense(whole, sum(cells), crop=True)
    missing = sums - torch.einsum('cbij,cij->cb', inner, box_sum(embedding, cells))
    embedding = embedding + _spread(inner, missing, cells)
    changed = {}
    for block, kernel in enumerate(names):
        dtype = tensors[kernel].dtype
        if crop:
            new = inner[:, block]
        else:
            new = torch.zeros_like(weights[:, block])
            new[..., kept[:, None], kept] = inner[:, block]
        changed[kernel] = new.unsqueeze(1).to(dtype)
    if not crop:
        edge = (sum(grid) - sum(cells)) // 2
        embedding = F.pad(embedding, (edge,) * 4)
    changed[name] = embedding.to(tensors[name].dtype)
    return changed, sum(cells)


def _spread(weights: Tensor, missing: Tensor, cells: Sequence[int]) -> Tensor:
    """Smallest change of an embedding that adds a number to each block's sum.

    Args:
        weights: Parameters of all blocks, (C, blocks, k', k').
        missing: What to add, (C, blocks).
        cells: Cell sizes along either axis, k' of them, with sum K.

    Returns:
        The change, (C, K, K), constant in every rectangle of the grid.
    """
    sizes = torch.tensor(cells)
    # A change by 1 in a rectangle changes its sum by its area, and costs its area.
    roots = sizes.outer(sizes).double().sqrt().flatten()
    scaled = weights.flatten(2) * roots
    steps = torch.linalg.pinv(scaled) @ missing.unsqueeze(-1)
    change = (steps.squeeze(-1) / roots).unflatten(-1, (len(cells), len(cells)))
    return change.repeat_interleave(sizes, -2).repeat_interleave(sizes, -1)
