"""A config and its checkpoint, opened with mm's inferencers and ready to predict."""

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import DATASETS, DefaultScope
from torch import nn

from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.checkpoints.files import CheckpointError, first_line
from pelk_mm.config_types import (
    FRAMEWORKS,
    entry,
    find_framework,
    read_config,
    type_name,
)
from pelk_mm.conversion.deploy import DEPLOYED, deploy_backbones
from pelk_mm.conversion.notes import find_dataset_meta
from pelk_mm.conversion.prepare import prepare_for_inference
from pelk_mm.conversion.trained import load_weights, require_fit

from .images import read_image

#: The inferencer and the visualizer of each framework whose models can be opened.
INFERENCERS = {
    'mmseg': ('MMSegInferencer', 'SegLocalVisualizer'),
    'mmdet': ('DetInferencer', 'DetLocalVisualizer'),
}


class InferenceError(ValueError):
    """A model or an image that nothing can be predicted with; one sentence."""


class Segmentation(NamedTuple):
    """What a segmenter makes of an image of H x W pixels.

    Attributes:
        labels: Class of each pixel, (H, W).
        scores: The model's output before the choice of a class, (C, H, W); (1, H, W)
            of a model for two classes with one channel.
        seconds: Time taken, with the steps before and after the model.
    """

    labels: np.ndarray
    scores: torch.Tensor
    seconds: float


class Detection(NamedTuple):
    """What a detector makes of an image.

    Attributes:
        sample: mmdet's data sample; its ``pred_instances`` are on the CPU.
        seconds: Time taken, with the steps before and after the model.
    """

    sample: Any
    seconds: float


class Model:
    """A segmenter or detector with its weights, class names and colours.

    Args:
        inferencer: mmseg's or mmdet's, with the model on its device.
        framework: ``mmseg`` or ``mmdet``.
        meta: Class names and colours, of `dataset_meta`; None if there are none.
        notices: What the reader should know of how the model was opened.
    """

    def __init__(
        self,
        inferencer: Any,
        framework: str,
        meta: Mapping[str, Any] | None,
        notices: Sequence[str] = (),
    ) -> None:
        self.inferencer = inferencer
        self.framework = framework
        self.classes: list[str] = list(meta['classes']) if meta else []
        self.palette: list[tuple[int, ...]] = list(meta['palette']) if meta else []
        self.notices = list(notices)

    @property
    def model(self) -> Any:
        """The segmenter or detector itself, a module."""
        return self.inferencer.model

    @property
    def is_segmenter(self) -> bool:
        """Whether it predicts a class for each pixel, rather than objects."""
        return self.framework == 'mmseg'

    def class_name(self, index: int) -> str:
        """Name of a class; its number where it has none."""
        return self.classes[index] if index < len(self.classes) else f'class {index}'

    def colour(self, index: int) -> tuple[int, int, int]:
        """Colour of a class: red, green and blue from 0 to 255."""
        if index < len(self.palette):
            red, green, blue = self.palette[index]
            return red, green, blue
        red, green, blue = np.random.RandomState(index).randint(0, 255, 3).tolist()
        return red, green, blue

    def read_image(self, path: str | Path) -> np.ndarray:
        """Read an image file as the model's test pipeline does; see `read_image`."""
        for step in self.inferencer.cfg.test_dataloader.dataset.pipeline:
            if type_name(step['type']) == 'InferencerLoader':
                flag = step.get('color_type', 'color')
                return read_image(path, flag, step.get('imdecode_backend', 'cv2'))
        raise InferenceError('the test pipeline has no step that loads images')

    def predict(self, image: np.ndarray) -> Segmentation | Detection:
        """Predict for one image.

        Args:
            image: (H, W, C) in the order of channels that the test pipeline loads, as
                `read_image` gives it; C is 3, blue first, with nearly all configs.

        Raises:
            InferenceError: If the model fails on it, as on one of a few pixels.
        """
        start = time.perf_counter()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # mm's, to its own developers
                result = self.inferencer(image, return_datasamples=True)
            sample = result if self.is_segmenter else result['predictions'][0]
            sample = sample.cpu()
        except Exception as error:  # whatever the steps of any pipeline raise
            height, width = image.shape[:2]
            raise InferenceError(
                f'the model cannot predict for an image of {width} x {height} pixels: '
                f'{first_line(error)}'
            ) from error
        if not self.is_segmenter:
            return Detection(sample, time.perf_counter() - start)
        labels = sample.pred_sem_seg.data[0].numpy()
        seconds = time.perf_counter() - start
        return Segmentation(labels, sample.seg_logits.data, seconds)


