"""The large kernels of a backbone by stage and block, as dense ones."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import initialize
from torch import Tensor, nn

from pelk_mm import backbones
from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.checkpoints.files import CheckpointError, first_line, read_checkpoint
from pelk_mm.checkpoints.misfit import COUNTER
from pelk_mm.checkpoints.rules import BACKBONE_TYPES
from pelk_mm.checkpoints.weights import (
    AVERAGED,
    check_tensors,
    find_weights,
    select_weights,
)
from pelk_mm.config_types import find_class, find_framework
from pelk_mm.layers import ConvNorm, PeripheralConv2d, ReparamDepthwise, fold_norm
from pelk_mm.ops import expand_kernel

#: Weights of which less is not zero count as sparse: a few zeros come from rounding.
DENSE = 0.999

#: Where the pictured weights are in a backbone's names.
PICTURED = ('.mixer.', '.position_embedding')


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


def arch_config(name: str) -> dict[str, Any]:
    """Config of a backbone by a name such as ``pelk-tiny-101``.

    Raises:
        ValueError: If there is no such architecture.
    """
    known = {
        f'{family}-{arch}'.lower(): dict(type=kind, arch=arch)
        for family, kind in BACKBONE_TYPES.items()
        for arch in getattr(backbones, kind).arch_settings
    }
    if name.lower() not in known:
        raise ValueError(
            f'there is no architecture {name!r}; choose one of {", ".join(known)}'
        )
    return known[name.lower()]


def find_backbone(cfg: Config) -> tuple[dict[str, Any], str]:
    """The config of the first backbone of ours in a model's, and its name there.

    Raises:
        ValueError: If there is none.
    """
    scope = find_framework(cfg) or cfg.get('default_scope')
    for name, node in _dicts(cfg.get('model')):
        kind = find_class(node['type'], scope)
        if isinstance(kind, type) and issubclass(kind, LargeKernelBackbone):
            return {**node, 'type': kind}, name
    ours = ', '.join(BACKBONE_TYPES.values())
    raise ValueError(f'the model of {cfg.filename} has no backbone of {ours}')


def _dicts(node: Any, name: str = '') -> Iterator[tuple[str, dict[str, Any]]]:
    """Dicts with a ``type`` in a config, the outermost first, and their names."""
    children: Iterable[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        if node.get('type') is not None:
            yield name, node
        children = node.items()
    elif isinstance(node, (list, tuple)):
        children = enumerate(node)
    for key, child in children:
        yield from _dicts(child, f'{name}.{key}'.lstrip('.'))


def _class(cfg: Mapping[str, Any]) -> type[LargeKernelBackbone]:
    kind = cfg['type']
    return getattr(backbones, kind) if isinstance(kind, str) else kind


def _build(cfg: Mapping[str, Any], device: str) -> LargeKernelBackbone:
    """Build a backbone of a config, with the default initialisation.

    Raises:
        ValueError: If an argument is wrong.
    """
    left_out = ('type', 'init_cfg', 'partial_weights')
    arguments = {key: value for key, value in cfg.items() if key not in left_out}
    try:
        with torch.device(device):
            return _class(cfg)(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f'the backbone cannot be built: {first_line(error)}'
        ) from error


def random_backbone(cfg: Mapping[str, Any]) -> LargeKernelBackbone:
    """A backbone with random weights, always the same.

    Raises:
        ValueError: If the config is wrong.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        backbone = _build(cfg, 'cpu')
        # As init_weights does, without its line for every parameter.
        initialize(backbone, backbone.init_cfg)
    return backbone.eval()


def load_backbone(
    cfg: Mapping[str, Any], name: str, checkpoint: Path
) -> LargeKernelBackbone:
    """A backbone with the weights of a file, in whichever form these are.

    Args:
        cfg: The backbone's config.
        name: Its name in the model, such as ``backbone``.
        checkpoint: File of the model, or of the backbone alone.

    Raises:
        ValueError: If the config is wrong, or the file cannot be read or does not fit.
    """
    content = read_checkpoint(checkpoint)
    try:
        key, _ = find_weights(content)
        weights = select_weights(content, True if key in AVERAGED else None).tensors
        weights = {k.removeprefix('module.'): v for k, v in weights.items()}
        prefix = f'{name}.' if any(k.startswith(f'{name}.') for k in weights) else ''
        weights = {
            k.removeprefix(prefix): v
            for k, v in weights.items()
            if k.startswith(prefix)
        }
        backbone = _in_form_of(weights, cfg)
        # What does not fit is refused by the backbone with cause and remedy.
        backbone.load_state_dict(weights, strict=False, assign=True)
        check_tensors(
            {
                name: tensor
                for name, tensor in backbone.state_dict().items()
                if any(part in name for part in PICTURED)
            }
        )
    except CheckpointError as error:
        raise CheckpointError(f'{checkpoint}: {error}') from error
    return backbone.eval()


def _in_form_of(
    weights: Mapping[str, Tensor], cfg: Mapping[str, Any]
) -> LargeKernelBackbone:
    """A backbone without memory, in that form whose names are closest to the weights'.

    The config's own comes first among equals.
    """
    merging = [] if issubclass(_class(cfg), backbones.PeLK) else ['small_kernel_merged']
    options = ['deploy', *merging]
    forms = product((False, True), repeat=len(options))
    candidates = [
        _build({**cfg, **form}, 'meta')
        for form in ({}, *(dict(zip(options, form, strict=True)) for form in forms))
    ]
    names = _without_counters(weights)
    return min(
        candidates, key=lambda each: len(_without_counters(each.state_dict()) ^ names)
    )


def _without_counters(names: Iterable[str]) -> set[str]:
    return {name for name in names if COUNTER not in name}


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
    conv: Any = module
    folded = None
    if isinstance(module, ConvNorm):
        conv = module.conv
        problems = list(module.unfoldable())
        if problems:
            notes[f'without the norm after the convolution, which {problems[0][1]}'] = (
                None
            )
        elif not isinstance(module.norm, nn.Identity):
            notes['with the BatchNorms after the convolutions folded in'] = None
            folded, _ = fold_norm(conv.weight, conv.bias, module.norm)
    weight = (conv.weight if folded is None else folded).detach().float().squeeze(1)
    nonzero = conv.weight.squeeze(1) != 0
    if isinstance(conv, PeripheralConv2d):
        weight = expand_kernel(weight, conv.sharing_grid)
        nonzero = expand_kernel(nonzero.float(), conv.sharing_grid) > 0
    return Part(name, weight, nonzero)
