"""Read one sample of a data set as training would, and note what is wrong with it."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mmcv
import numpy as np
from mmengine import fileio

from pelk_mm.checkpoints.files import first_line

from .coco_file import fault_of_mask, reads_coco
from .findings import Finding
from .images import Facts, decode_whole, explain_no_image

#: Pixels that the backbones need on either side.
LEAST_SIDE = 32


@dataclass(frozen=True)
class Expected:
    """What a config takes the samples of a data set to be like.

    Attributes:
        classes: Number of classes, or None where it is not known.
        ignored: Label of pixels that are ignored.
        channels: Channels that the backbone takes.
        crop: Height and width of crops, or None where there are none.
        tested_at: Arguments of the ``Resize`` before a backbone that needs
            `LEAST_SIDE` pixels, or None where the images are padded or cropped.
        masks: Whether objects need masks.
        any_label: Whether losses treat labels beyond the classes as ignored.
    """

    classes: int | None = None
    ignored: int = 255
    channels: int = 3
    crop: tuple[int, int] | None = None
    tested_at: dict[str, Any] | None = None
    masks: bool = False
    any_label: bool = False


@dataclass
class Sample:
    """What was found in a sample; the images themselves are not kept.

    Attributes:
        image: Path of the image.
        digest: Hash of the file's bytes; empty if it could not be read.
        pixels: Hash of the image as it is loaded.
        size: Width and height as it is loaded, or None.
        labels: Pixels per label in the label map, or objects per class.
        ignored: Of these, ignored pixels or objects.
        findings: What is wrong.
    """

    image: str
    digest: str = ''
    pixels: str = ''
    size: tuple[int, int] | None = None
    labels: dict[int, int] = field(default_factory=dict)
    ignored: int = 0
    findings: list[Finding] = field(default_factory=list)


class SampleReader:
    """Reads samples by their number.

    Args:
        dataset: The data set, with nothing in its pipeline but steps that load.
        expected: What the samples should be like.
    """

    def __init__(self, dataset: Any, expected: Expected) -> None:
        self.dataset = dataset
        self.expected = expected
        steps = dataset.pipeline.transforms
        self._image_steps = [s for s in steps if 'Image' in type(s).__name__]
        self._label_steps = [s for s in steps if s not in self._image_steps]
        flags = {getattr(step, 'color_type', 'color') for step in self._image_steps}
        #: Whether mmcv turns images as their EXIF data says.
        self._turns = flags <= {'color', 'grayscale'}

    def __call__(self, number: int) -> Sample:
        """Read a sample; whatever is wrong with it is among its findings."""
        info = self.dataset.get_data_info(number)
        sample = Sample(str(info.get('img_path', f'sample {number}')))
        try:
            self._check(info, sample)
        except Exception as error:  # what no check has foreseen stops no other file
            reason = f'{type(error).__name__}: {first_line(error)}'
            self._note(sample, 'annotation', reason)
        return sample

    def _check(self, info: dict[str, Any], sample: Sample) -> None:
        facts = self._check_file(info, sample)
        if facts is not None and facts.fault:
            image = None
        else:
            image = self._load_image(info, sample, facts)
        if 'instances' in info:
            self._check_objects(info, sample, image, facts)
        elif info.get('seg_map_path') and self._label_steps:
            self._check_label_map(info, sample, image, facts)
        elif np.ndim(info.get('gt_label', [])) == 0:
            sample.labels = {int(info['gt_label']): 1}

    def _note(self, sample: Sample, kind: str, detail: str = '', at: str = '') -> None:
        sample.findings.append(Finding(kind, at or sample.image, detail))

    def _content(self, path: str) -> bytes:
        return fileio.get(
            path, backend_args=getattr(self.dataset, 'backend_args', None)
        )

    # ------------------------------------------------------------------ the image

    def _check_file(self, info: dict[str, Any], sample: Sample) -> Facts | None:
        """Read the image file on its own, before mm does."""
        if not isinstance(info.get('img_path'), str):
            return None
        failed = Facts((0, 0), '', 8, 1, 'is not read')
        try:
            content = self._content(sample.image)
        except FileNotFoundError:
            self._note(sample, 'image_missing')
            return failed
        except Exception as error:  # what a folder or a file backend raises
            self._note(sample, 'image_unreadable', first_line(error))
            return failed
        instead = explain_no_image(content)
        if instead:
            self._note(sample, 'image_unreadable', instead)
            return failed
        sample.digest = _hash(content)
        facts = decode_whole(content)
        if facts is not None and facts.fault:
            opened = facts.size != (0, 0)
            kind = 'image_truncated' if opened else 'image_unreadable'
            self._note(sample, kind, facts.fault)
        return facts

    def _load_image(
        self, info: dict[str, Any], sample: Sample, facts: Facts | None
    ) -> np.ndarray | None:
        """Load the image with the pipeline's own steps; None if that fails."""
        results: Any = dict(info)
        try:
            for step in self._image_steps:
                results = step(results)
            image = results['img']
        except Exception as error:  # whatever a decoder raises
            reason = first_line(error)
            if 'failed to load image' in reason:
                reason = 'mmcv cannot decode it'
                if facts is not None:
                    reason += f': {facts.mode} of {facts.bits} bits per value'
            self._note(sample, 'image_unreadable', reason)
            return None
        height, width = image.shape[:2]
        sample.size = width, height
        sample.pixels = _hash(np.ascontiguousarray(image)) + str(image.shape)
        self._check_values(image, sample, facts)
        self._check_size(sample)
        if facts is not None and facts.orientation > 1 and self._turns:
            self._note(sample, 'turned', f'orientation {facts.orientation}')
        return image

    def _check_values(
        self, image: np.ndarray, sample: Sample, facts: Facts | None
    ) -> None:
        channels = image.shape[2] if image.ndim == 3 else 1
        if image.ndim == 2 or channels != self.expected.channels:
            shape = f'loaded as {channels} channel{"s" * (channels > 1)}'
            self._note(sample, 'channels', f'{shape}, not {self.expected.channels}')
        elif facts is None:
            pass
        elif facts.bits > 16:
            kind = f'{facts.bits} bits per value, loaded as {image.dtype}'
            self._note(sample, 'depth', kind)
        elif facts.bits == 16 and image.dtype == np.uint8:
            most = int(image.max())
            if most < 16:  # 12 bits or fewer were used
                self._note(sample, 'depth', f'nearly black: at most {most} of 255')
            else:
                self._note(sample, 'sixteen_bits')
        elif image.dtype == np.uint16:
            self._note(sample, 'depth', 'loaded with 16 bits, which mm does not scale')
        if facts and facts.mode in ('RGBA', 'LA', 'PA') and channels == 3:
            self._note(sample, 'transparent')

    def _check_size(self, sample: Sample) -> None:
        assert sample.size is not None
        width, height = sample.size
        crop, resize = self.expected.crop, self.expected.tested_at
        if crop and (height < crop[0] or width < crop[1]):
            self._note(sample, 'smaller_than_crop', f'{width} x {height} (W x H)')
        if max(width, height) > 8 * min(width, height):
            self._note(sample, 'long', f'{width} x {height} (W x H)')
        if resize is not None:
            tested = _resized(sample.size, resize)
            if min(tested) < LEAST_SIDE:
                detail = (
                    f'{width} x {height} (W x H), tested at {tested[0]} x {tested[1]}'
                )
                self._note(sample, 'too_small', detail)

    # ------------------------------------------------------------------ label maps

    def _check_label_map(
        self,
        info: dict[str, Any],
        sample: Sample,
        image: np.ndarray | None,
        facts: Facts | None,
    ) -> None:
        path = info['seg_map_path']
        try:
            content = self._content(path)
        except FileNotFoundError:
            self._note(sample, 'labels_missing', at=path)
            return
        except Exception as error:
            self._note(sample, 'labels_unreadable', first_line(error), path)
            return
        stored = decode_whole(content)
        instead = explain_no_image(content) or (stored.fault if stored else '')
        if instead:
            self._note(sample, 'labels_unreadable', instead, path)
            return
        results: Any = {**info, 'seg_fields': []}
        if image is not None:
            results.update(img=image, img_shape=image.shape[:2])
            results['ori_shape'] = image.shape[:2]
        try:
            for step in self._label_steps:
                results = step(results)
            labels = results['gt_seg_map']
        except Exception as error:
            self._note(sample, 'labels_unreadable', first_line(error), path)
            return
        self._check_labels(labels, path, content, stored, sample)
        if labels.ndim == 2 and image is not None and labels.shape != image.shape[:2]:
            turned = facts is not None and facts.orientation > 4
            detail = (
                f'{labels.shape[1]} x {labels.shape[0]}, the image '
                f'{image.shape[1]} x {image.shape[0]} (W x H)'
            )
            detail += ' after its EXIF data has turned it' * turned
            self._note(sample, 'labels_size', detail, path)

    def _check_labels(
        self,
        labels: np.ndarray,
        path: str,
        content: bytes,
        stored: Facts | None,
        sample: Sample,
    ) -> None:
        if labels.ndim == 3:
            detail = f'{labels.shape[2]} channels'
            self._note(sample, 'labels_form', detail, path)
            return
        if labels.ndim < 2:
            # LoadAnnotations squeezes, and the crop then fails for lack of a side.
            detail = 'a side of 1 pixel, which mmseg drops as it loads it'
            self._note(sample, 'labels_form', detail, path)
        if stored is not None and stored.bits > 8:
            raw = mmcv.imfrombytes(content, 'unchanged', backend='pillow')
            most = int(np.max(raw))
            if most > 255:
                detail = f'{stored.bits} bits with values up to {most}, cut off at 255'
                self._note(sample, 'labels_form', detail, path)
                return
        counts = np.bincount(labels.ravel())
        found = {int(v): int(counts[v]) for v in np.flatnonzero(counts)}
        sample.ignored = found.pop(self.expected.ignored, 0)
        sample.labels = found
        count = self.expected.classes
        wrong = [v for v in found if count is not None and v >= count]
        if wrong and not self.expected.any_label:
            listed = ', '.join(f'{v} ({found[v]} pixels)' for v in wrong[:8])
            more = f' and {len(wrong) - 8} more' if len(wrong) > 8 else ''
            detail = f'label {listed}{more}; the classes are 0 to {(count or 0) - 1}'
            self._note(sample, 'labels_range', detail, path)
        if not found and sample.ignored:
            self._note(sample, 'labels_ignored', at=path)

    # ------------------------------------------------------------------ objects

    def _check_objects(
        self,
        info: dict[str, Any],
        sample: Sample,
        image: np.ndarray | None,
        facts: Facts | None,
    ) -> None:
        for instance in info['instances']:
            if instance.get('ignore_flag'):
                sample.ignored += 1
            else:
                label = int(instance['bbox_label'])
                sample.labels[label] = sample.labels.get(label, 0) + 1
        if not sample.labels:
            self._note(sample, 'no_objects', 'crowds alone' * bool(sample.ignored))
        if image is None:
            return
        shape = image.shape[:2]
        stated = info.get('height', shape[0]), info.get('width', shape[1])
        if stated != shape:
            turned = facts is not None and facts.orientation > 4
            detail = f'{shape[1]} x {shape[0]}, the file says {stated[1]} x {stated[0]}'
            detail += ' and EXIF data turns it' * turned
            self._note(sample, 'image_size', f'{detail} (W x H)')
            return
        if self.expected.masks and any(
            'mask' not in instance for instance in info['instances']
        ):
            return  # reported with the number of the annotation
        if self.expected.masks:
            size = dict(height=shape[0], width=shape[1])
            masks = (instance['mask'] for instance in info['instances'])
            fault = next(
                filter(None, (fault_of_mask(mask, size) for mask in masks)), ''
            )
            if fault:
                if not reads_coco(self.dataset):  # else reported with the number too
                    self._note(sample, 'mask', fault)
                return
        results: Any = dict(info, img=image, img_shape=shape, ori_shape=shape)
        results['instances'] = [dict(instance) for instance in info['instances']]
        try:
            for step in self._label_steps:
                results = step(results)
        except Exception as error:  # whatever a malformed annotation causes
            self._note(sample, 'annotation', first_line(error))