def open_model(
    config: str | Path,
    checkpoint: str | Path,
    device: str = 'cpu',
    deploy: bool = False,
    prepare: torch.dtype | str | None = None,
) -> Model:
    """Open a segmenter or a detector with its weights.

    Args:
        config: Config file of the whole model, with a test pipeline.
        checkpoint: Its checkpoint, in the training form or the deployment form.
        device: Device to predict on, such as ``cuda:0``.
        deploy: Whether to bring the backbone into its deployment form after loading.
        prepare: Data type of `prepare_for_inference`, which does that and more; None
            to leave the rest of the model as it is.

    Raises:
        ConfigError: If the config cannot be read.
        CheckpointError: If the checkpoint cannot be, or its weights do not fit.
        InferenceError: If the config is of no segmenter or detector that can be built,
            or the device is not there.
    """
    torch_device = _require_device(device)
    cfg = read_config(config)
    framework = _require_framework(cfg, config)
    weights, meta = load_weights(checkpoint)
    _prepare(cfg, framework, config)
    if meta.get(DEPLOYED):
        cfg.model.backbone.deploy = True
    inferencer = _build(cfg, framework, config, checkpoint, torch_device)
    # The backbone has been checked as it was loaded; mmengine only warns of heads.
    require_fit(inferencer.model, weights, checkpoint, leftovers=True)
    if deploy or prepare is not None:
        _deploy(inferencer.model, config, prepare)
    data = dataset_meta(cfg, framework, meta)
    notices = []
    if data is None:
        notices.append(
            f'neither {checkpoint} nor {config} has class names; classes are numbered'
        )
    # What mm's inferencers fall back on are the names of Cityscapes and COCO.
    inferencer.model.dataset_meta = data or {'classes': [], 'palette': 'random'}
    inferencer.visualizer.dataset_meta = inferencer.model.dataset_meta
    return Model(inferencer, framework, data, notices)


def dataset_meta(
    cfg: Config, framework: str, meta: Mapping[str, Any]
) -> dict[str, Any] | None:
    """Class names and colours: the checkpoint's, or else those of the config's data.

    Args:
        cfg: The config; the data set of its ``test_dataloader`` is not loaded.
        framework: Scope in which its type is looked up.
        meta: Notes of the checkpoint.

    Returns:
        ``classes`` and ``palette``, or None where neither has names.
    """
    found = find_dataset_meta(meta)
    if found is not None and _has_colours(meta):
        return found
    dataset = {**cfg.test_dataloader.dataset, 'lazy_init': True, 'pipeline': []}
    try:
        with warnings.catch_warnings(), DefaultScope.overwrite_default_scope(framework):
            warnings.simplefilter('ignore')
            of_config = find_dataset_meta(
                {'dataset_meta': DATASETS.build(dataset).metainfo}
            )
    except Exception:  # a data set of any kind, which only its names are asked of
        return found
    if found is None or (of_config and of_config['classes'] == found['classes']):
        return of_config
    return found


def _has_colours(meta: Mapping[str, Any]) -> bool:
    """Whether a checkpoint notes a colour for each class, or one for all."""
    data = meta.get('dataset_meta')
    data = data if isinstance(data, Mapping) else meta
    palette = next((v for k, v in data.items() if str(k).lower() == 'palette'), None)
    return isinstance(palette, (list, tuple, np.ndarray)) and len(palette) > 0


