"""Parameters and multiply-adds of a model, by component and in three ways of counting.

One forward pass on the meta device is counted by torch's `FlopCounterMode`, which sees
our operators through the formulas that `pelk_mm.ops` registers. mmengine's and fvcore's
counters trace with torch.jit, which cannot trace a convolution on the meta device; the
largest models would have to be run with real weights.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from operator import add
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

#: Regions that each head of a cascade sees, by mm's convention.
BOX_REGIONS = 1000
MASK_REGIONS = 100

#: Share of the weights that the papers count as zero.
PAPER_SPARSITY = {'PeLK': 0.4, 'SLaK': 0.4}

Density = Callable[[str, nn.Parameter], float]


def dense(name: str, parameter: nn.Parameter) -> float:
    """Density where no weight is zero."""
    return 1.0


def uniform_density(sparsity: float) -> Density:
    """Density of the backbone's 2-D and 4-D weights where a share of them is zero.

    Raises:
        ValueError: If the share is not in [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f'sparsity {sparsity} is not in [0, 1)')

    def density(name: str, parameter: nn.Parameter) -> float:
        sparse = name.startswith('backbone.') and parameter.ndim in (2, 4)
        return 1 - sparsity if sparse else 1.0

    return density


def checkpoint_density(state_dict: Mapping[str, Tensor], model: nn.Module) -> Density:
    """Density of each parameter in a checkpoint, of the model or of its backbone.

    Raises:
        ValueError: If the checkpoint lacks a parameter of its model or backbone, or
            has it in another shape.
    """
    state_dict = {key.removeprefix('module.'): v for key, v in state_dict.items()}
    expected = dict(model.named_parameters())
    if not any(key.startswith('backbone.') for key in state_dict):
        state_dict = {f'backbone.{key}': value for key, value in state_dict.items()}
        expected = {k: p for k, p in expected.items() if k.startswith('backbone.')}
    for name, parameter in expected.items():
        found = tuple(state_dict[name].shape) if name in state_dict else 'none'
        if found != tuple(parameter.shape):
            raise ValueError(
                f'the checkpoint does not fit the config: {name} has shape '
                f'{tuple(parameter.shape)} in the model, {found} in the checkpoint; '
                'give the config that it was trained with, or convert it first'
            )

    def density(name: str, parameter: nn.Parameter) -> float:
        if name not in expected:
            return 1.0
        return state_dict[name].count_nonzero().item() / max(parameter.numel(), 1)

    return density


