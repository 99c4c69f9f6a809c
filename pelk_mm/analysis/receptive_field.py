"""Effective receptive fields: the pixels that the last map's centre depends on.

As RepLKNet measures them (Ding et al., CVPR 2022, the section on effective receptive
fields, and the code released with it), and after it SLaK and PeLK. With M the last
stage's map of an image I, before any output norm, both in evaluation mode:

    contribution of a pixel = mean over images of the sum over the image's channels of
                              max(0, dc / dI),   c = sum over M's channels of
                                                 max(0, M at (h // 2, w // 2))

    log-scaled contribution = log10(1 + contribution), divided by its maximum

    area of a share t       = pixels in the smallest square around the image's centre
                              that holds more than t of the sum of the log-scaled
                              contributions, over all pixels of the image

The squares are centred at (H // 2, W // 2) and have odd sides, so that one of a single
pixel is the smallest; where one grows beyond the image, what is inside counts. The
released code is the same for squares from 3 pixels up to the image's borders.

The logarithm is not relative to anything: gradients much smaller than 1 are left as
they are, large ones are compressed, and compressed ones spread over larger areas. Areas
of models whose gradients differ by orders of magnitude are comparable only without it
(`squares` of the contributions themselves).
"""

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pelk_mm.backbones import LargeKernelBackbone
from pelk_mm.checkpoints.files import Track, untracked, write_output
from pelk_mm.ops.choose import ENVIRONMENT_VARIABLE
from pelk_mm.ops.switch import is_plain

#: Shares of the contributions whose areas the papers report.
SHARES = (0.2, 0.3, 0.5, 0.99)

#: Images or seconds after which the sum is saved, whichever comes first.
SAVE_EVERY, SAVE_SECONDS = 5, 30.0


# --------------------------------------------------------------------- one image


def last_map(backbone: nn.Module, images: Tensor) -> Tensor:
    """Last feature map of a backbone.

    Args:
        backbone: Of a `LargeKernelBackbone` it is the map of the last stage that is an
            output, before the norm that follows the output: the released code measures
            a classifier before its last norm. Of any other it is the last output.
        images: Images of shape (N, C, H, W).

    Returns:
        The map, of shape (N, channels, h, w).

    Raises:
        ValueError: If the output is no map.
    """
    if isinstance(backbone, LargeKernelBackbone):
        found: list[Tensor] = []
        stage = backbone.stages[backbone.out_indices[-1]]
        handle = stage.register_forward_hook(lambda _, args, out: found.append(out))
        try:
            backbone(images)
        finally:
            handle.remove()
        return found[-1]
    out: Any = backbone(images)
    while isinstance(out, (list, tuple)) and out:
        out = out[-1]
    if not isinstance(out, Tensor) or out.dim() != 4:
        what = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ValueError(
            f'the last output of {type(backbone).__name__} is {what}, not a map of '
            'shape (N, C, H, W)'
        )
    return out