def _resized(size: tuple[int, int], resize: dict[str, Any]) -> tuple[int, int]:
    """Size after a ``Resize`` step, from its arguments; as it is without any."""
    scale = resize.get('scale')
    if scale is None:
        factor = resize.get('scale_factor')
        return size if factor is None else mmcv.rescale_size(size, factor)
    scale = (scale, scale) if isinstance(scale, int) else tuple(scale)
    if resize.get('keep_ratio'):
        return mmcv.rescale_size(size, scale)
    return scale


def _hash(content: Any) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def find_duplicates(
    splits: Mapping[str, Sequence[Sample]],
) -> Iterator[tuple[str, Finding]]:
    """Find images that occur twice, by their bytes or else by their pixels.

    Args:
        splits: Samples by the name of the split, in the order in which an image belongs
            to the first.

    Yields:
        The split of the later of the two, and a finding.
    """
    seen: dict[str, tuple[str, str]] = {}
    for split, samples in splits.items():
        for sample in samples:
            keys = [key for key in (sample.digest, sample.pixels) if key]
            first = next((seen[key] for key in keys if key in seen), None)
            if first is None:
                seen.update(dict.fromkeys(keys, (split, sample.image)))
                continue
            same = 'bytes' if sample.digest in seen else 'pixels'
            detail = f'the same {same} as {first[1]}'
            if first[0] == split:
                yield split, Finding('duplicate', sample.image, detail)
            else:
                yield split, Finding('leak', sample.image, f'{detail} of {first[0]}')
