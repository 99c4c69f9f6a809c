"""Class-activation maps of a layer, computed by the grad-cam package.

Of segmenters Grad-CAM (Selvaraju et al., ICCV 2017): the layer's maps weighted by the
mean gradients of the sum of a class's logits over the pixels predicted as that class.
Of detectors, whose objects no single output stands for, Eigen-CAM (Muhammad and Yeasin,
IJCNN 2020): the first principal component of the layer's maps, of no class.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor, nn

from pelk_mm.checkpoints.files import first_line
from pelk_mm.install import install_command
from pelk_mm.layers import PointwiseLinear
from pelk_mm_cli import did_you_mean

from .images import to_rgb
from .models import InferenceError, Model
from .overlay import enlargement

#: Share of the heat in a pixel of the picture.
HEAT_OPACITY = 0.5
#: Colours of the most and the least heat.
HOT, COLD = (128, 0, 0), (0, 0, 128)

#: Modules whose maps have the channels last, as those of ConvNeXt's blocks.
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm, PointwiseLinear)


class LayerMaps(NamedTuple):
    """What a layer has computed for an image.

    Attributes:
        name: Its dotted name in the model.
        kind: Its type.
        shape: Channels, height and width of its maps.
    """

    name: str
    kind: str
    shape: tuple[int, int, int]


def require_grad_cam() -> None:
    """Raise an `InferenceError` if the grad-cam package cannot be imported."""
    if find_spec('pytorch_grad_cam') is None:
        raise InferenceError(
            f'--cam needs the grad-cam package; run `{install_command("cam")}`'
        )
    try:
        import pytorch_grad_cam  # noqa: F401
    except Exception as error:  # torchvision raises many kinds
        raise InferenceError(
            f'--cam: grad-cam cannot be imported ({first_line(error)}); it imports '
            'torchvision, so install the torchvision that fits your torch'
        ) from error


def list_layers(model: Model, image: np.ndarray) -> list[LayerMaps]:
    """The layers whose maps of an image an activation map can be made of.

    Those are the modules that are called once for an image and return one feature map;
    of a detector only those of its backbone and its neck.

    Args:
        model: The segmenter or detector.
        image: (H, W, C) as for `Model.predict`.
    """
    inputs, _ = _inputs(model, image)
    return [
        LayerMaps(name, type(module).__name__, (maps.shape[1], *maps.shape[2:]))
        for name, (module, calls) in _record(model, inputs).items()
        if isinstance(maps := _single_map(module, calls), Tensor)
    ]


def require_layer(model: Model, name: str) -> nn.Module:
    """Find a layer by its dotted name.

    Raises:
        InferenceError: If there is none; the message has the closest names.
    """
    modules = dict(model.model.named_modules())
    if name and name in modules:
        return modules[name]
    hint = f'{did_you_mean(name, modules)} `--cam list` lists the layers'.lstrip()
    raise InferenceError(f'the model has no layer {name!r}; {hint}')


def require_category(model: Model, name: str) -> int:
    """Find a class by its name, or by its number where the model has no names.

    Raises:
        InferenceError: If there is none; the message has the closest names.
    """
    if not model.is_segmenter:
        raise InferenceError(
            '--cam-class is for segmenters; the maps of a detector are of no class '
            '(Eigen-CAM)'
        )
    if name in model.classes:
        return model.classes.index(name)
    if not model.classes and name.isdecimal():
        return int(name)
    known = f'it has {", ".join(model.classes[:5])}, ...'
    hint = did_you_mean(name, model.classes) or (
        known if model.classes else 'give its number'
    )
    raise InferenceError(f'the model has no class {name!r}; {hint}')


def class_activation(
    model: Model, image: np.ndarray, layer: str, category: int | None = None
) -> tuple[np.ndarray, str]:
    """The activation map of a layer for an image.

    Args:
        model: The segmenter or detector. The whole image is given to it at once, also
            where its ``test_cfg`` slides a window.
        image: (H, W, C) as for `Model.predict`.
        layer: Dotted name of the layer.
        category: The class, of a segmenter; None for the one with the most pixels.

    Returns:
        The heat, (H, W), from 0 to 1, and what it is of.

    Raises:
        InferenceError: If the layer cannot have a map, or no pixel is of the class.
    """
    require_grad_cam()
    module = require_layer(model, layer)
    inputs, shape = _inputs(model, image)
    _, calls = _record(model, inputs).get(layer, (module, []))
    reason = _single_map(module, calls)
    if isinstance(reason, str):
        raise InferenceError(
            f'layer {layer!r} {reason}; `--cam list` lists those that have maps'
        )
    reshape = _to_channels_first if _has_channels_last(module) else None
    if model.is_segmenter:
        heat, what = _grad_cam(model, module, inputs, reshape, category)
    else:
        heat, what = _eigen_cam(model, module, inputs, reshape)
    heat = heat[: shape[0], : shape[1]]  # without the padding of the batch
    size = (image.shape[1], image.shape[0])
    return cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR), what


def paint_heat(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a heat map over an image, blue where it is cold and red where it is hot.

    Args:
        image: (H, W, C) as the model was given it.
        heat: (H, W), from 0 to 1.

    Returns:
        (f H, f W, 3), uint8, red first, enlarged as overlays are.
    """
    factor = enlargement(*heat.shape)
    size = (heat.shape[1] * factor, heat.shape[0] * factor)
    picture = cv2.resize(to_rgb(image), size, interpolation=cv2.INTER_CUBIC)
    heat = cv2.resize(heat, size, interpolation=cv2.INTER_LINEAR)
    levels = (heat.clip(0, 1) * 255).astype(np.uint8)
    colours = cv2.applyColorMap(levels, cv2.COLORMAP_JET)[..., ::-1]
    return cv2.addWeighted(colours, HEAT_OPACITY, picture, 1 - HEAT_OPACITY, 0)