def contributions(backbone: nn.Module, image: Tensor) -> np.ndarray:
    """Contribution of each pixel of an image, as the module's docstring defines it.

    Args:
        backbone: The backbone, in evaluation mode.
        image: A normalised image of shape (1, C, H, W).

    Returns:
        Float64 values of shape (H, W), none of them negative but NaN if the gradient
        is.
    """
    image = image.detach().requires_grad_()
    with torch.enable_grad():
        maps = last_map(backbone, image)
        height, width = maps.shape[-2:]
        centre = maps[:, :, height // 2, width // 2].relu().sum()
        (gradient,) = torch.autograd.grad(centre, image)
    return gradient.relu().sum((0, 1), dtype=torch.float64).cpu().numpy()


# ------------------------------------------------------------------------- areas


@dataclass(frozen=True)
class Square:
    """The smallest square around the centre that holds a share of the contributions.

    Attributes:
        share: The share, in (0, 1).
        side: Its side in pixels; odd.
        area: The pixels of it that are in the image, over all of the image's.
    """

    share: float
    side: int
    area: float


def log_scaled(matrix: np.ndarray) -> np.ndarray:
    """Log-scaled contributions, in [0, 1], of contributions of shape (H, W).

    Raises:
        ValueError: If no contribution is positive.
    """
    scaled = np.log10(1 + matrix)
    if not scaled.max() > 0:
        raise ValueError('no pixel contributes to the centre of the last map')
    return scaled / scaled.max()


def squares(matrix: np.ndarray, shares: Sequence[float] = SHARES) -> list[Square]:
    """Find the smallest squares around the centre that hold shares of a sum.

    Args:
        matrix: Values of shape (H, W), none negative.
        shares: The shares, each in (0, 1).

    Raises:
        ValueError: If a share is out of range or the sum is not positive.
    """
    for share in shares:
        if not 0 < share < 1:
            raise ValueError(f'share {share} is not between 0 and 1')
    height, width = matrix.shape
    row, column = height // 2, width // 2
    radii = np.arange(max(row, column) + 1)
    top, bottom = np.maximum(row - radii, 0), np.minimum(row + radii + 1, height)
    left, right = np.maximum(column - radii, 0), np.minimum(column + radii + 1, width)
    table = np.pad(matrix.astype(np.float64), ((1, 0), (1, 0))).cumsum(0).cumsum(1)
    total = table[-1, -1]
    if not total > 0:
        raise ValueError('no pixel contributes to the centre of the last map')
    held = table[bottom, right] - table[top, right] - table[bottom, left]
    held = (held + table[top, left]) / total
    found = []
    for share in shares:
        radius = int(np.argmax(held > share))  # the last one holds everything
        rows, columns = bottom - top, right - left
        area = float(rows[radius] * columns[radius] / matrix.size)
        found.append(Square(share, 2 * radius + 1, area))
    return found


# ------------------------------------------------------------------- many images


@dataclass(frozen=True)
class Sample:
    """An image to measure on.

    Attributes:
        name: What it is called.
        identity: What changes when its pixels do.
        read: Makes the normalised image, of shape (1, C, H, W).
    """

    name: str
    identity: str
    read: Callable[[], Tensor]


@dataclass
class Field:
    """The sum of contributions over images, as far as it is computed.

    Attributes:
        key: What the sum depends on apart from the images, see `field_key`.
        total: The sum, float64 of shape (H, W).
        seen: Identities of the images, in the order of summation.
        skipped: Names of those among them whose gradient is not finite; they are not
            in the sum.
    """

    key: str
    total: np.ndarray
    seen: list[str] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    @property
    def images(self) -> int:
        """Number of images in the sum."""
        return len(self.seen) - len(self.skipped)

    @property
    def mean(self) -> np.ndarray:
        """Mean contribution of each pixel, float64 of shape (H, W).

        Raises:
            ValueError: If no image is in the sum.
        """
        if not self.images:
            raise ValueError(
                f'the gradients on all {len(self.skipped)} images are NaN or infinite'
            )
        return self.total / self.images

    def save(self, path: Path) -> None:
        """Write it to a file, completely or not at all.

        Raises:
            CheckpointError: If the file cannot be written.
        """
        notes = {k: v for k, v in asdict(self).items() if k != 'total'}
        with write_output(path) as temporary, temporary.open('wb') as file:
            np.savez(file, total=self.total, notes=np.array(json.dumps(notes)))

    def _is_sound(self) -> bool:
        """Whether values are of the types that a computation leaves."""
        return (
            isinstance(self.key, str)
            and self.total.ndim == 2
            and self.total.dtype == np.float64
            and all(
                isinstance(names, list) and all(isinstance(name, str) for name in names)
                for names in (self.seen, self.skipped)
            )
        )

    @classmethod
    def load(cls, path: Path) -> 'Field | None':
        """Read what `save` has written; None from anything else."""
        try:
            with np.load(path, allow_pickle=False) as file:
                found = cls(total=file['total'], **json.loads(str(file['notes'])))
        except Exception:  # whatever a parser raises at meaningless bytes
            return None
        return found if found._is_sound() else None


def field_key(backbone: nn.Module, size: Sequence[int], preprocessing: str) -> str:
    """A text that is another if anything but the images of a `Field` is.

    Args:
        backbone: The backbone; its modules and every bit of its weights count.
        size: Height and width of the images.
        preprocessing: How pixels become inputs.
    """
    digest = hashlib.sha256(repr(backbone).encode())
    for name, tensor in backbone.state_dict().items():
        digest.update(f'{name} {tensor.dtype} {tuple(tensor.shape)}'.encode())
        digest.update(
            tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy()
        )
    device = next((p.device.type for p in backbone.parameters()), 'cpu')
    settings = dict(
        weights=digest.hexdigest(),
        size=list(size),
        preprocessing=preprocessing,
        device=device,
        torch=torch.__version__,
        convolution=os.environ.get(ENVIRONMENT_VARIABLE) or None,
        plain=is_plain(),
    )
    return json.dumps(settings)


def resume(path: Path, key: str, samples: Sequence[Sample]) -> tuple[Field | None, str]:
    """Find out what a file has of a measurement.

    Returns:
        The sum over the first of the samples, or None where the file is of no use, and
        why it is not, '' where there is no file.
    """
    if not path.exists():
        return None, ''
    found = Field.load(path)
    if found is None:
        return None, 'it is damaged'
    if found.key != key:
        try:
            old, new = json.loads(found.key), json.loads(key)
            changed = [name for name in new if old.get(name) != new[name]]
        except (ValueError, AttributeError):
            changed = []
        return None, f'it was made with other {", ".join(changed) or "settings"}'
    wanted = [sample.identity for sample in samples]
    if found.seen != wanted[: len(found.seen)]:
        return None, 'its images are not the first of these'
    return found, ''


def measure(
    backbone: nn.Module,
    samples: Sequence[Sample],
    key: str,
    path: Path | None = None,
    start: Field | None = None,
    track: Track = untracked,
) -> Field:
    """Sum the contributions over images, one image at a time.

    Args:
        backbone: The backbone; it is set to evaluation mode and its parameters lose
            their gradients, which saves half of the backward pass.
        samples: The images, of one size.
        key: The `field_key`.
        path: Where to save the sum: every few images, at the end, and when the
            computation is interrupted.
        start: A sum over the first of the samples, to go on from.
        track: Shows progress.

    Raises:
        ValueError: If there are no samples.
        CheckpointError: If the file cannot be written.
    """
    if not samples:
        raise ValueError('there are no images')
    backbone.eval().requires_grad_(False)
    result = start
    done = saved = 0 if start is None else len(start.seen)
    time_saved = time.monotonic()

    def save() -> None:
        nonlocal saved, time_saved
        if path is not None and result is not None and len(result.seen) > saved:
            result.save(path)
            saved, time_saved = len(result.seen), time.monotonic()

    rest: Iterable[Sample] = samples[done:]
    try:
        for sample in track(rest, 'contributions', len(samples) - done):
            matrix = contributions(backbone, sample.read())
            if result is None:
                result = Field(key, np.zeros_like(matrix))
            finite = bool(np.isfinite(matrix).all())
            if finite:
                result.total += matrix
            else:
                result.skipped.append(sample.name)
            result.seen.append(sample.identity)
            late = time.monotonic() - time_saved >= SAVE_SECONDS
            if late or len(result.seen) % SAVE_EVERY == 0:
                save()
    finally:
        save()
    assert result is not None
    return result
