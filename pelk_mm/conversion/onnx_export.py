"""Export segmenters, and backbone and neck of detectors, to ONNX."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS
from torch import Tensor, nn

from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.checkpoints.files import CheckpointError, first_line
from pelk_mm.config_types import entry, find_framework
from pelk_mm.layers import PeripheralConv2d
from pelk_mm.ops import plain
from pelk_mm.version import __version__

from .deploy import deploy_backbones
from .factored import Convolutions, use_torch_convolutions
from .fold import fold_conv_modules
from .onnx_file import (
    HALF_TOLERANCE,
    TOLERANCE,
    Check,
    check_onnx_path,
    name_open_sizes,
    require_packages,
    set_notes,
    to_half,
    to_onnx,
    write_verified,
)
from .open_sizes import open_adaptive_pooling
from .trained import DEPLOYED, build_model, fill, load_weights

#: Shortest side of images that all stages have something left of.
MIN_SIDE = 32
#: The same where sizes are open: torch takes a size of 1 for a case of its own.
MIN_OPEN_SIDE = 64
#: Axes of the images whose sizes may stay open.
OPEN_AXES = {0: 'batch', 2: 'height', 3: 'width'}
#: Largest ones of which torch proves that its arithmetic holds; ONNX has no limits.
MAX_OPEN_SIDE, MAX_BATCH = 2**14, 2**10
#: Option of ``torch.export.export`` that leaves checks of open sizes to the run time.
DEFERRED = 'prefer_deferred_runtime_asserts_over_guards'
#: Why a detector is exported without its heads.
WITHOUT_HEADS = (
    'backbone and neck alone: the heads of a detector choose boxes by their values '
    "(NMS, RoIAlign), in operators of mmcv's own that ONNX has not; mmdeploy exports "
    'them with rewritten ones'
)

Say = Callable[[str], None]


class OnnxReport(NamedTuple):
    """What was exported.

    Attributes:
        inputs: Name of each input and its shape, a name where a size is open.
        outputs: The same of the outputs.
        convolutions: What became of the large convolutions; None of a program.
        checks: How far onnxruntime is from torch, size by size.
    """

    inputs: dict[str, list[Any]]
    outputs: dict[str, list[Any]]
    convolutions: Convolutions | None
    checks: list[Check]


def _swaps_channels(preprocessor: Any) -> bool:
    """Whether a data preprocessor turns BGR into RGB, or the other way round."""
    names = ('_channel_conversion', 'channel_conversion')  # mmengine's, mmseg's
    return any(getattr(preprocessor, name, False) for name in names)


class Normalised(nn.Module):
    """A model that takes images as a pipeline loads them, and normalises them.

    Args:
        model: What takes normalised images.
        preprocessor: mm's data preprocessor: its order of channels, mean and std.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, preprocessor: Any) -> None:
        super().__init__()
        self.model = model
        self.swap = _swaps_channels(preprocessor)
        mean = getattr(preprocessor, 'mean', torch.zeros(1))
        std = getattr(preprocessor, 'std', torch.ones(1))
        self.register_buffer('mean', mean.reshape(-1, 1, 1).float())
        self.register_buffer('std', std.reshape(-1, 1, 1).float())

    def forward(self, images: Tensor) -> Any:
        """Run the model on (N, C, H, W) images of values from 0 to 255."""
        if self.swap and images.shape[1] == 3:
            images = images.flip(1)
        return self.model((images - self.mean) / self.std)


class Logits(nn.Module):
    """Logits of a segmenter at the size of the images, as its whole inference has them.

    Args:
        segmenter: An ``EncoderDecoder`` of MMSegmentation, or of the same methods.
    """

    def __init__(self, segmenter: Any) -> None:
        super().__init__()
        self.segmenter = segmenter

    def forward(self, images: Tensor) -> Tensor:
        """Compute (N, classes, H, W) from normalised images of (N, C, H, W)."""
        return self.segmenter.encode_decode(images, [dict(img_shape=images.shape[2:])])


