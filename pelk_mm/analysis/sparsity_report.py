"""How sparse the weights of a checkpoint are, as a table and as a picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from pelk_mm.checkpoints.weights import find_weights, printable, require_ordinary

#: Colours of the two histograms.
BLUE, ORANGE = '#4477aa', '#ee7733'


@dataclass(frozen=True)
class Layer:
    """A layer's weights and how many of them are not zero.

    Attributes:
        name: The parameter's name.
        weight: Its values.
        active: How many the checkpoint's mask says are active; None without a mask.
    """

    name: str
    weight: Tensor
    active: int | None

    @property
    def shape(self) -> str:
        """Lengths of the axes, in words."""
        return ' x '.join(map(str, self.weight.shape))

    @property
    def size(self) -> int:
        """Number of weights."""
        return self.weight.numel()

    @property
    def nonzero(self) -> int:
        """Number of weights that are not zero."""
        return int(self.weight.count_nonzero())


def read_layers(checkpoint: Mapping[str, Any]) -> list[Layer]:
    """Find the layers that may be sparse.

    Args:
        checkpoint: A loaded checkpoint of ours, of mmengine, or plain weights.

    Returns:
        The layers that `DynamicSparsityHook` chose, where the checkpoint says so;
        otherwise the 2-D and 4-D weights of the backbone, or of the whole checkpoint
        if no name starts with ``backbone.``.

    Raises:
        ValueError: If there are none, or they or the masks are no ordinary tensors.
    """
    _, state = find_weights(checkpoint)
    weights = {
        name: value
        for name, value in state.items()
        if torch.is_tensor(value) and value.ndim in (2, 4) and value.numel()
    }
    require_ordinary(weights)
    if any(value.is_complex() for value in weights.values()):
        raise ValueError('the checkpoint has complex weights, which have no histogram')
    active, dense = _read_masks(checkpoint.get('sparsity'))
    chosen = [name for name in weights if name in active or name in dense]
    if not active and not dense:
        chosen = [name for name in weights if str(name).startswith('backbone.')]
    layers = [
        Layer(printable(name), weights[name].float(), active.get(name))
        for name in chosen or weights
    ]
    if not layers:
        raise ValueError('the checkpoint has no 2-D or 4-D weights')
    return layers


def _read_masks(sparsity: Any) -> tuple[dict[str, int], list[str]]:
    """Active weights by name, and the names of dense layers, that a hook has noted.

    Raises:
        ValueError: If it is not what `DynamicSparsityHook` notes.
    """
    if not isinstance(sparsity, Mapping):
        return {}, []
    masks, dense = sparsity.get('masks'), sparsity.get('dense')
    if not isinstance(masks, Mapping) or not isinstance(dense, (list, tuple)):
        raise ValueError("the checkpoint's sparsity has no masks and dense layers")
    require_ordinary(masks)
    wrong = [name for name, mask in masks.items() if mask.dtype is not torch.bool]
    if wrong:
        raise ValueError(f'the mask of {printable(wrong[0])} is not of torch.bool')
    return {name: int(mask.sum()) for name, mask in masks.items()}, list(dense)


def format_table(layers: Sequence[Layer]) -> str:
    """One line per layer and one for all of them."""
    size, nonzero = _count(layers)
    rows: list[tuple[str, str, int, int]] = [
        *((each.name, each.shape, each.size, each.nonzero) for each in layers),
        ('all', f'{len(layers)} layers', size, nonzero),
    ]
    width = max(len('layer'), *(len(name) for name, *_ in rows))
    lines = [
        f'{"layer":{width}}  {"shape":>18}  {"weights":>11}  {"non-zero":>11}  density'
    ]
    lines += [
        f'{name:{width}}  {shape:>18}  {n:>11,}  {left:>11,}  {left / n:7.4f}'
        for name, shape, n, left in rows
    ]
    if any(layer.active is not None for layer in layers):
        promised = sum(
            layer.size if layer.active is None else layer.active for layer in layers
        )
        verdict = 'as many are' if promised == nonzero else f'{nonzero:,} are'
        lines.append(
            f'The masks leave {promised:,} weights active; {verdict} not zero.'
        )
    return '\n'.join(lines)


def _count(layers: Sequence[Layer]) -> tuple[int, int]:
    """Number of weights of all layers, and of those that are not zero."""
    return sum(layer.size for layer in layers), sum(layer.nonzero for layer in layers)


def draw_histograms(layers: Sequence[Layer], path: Path, title: str) -> None:
    """Draw the layers' densities and the magnitudes of what is not zero.

    Args:
        layers: The layers.
        path: The picture, written as PNG.
        title: Its title.
    """
    figure = Figure(figsize=(9, 3.6), layout='constrained')
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10, parse_math=False)
    densities, magnitudes = figure.subplots(1, 2)
    shares = [layer.nonzero / layer.size for layer in layers]
    densities.hist(shares, bins=25, range=(0, 1), color=BLUE)
    size, nonzero = _count(layers)
    overall = nonzero / size
    densities.axvline(overall, color=ORANGE, label=f'overall {overall:.4f}')
    densities.set(xlabel='density', ylabel='layers')
    densities.legend()

    low, high, bins = -8.0, 2.0, 60
    counts = torch.zeros(bins)
    for layer in layers:
        weight = layer.weight[layer.weight != 0].abs().log10().clamp(low, high)
        counts += torch.histc(weight, bins, low, high)
    edges = torch.linspace(low, high, bins + 1)
    magnitudes.stairs(counts.numpy(), edges.numpy(), fill=True, color=BLUE)
    magnitudes.set(
        xlabel='log10 of |weight|, without zeros', ylabel='weights', yscale='log'
    )
    figure.savefig(path, format='png', dpi=120)
