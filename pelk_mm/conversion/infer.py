"""Infer the backbone that a state dict belongs to from its names and shapes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from pelk_mm import backbones
from pelk_mm.checkpoints.files import CheckpointError
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
    if len(layout.blocks) != 4:
        cfg['out_indices'] = tuple(layout.stages())
    return cfg


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
            f'its tensors make no valid {cfg["type"]}: {str(error).splitlines()[0]}'
        ) from error


def stage_settings(cfg: dict[str, Any]) -> dict[str, Any]:
    """The ``arch`` of a backbone's config as a dict without ``width_factor``."""
    arch = cfg['arch']
    if isinstance(arch, str):
        arch = getattr(backbones, cfg['type']).arch_settings[arch]
    arch = dict(arch)
    factor = arch.pop('width_factor', 1)
    arch['channels'] = [int(width * factor) for width in arch['channels']]
    return arch


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
        if not self.blocks or 0 in self.blocks:
            raise CheckpointError(
                'cannot infer the architecture: its names have no consecutive stages '
                'with blocks'
            )

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def stages(self) -> range:
        """Numbers of the stages."""
        return range(len(self.blocks))

    def require(self, name: str, rank: int) -> tuple[int, ...]:
        """Shape of a tensor that must be there, of this rank and not empty."""
        shape = self.shapes.get(name)
        if shape is None or len(shape) != rank or 0 in shape:
            found = 'is missing' if shape is None else f'has shape {tuple(shape)}'
            raise CheckpointError(f'cannot infer the architecture: {name} {found}')
        return tuple(shape)

    def mixer(
        self, stage: int, branch: str, block_step: int = 1
    ) -> tuple[int, ...] | None:
        """Shape of a branch's kernel in the first block that has one, or None."""
        for block in range(0, self.blocks[stage], block_step):
            for end in ('conv.weight', 'weight'):
                name = f'stages.{stage}.blocks.{block}.mixer.{branch}.{end}'
                if name in self.shapes:
                    return self.require(name, 4)
        return None

    def merged(self, branch: str) -> bool:
        """Whether the token mixers are in their deployment form."""
        return any(name.endswith(f'mixer.{branch}.weight') for name in self.shapes)