def _require_device(name: str) -> torch.device:
    """The device of a name, if it is there."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InferenceError(
            f'device {name!r} cannot be used: {first_line(error)}; leave it out for cpu'
        ) from error
    if device.type == 'meta':
        raise InferenceError("device 'meta' computes nothing; leave it out for cpu")
    return device


def _require_framework(cfg: Config, config: str | Path) -> str:
    """Framework of a config, if its models can be opened and it is installed."""
    if not isinstance(cfg.get('model'), dict) or 'type' not in cfg.model:
        raise InferenceError(
            f'{config} has no model; give the config of a segmenter or a detector'
        )
    try:
        framework = find_framework(cfg)
    except ImportError as error:
        raise InferenceError(
            f'the model of {config} cannot be imported: {first_line(error)}'
        ) from error
    if framework not in INFERENCERS:
        raise InferenceError(
            f'{config} is a config of {framework or "no known framework"}; give one of '
            f'a segmenter of mmseg or a detector of mmdet'
        )
    if find_spec(framework) is None:
        raise InferenceError(
            f'{config} is written for {framework}, which is not installed; '
            f'`pip install {FRAMEWORKS[framework][0]}`'
        )
    return framework


def _prepare(cfg: Config, framework: str, config: str | Path) -> None:
    """Leave in a config what mm's inferencers read, in the form that they expect."""
    dataset = entry(cfg, 'test_dataloader', 'dataset')
    while isinstance(dataset, dict) and not dataset.get('pipeline'):
        inner = dataset.get('dataset') or dataset.get('datasets')
        dataset = inner[0] if isinstance(inner, (list, tuple)) and inner else inner
    if not isinstance(dataset, dict):
        raise InferenceError(
            f'{config} has no test_dataloader with a pipeline, which images pass '
            'through; inherit a data set of configs/_base_ or add one'
        )
    steps = dataset['pipeline']
    if not isinstance(steps, (list, tuple)) or not all(
        isinstance(step, dict) and 'type' in step for step in steps
    ):
        raise InferenceError(
            f'{config} has a test pipeline that is no list of steps with a type'
        )
    for step in steps:  # as mm's inferencers look them up
        if type_name(step['type']) in ('LoadImageFromFile', 'LoadAnnotations'):
            step.type = type_name(step['type'])
    cfg.test_dataloader.dataset = dataset
    cfg.default_scope = framework
    # Without backends: nothing but the pictures asked for is written.
    cfg.visualizer = dict(type=INFERENCERS[framework][1], name=f'inference {id(cfg)}')


def _build(
    cfg: Config,
    framework: str,
    config: str | Path,
    checkpoint: str | Path,
    device: torch.device,
) -> Any:
    """The framework's inferencer for a config and a checkpoint."""
    try:
        with warnings.catch_warnings(), _without_log_warnings():
            warnings.simplefilter('ignore')  # about losses, names and colours
            apis = import_module(f'{framework}.apis')
            inferencer = getattr(apis, INFERENCERS[framework][0])(
                cfg, str(checkpoint), device=str(device), scope=framework
            )
    except CheckpointError:  # of the backbone's check, which names the remedy
        raise
    except Exception as error:  # whatever the constructors of its parts raise
        raise InferenceError(
            f'the model of {config} cannot be built: {first_line(error)}'
        ) from error
    inferencer.show_progress = False  # a bar for each image
    return inferencer


@contextmanager
def _without_log_warnings() -> Iterator[None]:
    """Leave out what mmengine logs of a registry that its inferencers look in."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel('ERROR')
    try:
        yield
    finally:
        logger.setLevel(level)


def _deploy(
    model: nn.Module, config: str | Path, dtype: torch.dtype | str | None
) -> None:
    """Bring a model's backbone into its deployment form, or prepare all of it.

    Args:
        model: The model.
        config: Its config, for the message.
        dtype: Data type to prepare it for; None for the deployment form alone.
    """
    flag = '--deploy' if dtype is None else '--prepare'
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, LargeKernelBackbone):
        raise InferenceError(
            f'the backbone of {config} is {type(backbone).__name__}, which has no '
            f'deployment form; leave out {flag}'
        )
    try:
        if dtype is None:
            deploy_backbones(model)
        else:
            prepare_for_inference(model, dtype)
    except (RuntimeError, ValueError) as error:
        raise InferenceError(f'{flag}: {first_line(error)}') from error
