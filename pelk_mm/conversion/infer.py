"""Infer the backbone that a state dict belongs to from its names and shapes."""

import re
from collections.abc import Mapping
from typing import Any

import torch

from pelk_mm import backbones
from pelk_mm.checkpoints.files import CheckpointError, first_line
from pelk_mm.checkpoints.rules import BACKBONE_TYPES
from pelk_mm.layers import make_sharing_grid

Shapes = Mapping[str, tuple[int, ...]]


def infer_backbone(shapes: Shapes, family: str) -> dict[str, Any]:
    """Config of the backbone that tensors of these names and shapes belong to.

    A few tensors decide; the caller compares the others with `build_backbone`.

    Args:
        shapes: Shape of each tensor by this package's name, without prefix.
        family: ``pelk``, ``slak`` or ``replknet``.

    Returns:
        Config with ``type``, ``arch`` (a name if there is one of these sizes and a
        dict if not) and every other argument that differs from its default.

    Raises:
        CheckpointError: If a tensor that decides is missing or has another rank.
    """
    layout = _Layout(shapes)
    cfg: dict[str, Any] = dict(type=BACKBONE_TYPES[family])
    infer = {'pelk': _pelk, 'slak': _slak, 'replknet': _replknet}[family]
    settings = infer(layout, cfg)
    cfg['arch'] = simplify_arch(family, settings)
    # Without any output norm, as in a classifier, the maps of all stages are outputs.
    outputs = tuple(i for i in layout.stages if layout.has('', start=f'norm{i}.'))
    outputs = outputs or tuple(layout.stages)
    if outputs != (0, 1, 2, 3):
        cfg['out_indices'] = outputs
    return cfg


def classifier_outputs(cfg: dict[str, Any]) -> dict[str, Any]:
    """Arguments of a backbone of ConvNeXt's style inside a classifier.

    Args:
        cfg: Its config, as `infer_backbone` gives it where there are no output norms.
    """
    last = len(stage_settings(cfg)['depths']) - 1
    return dict(out_indices=(last,), output_norms=False)


def build_backbone(cfg: dict[str, Any]) -> backbones.LargeKernelBackbone:
    """Build the backbone of a config on the meta device, shapes without memory.

    Raises:
        CheckpointError: If the config's sizes contradict each other.
    """
    kwargs = {key: value for key, value in cfg.items() if key != 'type'}
    try:
        with torch.device('meta'):
            return getattr(backbones, cfg['type'])(**kwargs)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(
            f'its tensors make no valid {cfg["type"]}: {first_line(error)}'
        ) from error


class _Layout:
    """Shapes by name, and the stages and blocks that the names have."""

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes
        blocks: dict[int, set[int]] = {}
        for name in shapes:
            match = re.match(r'stages\.(\d{1,3})\.blocks\.(\d{1,4})\.', name)
            if match:
                blocks.setdefault(int(match[1]), set()).add(int(match[2]))
        #: Blocks of each stage. The numbers in names are counted, not trusted: one
        #: wild number must not ask for a million blocks.
        self.blocks = [len(blocks.get(i, ())) for i in range(len(blocks))]
        self.stages = range(len(blocks))
        if not self.blocks or 0 in self.blocks:
            raise CheckpointError(
                'cannot infer the architecture: its names have no consecutive stages '
                'with blocks'
            )

    def has(self, end: str, start: str = '') -> bool:
        """Whether there is a name with this end and this start."""
        return any(n.endswith(end) and n.startswith(start) for n in self.shapes)

    def require(self, name: str, rank: int = 4) -> tuple[int, ...]:
        """Shape of a tensor that must be there, of this rank and not empty."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != rank or 0 in shape:
            found = 'is missing' if shape is None else f'has shape {tuple(shape)}'
            raise CheckpointError(f'cannot infer the architecture: {name} {found}')
        return tuple(shape)

    def kernel(self, stage: int, branch: str, step: int = 1) -> tuple[int, ...] | None:
        """Shape of a branch's kernel in the first block that has one, or None."""
        for block in range(0, self.blocks[stage], step):
            for end in ('conv.weight', 'weight'):
                name = f'stages.{stage}.blocks.{block}.mixer.{branch}.{end}'
                if name in self.shapes:
                    return self.require(name)
        return None

    def large_kernels(self, branch: str, step: int = 1) -> list[tuple[int, ...]]:
        """Shape of the large kernel in each stage."""
        kernels = [self.kernel(i, branch, step) for i in self.stages]
        if None in kernels:
            raise CheckpointError(
                'its blocks have no large kernel, as those of ConvNeXt'
            )
        return [kernel for kernel in kernels if kernel]

    def small_kernel(self) -> int | None:
        """Size of the dense form's small kernel, which a merged model does not show."""
        kernel = self.kernel(0, 'small')
        return kernel[2] if kernel else None


def _channels(layout: _Layout, cfg: dict[str, Any], *names: str) -> list[int]:
    """Width of each stage, the outputs of the weights with these names."""
    weights = [layout.require(name) for name in names]
    if weights[0][1] != 3:
        cfg['in_channels'] = weights[0][1]
    return [weight[0] for weight in weights]


