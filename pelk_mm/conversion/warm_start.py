"""Start a PeLK from the weights of a SLaK or a RepLKNet.

No PeLK weights were ever released. SLaK has PeLK's widths and depths by design and
differs only in the token mixer, so everything else is copied and the mixer's kernels
are projected on the sharing grid.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pelk_mm.backbones import PeLK
from pelk_mm.checkpoints.files import CheckpointError
from pelk_mm.layers import add_centred, fold_norm
from pelk_mm.ops import box_sum, expand_kernel

from .infer import build_backbone, simplify_arch, stage_settings

#: Radius of the fine-grained centre that the paper's plain variants have.
CENTRAL_RADIUS = 2

#: PeLK's tensors by name, each with the names of the source's tensors that made it.
Made = dict[str, tuple[list[str], Tensor]]


class WarmStart(NamedTuple):
    """The weights that a PeLK starts from.

    Attributes:
        backbone: Its config.
        tensors: Its weights by name.
        origins: For each of them the source's tensors that it was made of.
        initial: Names of parameters and buffers that keep their initial values.
        errors: ``|w - projected w| / |w|`` over the kernels of each stage.
    """

    backbone: dict[str, Any]
    tensors: dict[str, Tensor]
    origins: dict[str, list[str]]
    initial: list[str]
    errors: list[float]


def project_kernel(
    kernel: Tensor, sharing_grid: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Least-squares projection of dense kernels on a sharing grid.

    The parameter nearest to a rectangle's values is their mean. A kernel smaller than
    the grid's is padded with zeros, a larger one is cropped to its centre.

    Args:
        kernel: Kernels of shape (..., k, k), k odd.
        sharing_grid: Cell sizes along either axis, with sum K.

    Returns:
        Parameters of shape (..., k', k'), and the squared error summed over all
        kernels, including what a larger kernel loses at its edge.
    """
    edge = (sum(sharing_grid) - kernel.shape[-1]) // 2
    fitted = F.pad(kernel, (edge,) * 4)  # a negative edge crops
    cells = torch.tensor(sharing_grid, dtype=kernel.dtype)
    parameters = box_sum(fitted, sharing_grid) / cells.outer(cells)
    error = (fitted - expand_kernel(parameters, sharing_grid)).square().sum()
    lost = kernel.square().sum() - fitted.square().sum()
    return parameters, error + lost.clamp(min=0)


def start_pelk(
    tensors: Mapping[str, Tensor], backbone: dict[str, Any], arch: str = ''
) -> WarmStart:
    """Make the weights of a PeLK from those of a SLaK or RepLKNet.

    From SLaK everything except the token mixers is copied. From RepLKNet, whose blocks
    differ, come the kernels and the FFNs' pointwise layers with the BatchNorms after
    them folded; scale and shift of the BatchNorm before them go into the LayerNorm,
    and the layer scale is 1. In either case the mixer's branches are folded, summed to
    one dense kernel and projected on the grid for the channels that PeLK convolves.
    What the branches' norms add per channel is lost: PeLK's mixer has no bias, and
    its positional embedding starts at zero.

    Args:
        tensors: The source's weights by this package's names.
        backbone: The source's config.
        arch: Name of PeLK's ``arch``; '' for the source's own widths, depths and
            kernel sizes.

    Raises:
        CheckpointError: If the source is no SLaK or RepLKNet, or its widths or depths
            are not those of the arch.
    """
    if backbone['type'] not in ('SLaK', 'RepLKNet'):
        raise CheckpointError('a PeLK starts only from a SLaK or a RepLKNet')
    target = _target(backbone, arch)
    model: Any = build_backbone(target)
    expected = model.state_dict()
    from_slak = backbone['type'] == 'SLaK'
    made: Made = {}
    if from_slak:
        made = {n: ([n], t) for n, t in tensors.items() if '.mixer.' not in n}
    errors = []
    for i, stage in enumerate(model.stages):
        embedding = stage.position_embedding
        error = norm = 0.0
        for j, block in enumerate(stage.blocks):
            ours = f'stages.{i}.blocks.{j}.'
            mixer = f'stages.{i}.blocks.{j if from_slak else 2 * j}.mixer.'
            if not from_slak:  # an FFN is the second block of a layer
                made |= _folded_ffn(tensors, f'stages.{i}.blocks.{2 * j + 1}.', ours)
            kernel = _dense_kernel(tensors, mixer)
            if len(kernel) != model.channels[i]:
                raise CheckpointError(
                    f'its large kernels have {len(kernel)} channels in stage {i}, '
                    f"PeLK's {model.channels[i]}"
                )
            kernel = kernel[: len(embedding)]
            grid = block.mixer.large.conv.sharing_grid
            parameters, squared = project_kernel(kernel, grid)
            error += squared.item()
            norm += kernel.square().sum().item()
            names = _names(tensors, mixer)
            dtype = tensors[names[0]].dtype
            made[f'{ours}mixer.large.conv.weight'] = names, parameters.to(dtype)
        errors.append((error / norm) ** 0.5 if norm else 0.0)
        zeros = torch.zeros(embedding.shape, dtype=dtype)
        made[f'stages.{i}.position_embedding'] = [], zeros
    for name, (names, tensor) in made.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f'its {names[0]} makes a tensor of shape {tuple(tensor.shape)}, '
                f"PeLK's {name} has {tuple(expected[name].shape)}"
            )
    return WarmStart(
        target,
        {name: tensor for name, (_, tensor) in made.items()},
        {name: names for name, (names, _) in made.items()},
        [name for name in expected if name not in made],
        errors,
    )


