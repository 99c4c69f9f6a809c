"""Predict for images, folders and videos, and write the pictures."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import cv2
import numpy as np

from pelk_mm.conversion.report import show_progress
from pelk_mm.files import write_atomically

from .cam import (
    COLD,
    HOT,
    class_activation,
    list_layers,
    paint_heat,
    require_category,
    require_grad_cam,
    require_layer,
)
from .images import (
    VIDEO_SUFFIXES,
    ImageError,
    encode_png,
    find_inputs,
    name_results,
)
from .models import InferenceError, Model, open_model
from .overlay import Entry, add_legend, draw_result

#: Frames per second of a video that does not say how many it has.
DEFAULT_RATE = 25.0


class CamSettings(NamedTuple):
    """What activation maps to make.

    Attributes:
        layer: Dotted name of the layer.
        category: The class; None for the one with the most pixels.
    """

    layer: str
    category: int | None = None


class Outcome(NamedTuple):
    """What became of some files.

    Attributes:
        written: The pictures and videos.
        problems: A sentence for each file that has none.
    """

    written: list[Path]
    problems: list[str]


def show_images(
    model: Model,
    files: Sequence[Path],
    results: Sequence[Path],
    threshold: float = 0.3,
    cam: CamSettings | None = None,
    cam_results: Sequence[Path] = (),
) -> Outcome:
    """Write an overlay with a legend for each image, and its activation map.

    A file that cannot be read or predicted for does not stop the others.

    Args:
        model: What predicts.
        files: The images.
        results: Where the overlay of each goes, a PNG.
        threshold: Least score of an object that is drawn.
        cam: What activation maps to make, if any.
        cam_results: Where the activation map of each image goes.
    """
    written: list[Path] = []
    problems: list[str] = []
    maps = cam_results if cam else [None] * len(files)
    rows = zip(files, results, maps, strict=True)
    for path, result, cam_result in show_progress(rows, 'predicting', len(files)):
        try:
            image = model.read_image(path)
            picture = add_legend(
                *draw_result(model, image, model.predict(image), threshold)
            )
            _write(result, encode_png(picture))
            written.append(result)
            if cam is not None and cam_result is not None:
                heat, what = class_activation(model, image, *cam)
                lines = [
                    Entry(what, HOT, 'most'),
                    Entry(f'at {cam.layer}', COLD, 'least'),
                ]
                heated = add_legend(paint_heat(image, heat), lines)
                _write(cam_result, encode_png(heated))
                written.append(cam_result)
        except (ImageError, InferenceError) as error:
            name = '' if str(path) in str(error) else f'{path}: '
            problems.append(f'{name}{error}')
    return Outcome(written, problems)


def _write(path: Path, content: bytes) -> None:
    """Write a result and the folders around it, or raise an `ImageError`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_atomically(path) as temporary:
            temporary.write_bytes(content)
    except OSError as error:
        raise ImageError(f'{path} cannot be written: {error.strerror}') from error