def _convnext_settings(layout: _Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    """Settings that PeLK and SLaK have in common."""
    if not layout.has('.norm.weight', start='stages.0.'):
        raise CheckpointError(
            'its blocks have no norms; if it is the deployment form of a RepLKNet, it '
            'needs no conversion'
        )
    names = [f'downsample_layers.{i}.{min(i, 1)}.weight' for i in layout.stages]
    if not layout.has('.gamma'):
        cfg['layer_scale_init_value'] = 0
    return dict(channels=_channels(layout, cfg, *names), depths=layout.blocks)


def _slak(layout: _Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    settings = _convnext_settings(layout, cfg)
    decomposed = layout.kernel(0, 'vertical') is not None
    branch = 'vertical' if decomposed else 'large'
    kernels = layout.large_kernels(branch)
    settings['kernel_sizes'] = [kernel[2] for kernel in kernels]
    widths = [kernel[0] for kernel in kernels]
    if widths != settings['channels']:
        raise CheckpointError(
            f'its large kernels have {widths} channels in stages of '
            f'{settings["channels"]}; if it is the deployment form of a PeLK, it needs '
            'no conversion'
        )
    merged = layout.has(f'mixer.{branch}.weight')
    if merged:
        cfg['small_kernel_merged'] = True
    elif not layout.has('.norm.weight', start='stages.0.blocks.0.mixer.'):
        cfg['norm_cfg'] = None  # the released script's --bn False
    if decomposed:
        return settings | dict(small_kernel=kernels[0][3])
    small = {} if merged else dict(small_kernel=layout.small_kernel())
    return settings | small | dict(decomposed=False)


def _replknet(layout: _Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    names = [f'downsample_layers.{i}.0.conv.weight' for i in layout.stages]
    channels = _channels(layout, cfg, *names)
    kernels = layout.large_kernels('large', step=2)
    hidden = layout.require('stages.0.blocks.1.pointwise_conv1.conv.weight')[0]
    settings: dict[str, Any] = dict(
        channels=channels,
        depths=[-(-blocks // 2) for blocks in layout.blocks],
        kernel_sizes=[kernel[2] for kernel in kernels],
        dw_ratio=kernels[0][0] / channels[0],
        ffn_ratio=hidden / channels[0],
    )
    if layout.has('mixer.large.weight'):
        cfg['small_kernel_merged'] = True
    else:
        settings['small_kernel'] = layout.small_kernel()
    # The classifier of XL has no output norms, but every dense-prediction model of
    # it has.
    if layout.has('', start='norm') or simplify_arch('replknet', settings) == 'XL':
        cfg['norm_intermediate_features'] = True
    return settings


def _pelk(layout: _Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    settings = _convnext_settings(layout, cfg)
    names = [f'stages.{i}.position_embedding' for i in layout.stages]
    embeddings = [layout.require(name, rank=3) for name in names]
    settings['kernel_sizes'] = [embedding[1] for embedding in embeddings]
    ratio = 3 / 8
    for embedding, width in zip(embeddings, settings['channels'], strict=True):
        if int(width * ratio) != embedding[0]:
            ratio = embedding[0] / width
    settings |= dict(conv_ratio=ratio, small_kernel=layout.small_kernel())
    if 'stages.0.blocks.0.mixer.large.norm.weight' in layout.shapes:
        cfg['norm_cfg'] = dict(type='BN')
    return settings | dict(central_radius=_central_radius(layout, settings))


def _central_radius(layout: _Layout, settings: dict[str, Any]) -> int | list[int]:
    """Radius of the stages' fine-grained centres.

    Several radii can make the same number of cells. A named architecture's is
    preferred, then the smallest that all stages can share.
    """
    candidates = []
    kernels = layout.large_kernels('large')
    for size, (_, _, cells, _) in zip(settings['kernel_sizes'], kernels, strict=True):
        radii = range(size // 2 + 1) if size % 2 else ()
        candidates.append(
            [r for r in radii if len(make_sharing_grid(size, r)) == cells]
        )
        if not candidates[-1]:
            raise CheckpointError(
                f'no sharing grid of the paper has {cells} cells for a {size} x {size} '
                'kernel'
            )
    shared = sorted(set(candidates[0]).intersection(*candidates[1:]))
    for radius in shared:
        arch = simplify_arch('pelk', settings | dict(central_radius=radius))
        if isinstance(arch, str):
            return radius
    return shared[0] if shared else [radii[0] for radii in candidates]


def simplify_arch(family: str, settings: dict[str, Any]) -> str | dict[str, Any]:
    """Name of the architecture with these settings, or the settings less defaults.

    Args:
        family: ``pelk``, ``slak`` or ``replknet``.
        settings: An ``arch`` dict without ``width_factor``. A setting that it lacks
            matches any value: a merged model does not show its ``small_kernel``.
    """
    cls = getattr(backbones, BACKBONE_TYPES[family])
    plain = _plain(settings)
    for name in cls.arch_settings:
        if plain.items() <= stage_settings(dict(type=cls.__name__, arch=name)).items():
            return name
    defaults = cls.arch_defaults.items()
    return {key: v for key, v in settings.items() if (key, v) not in defaults}


def stage_settings(cfg: dict[str, Any]) -> dict[str, Any]:
    """The ``arch`` of a backbone's config, a list of the values of its stages by key.

    ``width_factor`` is in the channels already; optional settings have one value.
    """
    return _plain(getattr(backbones, cfg['type']).resolve_arch(cfg['arch']))


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in settings.items()}
    factor = plain.pop('width_factor', 1)
    plain['channels'] = [int(width * factor) for width in plain['channels']]
    if isinstance(plain.get('central_radius'), int):
        plain['central_radius'] = [plain['central_radius']] * len(plain['channels'])
    return plain
