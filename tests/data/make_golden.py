"""Write the golden files next to this script: what every architecture computes.

    python tests/data/make_golden.py

images.pt holds the images. Each other file holds, of one narrow backbone with kernels
of real size, the feature maps of all stages and the gradients of a scalar loss,
computed in float64 by torch's own convolutions and stored as float32.
tests/test_golden.py computes them again on the backends that users get. Run this only
where what a model computes is meant to change, and say so in the changelog.

Weights are not stored. They are drawn from numpy's `RandomState`, whose stream numpy
keeps the same for good, each from its own name, and uniformly, which needs no function
that differs between machines.
"""

import argparse
import zlib
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS
from torch import Tensor, nn

import pelk_mm  # noqa: F401  registers the backbones
from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.layers import PeripheralConv2d

FOLDER = Path(__file__).resolve().parent

WIDTHS = dict(channels=(8, 8, 12, 16), depths=(1, 2, 1, 1))
PELK = dict(WIDTHS, kernel_sizes=(51, 49, 47, 13), central_radius=2)
SLAK = dict(WIDTHS, kernel_sizes=(51, 49, 47, 13))
REPLKNET = dict(WIDTHS, kernel_sizes=(31, 29, 27, 13))
#: The backbones by the names of their files. Deployment forms, and those of released
#: models that were merged, compute the same maps and have no files of their own.
ARCHITECTURES: dict[str, dict[str, Any]] = {
    'pelk': dict(type='PeLK', arch=PELK),
    'pelk_101': dict(
        type='PeLK', arch=dict(PELK, kernel_sizes=(101, 69, 67, 13), central_radius=3)
    ),
    'pelk_small_kernel': dict(
        type='PeLK', arch=dict(PELK, small_kernel=5), norm_cfg=dict(type='BN')
    ),
    'pelk_explicit_grid': dict(
        type='PeLK',
        arch=dict(
            PELK,
            sharing_grids=[
                (9, 9, 5, 5, 5, 9, 9),
                (16, 1, 15, 1, 16),
                (47,),
                (1,) * 13,
            ],
        ),
    ),
    'slak': dict(type='SLaK', arch=SLAK),
    'slak_dense': dict(type='SLaK', arch=dict(SLAK, decomposed=False)),
    'replknet': dict(type='RepLKNet', arch=REPLKNET),
    'replknet_xl': dict(
        type='RepLKNet',
        arch=dict(
            REPLKNET, kernel_sizes=(27, 27, 27, 13), small_kernel=None, dw_ratio=1.5
        ),
        norm_intermediate_features=True,
    ),
}

#: Sizes (N, H, W) of the images. On the first stage's maps of 24 x 32 kernels of 51
#: are clipped along one axis alone; a BatchNorm in training needs more than one image.
IMAGES = {'eval': (1, 96, 128), 'train': (2, 64, 96)}

#: Least distance from 0 of what a ReLU gets: rounding must not change its gradient.
RELU_MARGIN = 1e-5


def modes(model: nn.Module) -> list[str]:
    """Those in which a model computes different things: BatchNorms have two."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    return ['eval', 'train'] if norms else ['eval']


def draw(
    seed: int, name: str, shape: tuple[int, ...], low: float, high: float
) -> Tensor:
    """Numbers between two bounds that depend on a seed and a name, in float32."""
    random = np.random.RandomState(zlib.crc32(f'{seed} {name}'.encode()))
    values = low + (high - low) * random.random_sample(shape)
    return torch.from_numpy(values.astype(np.float32))


def draw_around(seed: int, name: str, shape: tuple[int, ...], std: float) -> Tensor:
    """Numbers of mean 0 and a standard deviation, otherwise as `draw`."""
    bound = std * 3**0.5
    return draw(seed, name, shape, -bound, bound)


def build(name: str, **options: Any) -> LargeKernelBackbone:
    """Build an architecture in evaluation mode.

    Args:
        name: A key of `ARCHITECTURES`.
        options: More arguments of the backbone.
    """
    return MODELS.build({**deepcopy(ARCHITECTURES[name]), **options}).eval()


@torch.no_grad()
def draw_weights(model: nn.Module, seed: int) -> None:
    """Fill a backbone so that maps and gradients stay near unit scale."""
    for module_name, module in model.named_modules():
        is_norm = isinstance(module, (nn.BatchNorm2d, nn.LayerNorm))
        tensors = {
            **dict(module.named_parameters(recurse=False)),
            **dict(module.named_buffers(recurse=False)),
        }
        for own_name, tensor in tensors.items():
            name, shape = f'{module_name}.{own_name}', tuple(tensor.shape)
            if not tensor.is_floating_point():
                tensor.zero_()  # a BatchNorm's count of batches
            elif own_name == 'running_var' or is_norm and own_name == 'weight':
                tensor.copy_(draw(seed, name, shape, 0.5, 1.5))
            elif own_name == 'gamma':
                tensor.copy_(draw(seed, name, shape, 0.1, 1.0))
            elif tensor.ndim == 1 or own_name == 'position_embedding':
                tensor.copy_(draw_around(seed, name, shape, 0.2))
            elif isinstance(module, PeripheralConv2d):
                # Each number is a tap of all positions of its rectangle.
                tensor.copy_(draw_around(seed, name, shape, 1 / module.kernel_size))
            else:
                fan_in = tensor[0].numel()
                tensor.copy_(draw_around(seed, name, shape, fan_in**-0.5))


def draw_images(mode: str) -> Tensor:
    """Images of a mode, (N, 3, H, W), whole numbers from 0 to 255 as uint8."""
    batch, height, width = IMAGES[mode]
    return draw(0, mode, (batch, 3, height, width), 0, 256).to(torch.uint8)


def normalize(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Images as a backbone gets them, in a dtype of floating-point numbers."""
    return (images.to(dtype) - 127.5) / 64