def show_video(
    model: Model, path: Path, result: Path, threshold: float = 0.3
) -> tuple[int, int | None]:
    """Write a video of overlays, each with the legend of its own classes.

    Args:
        model: What predicts.
        path: The video.
        result: Where the overlays go, an ``.mp4``; it appears when it is complete.
        threshold: Least score of an object that is drawn.

    Returns:
        Number of the frames written, and the number that the file claims to have; None
        where it claims none.

    Raises:
        ImageError: If the video cannot be read, or the result not be written.
        InferenceError: If the model fails on a frame.
    """
    with _opened(path) as video:
        claimed = round(video.get(cv2.CAP_PROP_FRAME_COUNT))
        total = claimed if claimed > 0 else None
        rate = video.get(cv2.CAP_PROP_FPS)
        rate = rate if 0 < rate < 1000 else DEFAULT_RATE
        frames = show_progress(_frames(video), 'predicting', total or 0)
        try:
            result.parent.mkdir(parents=True, exist_ok=True)
            with (
                write_atomically(result) as temporary,
                # Its ending tells OpenCV the format, and temporary names have none.
                TemporaryDirectory(dir=result.absolute().parent, prefix='.') as folder,
            ):
                unfinished = Path(folder, 'video.mp4')
                count = _encode(model, frames, unfinished, rate, threshold)
                if not count:
                    raise ImageError(f'{path} has no frame that can be decoded')
                unfinished.replace(temporary)
        except OSError as error:
            raise ImageError(f'{result} cannot be written: {error.strerror}') from error
    return count, total


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A video, closed afterwards."""
    video = cv2.VideoCapture(str(path))
    try:
        if not video.isOpened():
            raise ImageError(f'{path} cannot be read as a video')
        yield video
    finally:
        video.release()


def _frames(video: Any) -> Iterator[np.ndarray]:
    """Frames of an opened video, (H, W, 3), blue first."""
    while True:
        found, frame = video.read()
        if not found:
            return
        yield frame


def _encode(
    model: Model, frames: Any, path: Path, rate: float, threshold: float
) -> int:
    """Write the overlays of frames into a video; returns how many."""
    writer, size, count = None, (0, 0), 0
    try:
        for frame in frames:
            drawn = draw_result(model, frame, model.predict(frame), threshold)
            picture = add_legend(*drawn, fixed=True)
            if writer is None:
                size = (picture.shape[1], picture.shape[0])
                writer = cv2.VideoWriter(
                    str(path), cv2.VideoWriter.fourcc(*'mp4v'), rate, size
                )
                if not writer.isOpened():
                    raise ImageError(
                        'OpenCV was built without an encoder for mp4v; install '
                        'opencv-python from its wheel'
                    )
            writer.write(picture[..., ::-1])
            count += 1
    finally:
        if writer is not None:
            writer.release()
    return count


def show_all(
    source: str,
    config: str,
    checkpoint: str,
    out: Path,
    device: str = 'cpu',
    deploy: bool = False,
    threshold: float = 0.3,
    cam: str | None = None,
    cam_class: str | None = None,
    prepare: str | None = None,
) -> list[str]:
    """Predict for what a command line names; standard output says what is written.

    Args:
        source: An image, a folder, a pattern or a video; see `find_inputs`.
        config: Config of the model.
        checkpoint: Its checkpoint.
        out: Folder for the pictures; it is made.
        device: Device to predict on.
        deploy: Whether to bring the backbone into its deployment form first.
        threshold: Least score of an object that is drawn.
        cam: Layer of the activation maps; ``list`` lists the layers instead of anything
            else; None for no maps.
        cam_class: Class of the maps; None for the one with the most pixels.
        prepare: Data type to prepare the model for, see `open_model`. Without maps:
            they need gradients.

    Returns:
        A sentence for each file that could not be done.

    Raises:
        ImageError: If there is nothing to read or no place to write.
        InferenceError: If the model cannot be opened or has no such layer or class.
        ConfigError: If the config cannot be read.
        CheckpointError: If the checkpoint cannot be, or does not fit.
    """
    root, files = find_inputs(source)
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in files if path not in videos]
    results = name_results(root, images, out)
    video_results = name_results(root, videos, out, '.mp4')
    cam_results = name_results(root, images, out, mark='_cam')
    if cam is not None:
        if cam != 'list':
            require_grad_cam()
        if not images:
            raise ImageError(f'{source}: --cam is for images, and this is a video')
        if clash := set(results) & set(cam_results):
            raise ImageError(f'two pictures would be named {clash.pop()}; rename one')
    model = open_model(config, checkpoint, device, deploy, prepare)
    for notice in model.notices:
        print(f'note: {notice}')
    settings = None
    if cam == 'list':
        for name, kind, shape in list_layers(model, model.read_image(images[0])):
            print(f'{name}  {kind}  {" x ".join(map(str, shape))}')
        return []
    if cam is not None:
        require_layer(model, cam)
        category = None if cam_class is None else require_category(model, cam_class)
        settings = CamSettings(cam, category)
    written, problems = show_images(
        model, images, results, threshold, settings, cam_results
    )
    if written:
        print(f'{len(written)} picture{"s" * (len(written) > 1)} in {out}')
    for path, result in zip(videos, video_results, strict=True):
        try:
            count, claimed = show_video(model, path, result, threshold)
        except (ImageError, InferenceError) as error:
            problems.append(str(error))
            continue
        print(f'{count} frames in {result}')
        if claimed is not None and count + 1 < claimed:
            problems.append(
                f'{path} ends after {count} of the {claimed} frames that it should have'
            )
    return problems