class Features(nn.Module):
    """Feature maps of a detector's backbone and neck.

    Args:
        detector: A detector of MMDetection.
    """

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps from normalised images of (N, C, H, W), finest first."""
        return tuple(self.detector.extract_feat(images))


def export_onnx(
    cfg: Config,
    checkpoint: str | Path,
    out: str | Path,
    shape: tuple[int, int],
    *,
    dynamic: bool = False,
    deploy: bool = False,
    half: bool = False,
    factored: bool = False,
    normalise: bool = False,
    force: bool = False,
    say: Say = print,
) -> OnnxReport:
    """Export the model of a config with the weights of a checkpoint.

    Of a segmenter it is all of it, up to logits at the size of the images; of a
    detector backbone and neck. The file appears under its name only after onnxruntime
    has reproduced torch's values on random images of three sizes.

    Args:
        cfg: Config of the whole model.
        checkpoint: Its checkpoint, in training or deployment form.
        out: The file to write, ending in ``.onnx``.
        shape: Height and width of the images.
        dynamic: Whether batch, height and width stay open.
        deploy: Whether norms, small kernels and scales are folded first.
        half: Whether weights and sums are float16; inputs and outputs stay float32.
        factored: Whether peripheral convolutions become box sums; implies `deploy`.
        normalise: Whether the graph has the data preprocessor's order of channels,
            mean and std in it.
        force: Whether to replace an existing file.
        say: Called with a line at each step.

    Raises:
        CheckpointError: If anything is missing or wrong; nothing is left then.
    """
    out = Path(out)
    require_packages()
    check_onnx_path(out, force)
    least = MIN_OPEN_SIDE if dynamic else MIN_SIDE
    _require_side(shape, least)
    if dynamic:
        _require_open_sizes()
    framework = find_framework(cfg)
    if framework not in ('mmseg', 'mmdet'):
        raise CheckpointError(
            f'config {cfg.filename} is written for {framework or "no framework"}; '
            'segmenters of mmseg and detectors of mmdet can be exported'
        )
    weights, meta = load_weights(checkpoint)
    if meta.get(DEPLOYED):
        cfg.model.backbone.deploy = True
    model: Any = revert_sync_batchnorm(build_model(cfg))
    if not isinstance(getattr(model, 'backbone', None), LargeKernelBackbone):
        raise CheckpointError(
            f'the backbone of config {cfg.filename} is none of PeLK, SLaK and RepLKNet'
        )
    if factored and not any(isinstance(m, PeripheralConv2d) for m in model.modules()):
        raise CheckpointError(
            f'--factored is for peripheral convolutions, and '
            f'{type(model.backbone).__name__} has none; leave it out'
        )
    fill(model, weights, checkpoint)
    whole: nn.Module = Logits(model) if framework == 'mmseg' else Features(model)
    if framework == 'mmdet':
        say(WITHOUT_HEADS)
    if normalise:
        whole = Normalised(whole, model.data_preprocessor)
    whole.eval().requires_grad_(False)

    channels = next(model.backbone.downsample_layers.parameters()).shape[1]
    if dynamic and framework == 'mmdet':
        least = _least_open_side(whole, channels)
        _require_side(shape, least)
    say('computing what torch gives for random images')
    cases = _cases(whole, _shapes(channels, shape, least, dynamic), normalise)
    if deploy or factored:
        _fold(model)
    convolutions = use_torch_convolutions(model, factored)
    open_adaptive_pooling(model)
    say('exporting')
    program = _export(whole, (channels, *shape), least if dynamic else None)
    count = len(cases[0][1])
    names = ['logits'] if framework == 'mmseg' else [f'map{i}' for i in range(count)]
    proto = to_onnx(program, ['images'], names)
    if dynamic:
        name_open_sizes(proto, OPEN_AXES)
    set_notes(proto, _notes(cfg, model, meta, checkpoint, normalise))
    return finish(proto, out, cases, half, convolutions, say)


def finish(
    proto: Any,
    out: Path,
    cases: Sequence[tuple[Sequence[Tensor], Sequence[Tensor]]],
    half: bool,
    convolutions: Convolutions | None,
    say: Say,
) -> OnnxReport:
    """Convert to float16 on request, write and verify.

    Args:
        proto: An ``onnx.ModelProto``.
        out: The file.
        cases: Inputs, and the outputs that torch has for them.
        half: Whether to convert.
        convolutions: For the report.
        say: Called with a line at each step.

    Raises:
        CheckpointError: As `write_verified`.
    """
    if half:
        say('converting to float16')
        proto = to_half(proto)
    say('holding it to torch with onnxruntime')
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    checks = list(write_verified(proto, out, cases, tolerance))
    inputs, outputs = (
        {
            value.name: [
                d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim
            ]
            for value in values
        }
        for values in (proto.graph.input, proto.graph.output)
    )
    return OnnxReport(inputs, outputs, convolutions, checks)


def _require_side(shape: tuple[int, int], least: int) -> None:
    """Make sure that images are large enough.

    Raises:
        CheckpointError: If they are not.
    """
    if min(shape) < least:
        raise CheckpointError(
            f'images of {shape[0]} x {shape[1]} are too small; give --shape of at '
            f'least {least} x {least}'
        )


@torch.no_grad()
def _least_open_side(model: nn.Module, channels: int) -> int:
    """Least side of images whose sizes are left open.

    torch.export takes a side of 1 for one that never changes, so the coarsest map of
    a neck, coarser than the backbone's, has to have 2.
    """
    side = 16 * MIN_OPEN_SIDE
    maps = model(torch.zeros(1, channels, side, side))
    return max(MIN_OPEN_SIDE, *(2 * side // each.shape[-1] for each in maps))


def _shapes(
    channels: int, shape: tuple[int, int], least: int, dynamic: bool
) -> list[tuple[int, int, int, int]]:
    """Shapes of the images on which the file is held to torch."""
    height, width = shape
    if not dynamic:
        return [(1, channels, height, width)] * 3
    # The second is no multiple of a stride; maps of the third are smaller than the
    # kernels of 13 and above.
    return [
        (2, channels, height, width),
        (1, channels, height + 33, width + 97),
        (1, channels, least, least + 32),
    ]


@torch.no_grad()
def _cases(
    model: nn.Module, shapes: Sequence[tuple[int, ...]], raw: bool
) -> list[tuple[list[Tensor], list[Tensor]]]:
    """Random images of these shapes and the model's outputs."""
    generator = torch.Generator().manual_seed(0)
    cases = []
    for shape in shapes:
        images = torch.randn(shape, generator=generator)
        if raw:
            images = (images * 60 + 120).clamp(0, 255).round()
        outputs = model(images)
        outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        cases.append(([images], outputs))
    return cases


