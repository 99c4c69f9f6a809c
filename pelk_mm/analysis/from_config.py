"""The model of a config without memory for its weights, and its image's size."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from math import ceil
from typing import Any

from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from pelk_mm.checkpoints.files import first_line
from pelk_mm.config_types import FRAMEWORKS, entry, find_framework, type_name

#: Height and width at which the papers count: segmenters on ADE20K, detectors on COCO
#: and classifiers on ImageNet.
USUAL_SHAPES = {'mmseg': (512, 2048), 'mmdet': (800, 1280), 'mmpretrain': (224, 224)}
#: That of mm's test images for detectors, instead of which the papers take theirs.
COCO_SHAPE = (800, 1333)

#: Steps of a test pipeline that decide the images' size, with the argument that does,
#: width first.
SIZING_STEPS = {
    'Resize': 'scale',
    'CenterCrop': 'crop_size',
    'Pad': 'size',
}
#: Steps of a training pipeline that do, height first.
CROPPING_STEPS = {'RandomCrop': 'crop_size', 'RandomResizedCrop': 'scale'}


@contextmanager
def _parameters_on_meta() -> Iterator[None]:
    """Have modules keep their parameters on the meta device.

    Unlike ``with torch.device('meta')`` this leaves other tensors their values, which
    constructors read: rates of drop path, anchors, position indices.
    """
    register = nn.Module.register_parameter

    def on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if param is not None and not param.is_meta:
            param = nn.Parameter(param.detach().to('meta'), param.requires_grad)
        register(self, name, param)

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def build_on_meta(cfg: Config) -> nn.Module:
    """Build the model of a config at full size without memory for its weights.

    Raises:
        ValueError: If there is no model, or it cannot be built.
    """
    if not isinstance(cfg.get('model'), dict) or 'type' not in cfg.model:
        raise ValueError(
            f'{cfg.filename} has no model; give the config of a segmenter, a detector '
            'or a classifier'
        )
    try:
        scope = find_framework(cfg) or cfg.get('default_scope')
        if scope in FRAMEWORKS and find_spec(scope) is None:
            raise ImportError(
                f'it is written for {scope}, which is not installed; `pip install '
                f'{FRAMEWORKS[scope][0]}`'
            )
        with DefaultScope.overwrite_default_scope(scope), _parameters_on_meta():
            return MODELS.build(cfg.model)
    except Exception as error:  # whatever the constructors of its parts raise
        raise ValueError(
            f'the model of {cfg.filename} cannot be built: {first_line(error)}'
        ) from error


def _steps(node: Any) -> Iterator[dict[str, Any]]:
    """Steps of the pipelines of data loaders, whatever wraps their data sets."""
    if isinstance(node, dict):
        inner = ('dataset', 'datasets', 'pipeline', 'transforms')
        if not node.keys() & set(inner):
            yield node
        node = [node[key] for key in inner if key in node]
    if isinstance(node, (list, tuple)):
        for part in node:
            yield from _steps(part)


def _two(size: Any) -> tuple[int, int] | None:
    """A size given as one or two whole numbers; None for any other."""
    pair = (size, size) if isinstance(size, int) else size
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        return None
    first, second = pair
    whole = isinstance(first, int) and isinstance(second, int)
    return (first, second) if whole and min(pair) > 0 else None


def _last_size(loader: Any, arguments: dict[str, str]) -> tuple[int, int] | None:
    """Size that the last deciding step of a data loader's pipeline has."""
    found = None
    for step in _steps(loader):
        key = arguments.get(type_name(step.get('type')))
        found = (key and _two(step.get(key))) or found
    return found


def _image_sizes(cfg: Config) -> Iterator[tuple[int, int] | None]:
    """Heights and widths that a config names, the most decisive first."""
    for name in ('test_dataloader', 'val_dataloader'):
        size = _last_size(cfg.get(name), SIZING_STEPS)
        yield size and (size[1], size[0])
    yield _two(entry(cfg, 'model', 'data_preprocessor', 'size'))
    yield _two(entry(cfg, 'data_preprocessor', 'size'))
    yield _two(entry(cfg, 'model', 'test_cfg', 'crop_size'))
    yield train_shape(cfg)


def named_shape(cfg: Config) -> tuple[int, int] | None:
    """Height and width of the images that a config names; None where it names none.

    That is the scale of its test images; where they have none of their own, the size
    that the model is trained with.
    """
    return next(filter(None, _image_sizes(cfg)), None)


def train_shape(cfg: Config) -> tuple[int, int] | None:
    """Height and width of the crops that a config trains on; None without any."""
    return _last_size(cfg.get('train_dataloader'), CROPPING_STEPS)


def image_shape(cfg: Config) -> tuple[int, int]:
    """Height and width at which to count the model of a config.

    That is what the config names, else what is usual for its framework. Detectors on
    images of COCO's size are counted as the papers do.

    Raises:
        ValueError: If the config names no size and is written for no framework.
    """
    shape, framework = named_shape(cfg), find_framework(cfg)
    if framework == 'mmdet' and shape in (COCO_SHAPE, COCO_SHAPE[::-1]):
        shape = None
    if shape is None:
        if framework is None:
            raise ValueError(
                f'{cfg.filename} names no size of images, neither in its test pipeline '
                'nor in the training; give one with --shape H W'
            )
        return USUAL_SHAPES[framework]
    if framework != 'mmdet':
        return shape
    divisor = entry(cfg.model, 'data_preprocessor', 'pad_size_divisor') or 1
    height, width = (ceil(side / divisor) * divisor for side in shape)
    return height, width