def run(
    model: LargeKernelBackbone, images: Tensor, seed: int, training: bool = False
) -> dict[str, Any]:
    """Compute everything that a file holds about one mode.

    The loss is a fixed mixture of all maps. Of each parameter's gradient come its norm
    and its product with a fixed random direction, whose numbers have variance 1.

    Args:
        model: The backbone, in the dtype to compute in; its gradients must be clear.
        images: Images as `draw_images` gives them.
        seed: Seed of the mixture and the directions.
        training: Whether BatchNorms use their batch. Their running statistics come
            along then.

    Returns:
        The ``maps``, ``gradients`` of shape (parameters, 2) and in training all
        ``statistics`` in a row.
    """
    model.train(training)
    dtype = next(model.parameters()).dtype
    maps = model(normalize(images, dtype))
    total = torch.zeros((), dtype=dtype)
    for i, feature_map in enumerate(maps):
        mixture = draw_around(seed, f'loss {i}', tuple(feature_map.shape), 1)
        total = total + (feature_map * mixture.to(dtype)).sum()
    total.backward()
    rows = []
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        direction = draw_around(seed, f'direction {name}', tuple(gradient.shape), 1)
        rows.append(
            torch.stack((gradient.norm(), (gradient * direction.to(dtype)).sum()))
        )
    found: dict[str, Any] = {
        'maps': [m.detach() for m in maps],
        'gradients': torch.stack(rows),
    }
    if training:
        found['statistics'] = torch.cat(
            [value for value in model.buffers() if value.is_floating_point()]
        )
    return found


class _ReluMargin(torch.overrides.TorchFunctionMode):
    """Notes the smallest absolute value that a ReLU gets."""

    def __init__(self) -> None:
        super().__init__()
        self.margin = float('inf')

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (F.relu, torch.relu):
            self.margin = min(self.margin, args[0].detach().abs().min().item())
        return func(*args, **(kwargs or {}))


def build_in_float64(name: str, seed: int) -> LargeKernelBackbone:
    """Build an architecture with the weights of a seed, for the true values."""
    model = build(name)
    draw_weights(model, seed)
    return model.double()


@torch.no_grad()
def relu_margin(name: str, seed: int) -> float:
    """Least distance from 0 of what a ReLU gets, in any mode."""
    model = build_in_float64(name, seed)
    with _ReluMargin() as relus:
        for mode in modes(model):
            model.train(mode == 'train')(normalize(draw_images(mode), torch.float64))
    return relus.margin


def make(name: str, seed: int) -> dict[str, Any]:
    """Compute the content of an architecture's file, in float64."""
    content: dict[str, Any] = {
        'seed': seed,
        'parameters': [name for name, _ in build(name).named_parameters()],
    }
    for mode in modes(build(name)):
        model = build_in_float64(name, seed)
        found = run(model, draw_images(mode), seed, mode == 'train')
        found['maps'] = [m.float() for m in found['maps']]
        content[mode] = {
            key: value if key == 'maps' else value.float()
            for key, value in found.items()
        }
    return content


def contents() -> Iterator[tuple[str, dict[str, Any]]]:
    """Compute what every file holds, with the first seed that keeps the margin."""
    yield 'images', {mode: draw_images(mode) for mode in IMAGES}
    for name in ARCHITECTURES:
        seed = 0
        while relu_margin(name, seed) < RELU_MARGIN:
            seed += 1
        yield name, make(name, seed)


def main() -> None:
    """Write the files."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    for name, content in contents():
        path = FOLDER / f'{name}.pt'
        torch.save(content, path)
        seed = content.get('seed', 0)
        print(f'{path.name}: seed {seed}, {path.stat().st_size} bytes', flush=True)


if __name__ == '__main__':
    main()