class _Probe(nn.Module):
    """The parts of a segmenter, a detector or a backbone that the papers' counter ran.

    As in mm's counter the auxiliary head, which only serves training, does not run,
    and each head of a cascade sees a fixed number of regions.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> None:
        model = self.model
        maps = model.backbone(x)
        if hasattr(model, 'neck'):
            maps = model.neck(maps)
        for head in ('decode_head', 'rpn_head', 'bbox_head', 'head'):
            if hasattr(model, head):
                getattr(model, head)(maps)
        if hasattr(model, 'roi_head'):
            for head in model.roi_head.bbox_head:
                head(x.new_empty(BOX_REGIONS, head.in_channels, *head.roi_feat_size))
            size = model.roi_head.mask_roi_extractor[0].roi_layers[0].output_size
            for head in model.roi_head.mask_head:
                head(x.new_empty(MASK_REGIONS, head.in_channels, *size))


def _expanded_flops(
    x_shape: torch.Size,
    weight_shape: torch.Size,
    sharing_grid: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    """FLOPs of a peripheral convolution as the papers count it: K x K taps."""
    pixels = x_shape[0] * x_shape[2] * x_shape[3]
    return 2 * pixels * weight_shape[0] * sum(sharing_grid) ** 2


#: Operators that the papers count differently from their registered formulas.
AS_PAPERS = {torch.ops.pelk_mm.peripheral_conv2d: _expanded_flops}


def count_multiply_adds(
    model: nn.Module,
    shape: tuple[int, int],
    formulas: Mapping[Any, Callable[..., int]] | None = None,
) -> dict[str, int]:
    """Multiply-adds of each module in one inference, its children's included.

    Args:
        model: A segmenter, a detector, or a module with a ``backbone`` and perhaps a
            ``head``, on the meta device.
        shape: Height and width of the image.
        formulas: FLOPs of operators (two per multiply-add), where they are not to be
            counted by their registered formulas.

    Returns:
        Counts by the module's name; modules that did not run are missing.
    """
    probe = _Probe(model).eval()
    image = torch.empty(1, 3, *shape, device='meta')
    counter = FlopCounterMode(display=False, custom_mapping=dict(formulas or {}))
    with torch.no_grad(), counter:
        probe(image)
    prefix = f'{type(probe).__name__}.model.'
    return {
        name.removeprefix(prefix): sum(counts.values()) // 2
        for name, counts in counter.get_flop_counts().items()
        if name.startswith(prefix)
    }


@dataclass
class Complexity:
    """Size of a component.

    Attributes:
        parameters: All parameters.
        nonzeros: Those that are not zero at the given density.
        paper: Multiply-adds with dense K x K kernels, times the density.
        computed: Multiply-adds that our operators do, zeros included.
    """

    parameters: int = 0
    nonzeros: float = 0.0
    paper: float = 0.0
    computed: float = 0.0

    def __add__(self, other: 'Complexity') -> 'Complexity':
        return Complexity(*map(add, astuple(self), astuple(other)))


def component_of(name: str) -> str:
    """Component that a parameter or module belongs to, by its name."""
    parts = name.split('.')
    return '.'.join(parts[:2]) if parts[0] == 'roi_head' else parts[0]


def complexity(
    model: nn.Module, shape: tuple[int, int], density: Density = dense
) -> dict[str, Complexity]:
    """Parameters and multiply-adds of each component of a model.

    Args:
        model: See `count_multiply_adds`.
        shape: Height and width of the image.
        density: Share of non-zeros of a parameter, given its name and itself.

    Returns:
        Sizes by component, in the model's order.
    """
    sizes: dict[str, Complexity] = defaultdict(Complexity)
    densities = {}
    for name, parameter in model.named_parameters():
        densities[name] = density(name, parameter)
        size = sizes[component_of(name)]
        size.parameters += parameter.numel()
        size.nonzeros += parameter.numel() * densities[name]
    as_papers = count_multiply_adds(model, shape, AS_PAPERS)
    computed = count_multiply_adds(model, shape)
    for name, size in sizes.items():
        # A list of heads does not run itself.
        children = [key for key in computed if key.rpartition('.')[0] == name]
        parts = [name] if name in computed else children
        size.computed = sum(computed[part] for part in parts)
        size.paper = sum(as_papers[part] for part in parts)
    for name, count in as_papers.items():
        if f'{name}.weight' in densities:
            sizes[component_of(name)].paper -= count * (1 - densities[f'{name}.weight'])
    return dict(sizes)


def total(sizes: Mapping[str, Complexity]) -> Complexity:
    """Sum over the components."""
    return sum(sizes.values(), Complexity())


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the model of a config at full size without memory for its weights.

    Raises:
        ValueError: If it is no config of a segmenter or detector.
    """
    if 'backbone' not in cfg.get('model', {}):
        raise ValueError(
            f'{cfg.filename} has no model with a backbone; give the config of a '
            'segmenter or a detector'
        )
    init_default_scope(cfg.get('default_scope'))
    with torch.device('meta'):
        return MODELS.build(cfg.model)


def image_shape(cfg: Config) -> tuple[int, int]:
    """Height and width at which the papers count the model of a config.

    That is the scale of a segmenter's test images, and 800 x 1280 for a detector.
    """
    if cfg.get('default_scope') == 'mmdet':
        return 800, 1280
    width, height = next(
        step['scale']
        for step in cfg.test_dataloader.dataset.pipeline
        if step['type'] == 'Resize'
    )
    return height, width


def format_complexity(sizes: Mapping[str, Complexity]) -> str:
    """Lay the sizes of components out as a Markdown table, the sum at the end."""
    lines = [
        '| component | parameters | non-zero | multiply-adds as the papers count '
        '| as computed here |',
        '|---|--:|--:|--:|--:|',
    ]
    lines += [
        f'| {name} | {size.parameters / 1e6:.2f} M | {size.nonzeros / 1e6:.2f} M '
        f'| {size.paper / 1e9:.2f} G | {size.computed / 1e9:.2f} G |'
        for name, size in {**sizes, 'all': total(sizes)}.items()
    ]
    return '\n'.join(lines)