def _fold(model: nn.Module) -> None:
    """Fold what can be folded, in the backbone and around it, in place."""
    try:
        deploy_backbones(model)
    except RuntimeError as error:
        raise CheckpointError(str(error)) from error
    fold_conv_modules(model)


def can_leave_sizes_open() -> bool:
    """Whether this torch exports our models for images of any size."""
    return DEFERRED in inspect.signature(torch.export.export).parameters


def _require_open_sizes() -> None:
    """Raise a `CheckpointError` unless this torch can leave sizes open."""
    if not can_leave_sizes_open():
        raise CheckpointError(
            f'PyTorch {torch.__version__} cannot leave sizes open; export without '
            '--dynamic, or with a newer one (2.13 can)'
        )


def _export(
    model: nn.Module, shape: tuple[int, int, int], least: int | None
) -> torch.export.ExportedProgram:
    dims: Any = None
    options: dict[str, Any] = {DEFERRED: True} if least else {}
    if least:
        batch, *sides = OPEN_AXES.values()
        open_sides = {
            axis: torch.export.Dim(name, min=least, max=MAX_OPEN_SIDE)
            for axis, name in enumerate(sides, 2)
        }
        dims = ({0: torch.export.Dim(batch, max=MAX_BATCH), **open_sides},)
    images = torch.zeros(2 if least else 1, *shape)
    try:
        with plain(), torch.no_grad():
            return torch.export.export(
                model,
                (images,),
                dynamic_shapes=dims,
                strict=False,  # PyTorch 2.6 has another default
                **options,
            )
    except Exception as error:  # whatever tracing a head's code raises
        advice = '; without --dynamic the sizes are fixed' if least else ''
        raise CheckpointError(
            f'torch.export cannot trace the model: {first_line(error)}{advice}'
        ) from error


def _notes(
    cfg: Config,
    model: Any,
    meta: Mapping[str, Any],
    checkpoint: str | Path,
    normalise: bool,
) -> dict[str, Any]:
    """What a user of the file has to know, for its ``metadata_props``."""
    preprocessor = getattr(model, 'data_preprocessor', None)
    notes: dict[str, Any] = dict(
        pelk_mm=__version__,
        torch=torch.__version__,
        config=Path(cfg.filename or '').name,
        checkpoint=Path(checkpoint).name,
        model=type(model).__name__,
        backbone=type(model.backbone).__name__,
        normalised_inside=normalise,
        bgr_to_rgb=_swaps_channels(preprocessor),
    )
    for name in ('mean', 'std'):
        values = getattr(preprocessor, name, None)
        if isinstance(values, Tensor):
            notes[name] = [round(value, 6) for value in values.flatten().tolist()]
    data = meta.get('dataset_meta') or {}
    if not isinstance(data, Mapping) or not data.get('classes'):
        data = _data_set_meta(cfg)
    for name in ('classes', 'palette'):
        values = data.get(name)
        if values is not None:
            notes[name] = [
                value if isinstance(value, str) else [int(v) for v in value]
                for value in values
            ]
    return notes


def _data_set_meta(cfg: Config) -> Mapping[str, Any]:
    """Classes and palette of a config's test data, where they are told."""
    data_set = entry(cfg, 'test_dataloader', 'dataset')
    kind, metainfo = entry(data_set, 'type'), entry(data_set, 'metainfo')
    if isinstance(kind, str):
        with DATASETS.switch_scope_and_registry(find_framework(cfg)) as registry:
            kind = registry.get(kind)
    return {
        **getattr(kind, 'METAINFO', {}),
        **(metainfo if isinstance(metainfo, dict) else {}),
    }