class _Logits(nn.Module):
    """A segmenter as a function of the image that returns its logits."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits of (N, C, h, w) for normalised images of (N, 3, H, W)."""
        return self.model(inputs, None, mode='tensor')


class _Features(nn.Module):
    """The backbone and neck of a detector, as a function that returns one tensor."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, inputs: Tensor) -> Tensor:
        """Means of the first feature map, (N, C), which nothing is read from."""
        return self.model.extract_feat(inputs)[0].mean((2, 3))


def _wrapped(model: Model) -> nn.Module:
    return (_Logits if model.is_segmenter else _Features)(model.model)


def _inputs(model: Model, image: np.ndarray) -> tuple[Tensor, tuple[int, int]]:
    """What the model is given for an image, and its size without padding."""
    inferencer: Any = model.inferencer
    try:
        batch = inferencer.collate_fn([inferencer.pipeline(image)])
        data = model.model.data_preprocessor(batch, False)
    except Exception as error:  # whatever the steps of any pipeline raise
        raise InferenceError(f'the test pipeline fails: {first_line(error)}') from error
    height, width = data['data_samples'][0].metainfo['img_shape'][:2]
    return data['inputs'], (height, width)


@torch.no_grad()
def _record(model: Model, inputs: Tensor) -> dict[str, tuple[nn.Module, list[Any]]]:
    """Outputs of each module that runs, by name, in the order of the model."""
    found: dict[str, tuple[nn.Module, list[Any]]] = {}
    hooks = []

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            found.setdefault(name, (module, []))[1].append(_without_values(output))

        return hook

    for name, module in model.model.named_modules():
        if name:
            hooks.append(module.register_forward_hook(keep(name)))
    try:
        _wrapped(model)(inputs)
    except Exception as error:  # of an image that is too small, for example
        raise InferenceError(
            f'the model cannot be run for --cam: {first_line(error)}'
        ) from error
    finally:
        for handle in hooks:
            handle.remove()
    order = {name: i for i, (name, _) in enumerate(model.model.named_modules())}
    return dict(sorted(found.items(), key=lambda item: order[item[0]]))


def _without_values(output: Any) -> Any:
    """An output's shape alone: all of a model's maps together are large."""
    return output.to('meta') if isinstance(output, Tensor) else type(output).__name__


def _has_channels_last(module: nn.Module) -> bool:
    """Whether the maps of a module are (N, h, w, C)."""
    return type(module) in _CHANNELS_LAST


def _to_channels_first(maps: Tensor) -> Tensor:
    return maps.permute(0, 3, 1, 2)


def _single_map(module: nn.Module, calls: list[Any]) -> Tensor | str:
    """The one feature map that a module returned, or why there is none, a phrase."""
    if not calls:
        return 'is not run by the prediction of a feature map'
    if len(calls) > 1:
        return f'is run {len(calls)} times for an image'
    output = calls[0]
    if not isinstance(output, Tensor):
        return f'returns a {output}, not one feature map'
    if output.ndim != 4:
        return f'returns {output.ndim}-D values, not feature maps of (N, C, h, w)'
    return _to_channels_first(output) if _has_channels_last(module) else output


@contextmanager
def _parameters_without_gradients(model: nn.Module) -> Iterator[None]:
    """Leave the parameters of a model out of a backward pass, which is for maps."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)


def _grad_cam(
    model: Model,
    module: nn.Module,
    inputs: Tensor,
    reshape: Callable[[Tensor], Tensor] | None,
    category: int | None,
) -> tuple[np.ndarray, str]:
    """Grad-CAM of a class, by default of the one with the most pixels."""
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import SemanticSegmentationTarget

    wrapped = _wrapped(model)
    with torch.no_grad():
        logits = wrapped(inputs)[0]
    if logits.shape[0] == 1:  # one channel for two classes
        labels = (logits[0].sigmoid() > 0.5).long()
    else:
        labels = logits.argmax(0)
    if category is None:
        category = int(labels.flatten().bincount().argmax())
    name = model.class_name(category)
    mask = (labels == category).float()
    if not mask.any():
        raise InferenceError(
            f'no pixel is predicted as {name!r}, so it has no activation map'
        )
    channel = category
    if logits.shape[0] == 1:
        channel, mask = 0, mask if category else -mask
    target = SemanticSegmentationTarget(channel, mask.cpu().numpy())
    with (
        _parameters_without_gradients(wrapped),
        GradCAM(wrapped, [module], reshape) as cam,
    ):
        cam.compute_input_gradient = True  # and so those of the maps
        heat = cam(inputs, [target])[0]
    return heat, f'Grad-CAM of {name}'


def _eigen_cam(
    model: Model,
    module: nn.Module,
    inputs: Tensor,
    reshape: Callable[[Tensor], Tensor] | None,
) -> tuple[np.ndarray, str]:
    """Eigen-CAM, which needs no gradients."""
    from pytorch_grad_cam import EigenCAM
    from pytorch_grad_cam.utils.model_targets import RawScoresOutputTarget

    with torch.no_grad(), EigenCAM(_wrapped(model), [module], reshape) as cam:
        return cam(inputs, [RawScoresOutputTarget()])[0], 'Eigen-CAM'