def _convnext_settings(layout: _Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    """Settings that PeLK and SLaK have in common."""
    if not any(re.fullmatch(r'stages\.0\..*\.norm\.weight', name) for name in layout):
        raise CheckpointError(
            'its blocks have no norms; if it is the deployment form of a RepLKNet, it '
            'needs no conversion'
        )
    channels = [
        layout.require(f'downsample_layers.{i}.{min(i, 1)}.weight', 4)[0]
        for i in layout.stages()
    ]
    in_channels = layout.require('downsample_layers.0.0.weight', 4)[1]
    if in_channels != 3:
        cfg['in_channels'] = in_channels
    if not any(name.endswith('.gamma') for name in layout):
        cfg['layer_scale_init_value'] = 0
    return dict(channels=channels, depths=layout.blocks)


def _require_large_kernel(shape: tuple[int, ...] | None) -> tuple[int, ...]:
    if shape is None:
        raise CheckpointError('its blocks have no large kernel, as those of ConvNeXt')
    return shape


def _slak(layout: _Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    settings = _convnext_settings(layout, cfg)
    decomposed = layout.mixer(0, 'vertical') is not None
    branch = 'vertical' if decomposed else 'large'
    kernels = [_require_large_kernel(layout.mixer(i, branch)) for i in layout.stages()]
    settings['kernel_sizes'] = [kernel[2] for kernel in kernels]
    if any(
        kernel[0] != width
        for kernel, width in zip(kernels, settings['channels'], strict=True)
    ):
        raise CheckpointError(
            f'its large kernels have {[kernel[0] for kernel in kernels]} channels in '
            f'stages of {settings["channels"]}; if it is the deployment form of a '
            'PeLK, it needs no conversion'
        )
    if layout.merged(branch):
        cfg['small_kernel_merged'] = True
    if decomposed:
        settings['small_kernel'] = kernels[0][3]
    else:
        settings['decomposed'] = False
        _set_small_kernel(layout, cfg, settings)
    return settings


def _replknet(layout: _Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    channels = [
        layout.require(f'downsample_layers.{i}.0.conv.weight', 4)[0]
        for i in layout.stages()
    ]
    kernels = [
        _require_large_kernel(layout.mixer(i, 'large', 2)) for i in layout.stages()
    ]
    settings = dict(
        channels=channels,
        depths=[-(-blocks // 2) for blocks in layout.blocks],
        kernel_sizes=[kernel[2] for kernel in kernels],
        dw_ratio=kernels[0][0] / channels[0],
        ffn_ratio=layout.require('stages.0.blocks.1.pointwise_conv1.conv.weight', 4)[0]
        / channels[0],
    )
    in_channels = layout.require('downsample_layers.0.0.conv.weight', 4)[1]
    if in_channels != 3:
        cfg['in_channels'] = in_channels
    if layout.merged('large'):
        cfg['small_kernel_merged'] = True
    _set_small_kernel(layout, cfg, settings)
    # The classifier of XL has no output norms, but every dense-prediction model of
    # it has.
    if 'norm0.weight' in layout or simplify_arch('replknet', settings) == 'XL':
        cfg['norm_intermediate_features'] = True
    return settings


def _set_small_kernel(
    layout: _Layout, cfg: dict[str, Any], settings: dict[str, Any]
) -> None:
    """Set the dense form's small kernel, which a merged model does not show."""
    if 'small_kernel_merged' not in cfg:
        small = layout.mixer(0, 'small')
        settings['small_kernel'] = small[2] if small else None


def _pelk(layout: _Layout, cfg: dict[str, Any]) -> dict[str, Any]:
    settings = _convnext_settings(layout, cfg)
    embeddings = [
        layout.require(f'stages.{i}.position_embedding', 3) for i in layout.stages()
    ]
    settings['kernel_sizes'] = [embedding[1] for embedding in embeddings]
    ratio = 3 / 8
    for embedding, width in zip(embeddings, settings['channels'], strict=True):
        if int(width * ratio) != embedding[0]:
            ratio = embedding[0] / width
    settings['conv_ratio'] = ratio
    small = layout.mixer(0, 'small')
    settings['small_kernel'] = small[2] if small else None
    if 'stages.0.blocks.0.mixer.large.norm.weight' in layout:
        cfg['norm_cfg'] = dict(type='BN')
    return settings | dict(central_radius=_central_radius(layout, settings))


def _central_radius(layout: _Layout, settings: dict[str, Any]) -> int | list[int]:
    """Radius of the stages' fine-grained centres.

    Several radii can make the same number of cells. A named architecture's is
    preferred, then the smallest that all stages can share.
    """
    radii = []
    for i, size in enumerate(settings['kernel_sizes']):
        cells = _require_large_kernel(layout.mixer(i, 'large'))[2]
        radii.append(
            [
                radius
                for radius in range(size // 2 + 1)
                if size % 2 and len(make_sharing_grid(size, radius)) == cells
            ]
        )
        if not radii[-1]:
            raise CheckpointError(
                f'no sharing grid of the paper has {cells} cells for a {size} x {size} '
                'kernel'
            )
    shared = sorted(set(radii[0]).intersection(*radii[1:]))
    for radius in shared:
        if isinstance(
            simplify_arch('pelk', settings | dict(central_radius=radius)), str
        ):
            return radius
    return shared[0] if shared else [candidates[0] for candidates in radii]


#: Optional settings of an ``arch`` dict and their defaults.
_DEFAULTS: dict[str, dict[str, Any]] = {
    'pelk': dict(conv_ratio=3 / 8, small_kernel=None),
    'slak': dict(small_kernel=5, decomposed=True),
    'replknet': dict(small_kernel=5, dw_ratio=1, ffn_ratio=4),
}


def simplify_arch(family: str, settings: dict[str, Any]) -> str | dict[str, Any]:
    """Name of the architecture with these settings, or the settings less defaults.

    Args:
        family: ``pelk``, ``slak`` or ``replknet``.
        settings: An ``arch`` dict without ``width_factor``. A setting that it lacks
            matches any value: a merged model does not show its ``small_kernel``.
    """
    cls = getattr(backbones, BACKBONE_TYPES[family])
    defaults = _DEFAULTS[family]
    for name in cls.arch_settings:
        named = defaults | stage_settings(dict(type=cls.__name__, arch=name))
        if all(_plain(settings)[key] == _plain(named)[key] for key in settings):
            return name
    return {
        key: value
        for key, value in settings.items()
        if key not in defaults or value != defaults[key]
    }


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings in a form that compares: lists, and one radius per stage."""
    plain = {
        key: list(value) if isinstance(value, (list, tuple)) else value
        for key, value in settings.items()
    }
    if isinstance(plain.get('central_radius'), int):
        plain['central_radius'] = [plain['central_radius']] * len(plain['channels'])
    return plain
