"""Parameters and multiply-adds of a model, by component and in two ways of counting."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import astuple, dataclass
from operator import add
from typing import Any

import torch
from torch import Tensor, nn

from pelk_mm.backbones import LargeKernelBackbone

from .counting import TRAINING_ONLY, component_of, count

#: Share of the weights that the papers count as zero.
PAPER_SPARSITY = {'PeLK': 0.4, 'SLaK': 0.4}
#: Row of a table for what no component computes.
ELSEWHERE = 'between them'

Density = Callable[[str, nn.Parameter], float]


def dense(name: str, parameter: nn.Parameter) -> float:
    """Density where no weight is zero."""
    return 1.0


def our_backbones(model: nn.Module) -> dict[str, LargeKernelBackbone]:
    """PeLK, SLaK and RepLKNet backbones of this package by their names in a model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LargeKernelBackbone)
    }


def paper_sparsity(model: nn.Module) -> float:
    """Share of zeros with which the papers count a model's backbone."""
    kinds = [type(each).__name__ for each in our_backbones(model).values()]
    return max((PAPER_SPARSITY.get(kind, 0.0) for kind in kinds), default=0.0)


def uniform_density(sparsity: float, model: nn.Module | None = None) -> Density:
    """Density of the backbone's 2-D and 4-D weights where a share of them is zero.

    Args:
        sparsity: The share.
        model: The model, in which this package's backbones may have any name; without
            it or them the backbone is what is named ``backbone``.

    Raises:
        ValueError: If the share is not in [0, 1).
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f'sparsity {sparsity} is not in [0, 1)')
    names = our_backbones(model) if model is not None else ()
    prefixes = tuple(f'{name}.' for name in names or ('backbone',))

    def density(name: str, parameter: nn.Parameter) -> float:
        sparse = name.startswith(prefixes) and parameter.ndim in (2, 4)
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


@dataclass
class Complexity:
    """Size of a component.

    Attributes:
        parameters: All parameters.
        nonzeros: Those that are not zero at the given density.
        paper: Multiply-adds with dense K x K kernels, times the density.
        computed: Multiply-adds that our operators do, zeros included.
        not_counted: Why multiply-adds are missing, where they are.
    """

    parameters: int = 0
    nonzeros: float = 0.0
    paper: float = 0.0
    computed: float = 0.0
    not_counted: tuple[str, ...] = ()

    def __add__(self, other: 'Complexity') -> 'Complexity':
        return Complexity(*map(add, astuple(self), astuple(other)))


def complexity(
    model: nn.Module, shape: tuple[int, int], density: Density = dense
) -> dict[str, Complexity]:
    """Parameters and multiply-adds of each component of a model.

    Args:
        model: See `pelk_mm.analysis.counting.count`.
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
    counts = count(model, shape, (AS_PAPERS, {}))
    for name, (paper, computed) in counts.components.items():
        sizes[name].paper, sizes[name].computed = paper, computed
    for name, (paper, _) in counts.modules.items():
        if f'{name}.weight' in densities:
            sizes[component_of(name)].paper -= paper * (1 - densities[f'{name}.weight'])
    for name, reason in counts.problems.items():
        sizes[name].not_counted = (reason,)
    if any(counts.elsewhere):
        paper, computed = counts.elsewhere
        sizes[ELSEWHERE] = Complexity(paper=paper, computed=computed)
    return dict(sizes)


def total(sizes: Mapping[str, Complexity]) -> Complexity:
    """Sum over the components."""
    return sum(sizes.values(), Complexity())


def _quantity(number: float) -> str:
    """A number of multiply-adds with its unit."""
    if not number:
        return '0'
    return f'{number / 1e9:.2f} G' if number >= 5e6 else f'{number / 1e6:.2f} M'


def format_complexity(sizes: Mapping[str, Complexity]) -> str:
    """Lay the sizes of components out as a Markdown table, the sum at the end.

    What was not counted says so, with its reason below the table, and the sum is
    marked as a lower bound.
    """
    lines = [
        '| component | parameters | non-zero | multiply-adds as the papers count '
        '| as computed here |',
        '|---|--:|--:|--:|--:|',
    ]
    notes: list[str] = []

    def cells(name: str, size: Complexity) -> Iterator[str]:
        yield f'{size.parameters / 1e6:.2f} M'
        yield f'{size.nonzeros / 1e6:.2f} M'
        if name != 'all' and size.not_counted:
            notes.append(f'{name}: {size.not_counted[0]}')
            yield from [f'not counted ({len(notes)})'] * 2
        elif name.startswith(TRAINING_ONLY) and not size.computed:
            yield from ['in training only'] * 2
        else:
            bound = '>= ' * bool(size.not_counted)
            yield from (bound + _quantity(n) for n in (size.paper, size.computed))

    for name, size in {**sizes, 'all': total(sizes)}.items():
        lines.append(f'| {name} | {" | ".join(cells(name, size))} |')
    if notes:
        lines += ['', 'Not counted, and missing in the sum:', '']
        lines += [f'({number}) {note}' for number, note in enumerate(notes, 1)]
    return '\n'.join(lines)