def _target(backbone: dict[str, Any], arch: str) -> dict[str, Any]:
    """Config of the PeLK that is started."""
    source = stage_settings(backbone)
    same = ('in_channels', 'layer_scale_init_value', 'out_indices', 'output_norms')
    target = dict(type='PeLK') | {k: backbone[k] for k in same if k in backbone}
    if not arch:
        settings = {key: source[key] for key in ('channels', 'depths', 'kernel_sizes')}
        settings['central_radius'] = CENTRAL_RADIUS
        return target | dict(arch=simplify_arch('pelk', settings))
    if arch not in PeLK.arch_settings:
        raise CheckpointError(
            f'PeLK has no arch {arch!r} to start; choose one of '
            f'{", ".join(PeLK.arch_settings)}'
        )
    target['arch'] = arch
    settings = stage_settings(target)
    for key in ('channels', 'depths'):
        if source[key] != settings[key]:
            raise CheckpointError(
                f'its {key} are {source[key]}, those of PeLK {arch} {settings[key]}; '
                f'start the PeLK of the same {key}'
            )
    return target


def _names(tensors: Mapping[str, Tensor], *prefixes: str) -> list[str]:
    return [name for name in tensors if name.startswith(prefixes)]


def _folded_ffn(tensors: Mapping[str, Tensor], source: str, target: str) -> Made:
    """Fold the pointwise layers of RepLKNet's FFN to those of PeLK's block."""
    made: Made = {}
    for end in ('weight', 'bias'):
        norm = f'{source}pointwise_conv1.pre_norm.{end}'
        made[f'{target}norm.{end}'] = [norm], tensors[norm]
    for layer in ('pointwise_conv1', 'pointwise_conv2'):
        weight, bias = _folded(tensors, f'{source}{layer}.')
        names = _names(tensors, f'{source}{layer}.conv.', f'{source}{layer}.norm.')
        made[f'{target}{layer}.weight'] = names, weight.flatten(1)
        made[f'{target}{layer}.bias'] = names, bias
    return made | {f'{target}gamma': ([], torch.ones_like(bias))}


def _dense_kernel(tensors: Mapping[str, Tensor], mixer: str) -> Tensor:
    """Sum a token mixer's branches to one kernel, (C, 1, K, K) in float64."""
    kernels = [
        _folded(tensors, f'{mixer}{branch}.')[0].double()
        for branch in ('vertical', 'horizontal', 'large', 'small')
        if _names(tensors, f'{mixer}{branch}.')
    ]
    size = max(kernel.shape[-1] for kernel in kernels)
    total = kernels[0].new_zeros(len(kernels[0]), 1, size, size)
    for kernel in kernels:
        total = add_centred(total, kernel)
    return total


def _folded(tensors: Mapping[str, Tensor], prefix: str) -> tuple[Tensor, Tensor]:
    """Weight and bias of a convolution with the BatchNorm after it folded, if any."""
    if f'{prefix}weight' in tensors:  # merged already
        return tensors[f'{prefix}weight'], tensors[f'{prefix}bias']
    weight = tensors[f'{prefix}conv.weight']
    names = _names(tensors, f'{prefix}norm.')
    if not names:
        return fold_norm(weight, None, nn.Identity())
    norm = nn.BatchNorm2d(len(weight))
    norm.load_state_dict({n.removeprefix(f'{prefix}norm.'): tensors[n] for n in names})
    return fold_norm(weight, None, norm.eval())
