"""Drawn outdoor scenes in ADE20K's directory layout.

Streets, country roads, farms and coasts with perspective, occlusion, texture, weather,
shadows and noise. ``scenes.yaml`` describes them; this file draws what it describes. A
scene depends on nothing but the seed, the split and its number.
"""

import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

_DATA = yaml.safe_load(Path(__file__).with_suffix('.yaml').read_text())
_DRAWINGS = _DATA['drawings'] | _DATA['scenes']
KINDS = list(_DATA['scenes'])  # in turn those of scenes 0, 1, 2, ...
LABELS = {name: number for name, (number, *_) in _DATA['classes'].items()}
UNLABELLED = 0  # ADE20K's number for what belongs to none of its classes
SPLITS = dict(training='train', validation='val')  # folder and part of file names
IMAGE_SIZE = (144, 192)  # height, width

_OVERSAMPLING = 2  # scenes are drawn larger and averaged down, which softens edges
_TERM = re.compile(r'([+-]?)(\d*\.?\d*)([a-z]*)')
_ANGLES = np.linspace(0, 2 * np.pi, 24, endpoint=False)
_CIRCLE = np.stack([np.cos(_ANGLES), np.sin(_ANGLES)], axis=1)

_Names = dict[str, Any]  # numbers and colours by name
_Frame = tuple[np.ndarray, np.ndarray]  # x and y of the base; width and height


@lru_cache(None)
def _terms(text: str) -> list[tuple[float, str]]:
    """Factor and name of each term of a sum such as ``-1.15mid+.02``."""
    terms = [term for term in _TERM.findall(text) if any(term)]
    return [(float(f'{sign}{factor or 1}'), name) for sign, factor, name in terms]


def _number(value: float | str, names: _Names) -> float:
    """Value of a number or of a sum over named numbers."""
    if not isinstance(value, str):
        return value
    return sum(factor * (names[name] if name else 1) for factor, name in _terms(value))


class _Canvas:
    """An image and its annotation, drawn together."""

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.size = size
        self.scale = size[0] * _OVERSAMPLING
        shape = (self.scale, size[1] * _OVERSAMPLING)
        self.image = np.zeros((*shape, 3), np.float32)
        self.labels = np.full(shape, UNLABELLED, np.uint8)
        self.light = np.ones(shape, np.float32)

    def value(self, given: str | list, names: _Names) -> float | np.ndarray:
        """A number from a range, or a colour (blue, green, red) near one of some."""
        if isinstance(given, list):
            return self.rng.uniform(*(_number(end, names) for end in given))
        colour = bytes.fromhex(str(self.rng.choice(given.split())))[::-1]
        noise = self.rng.normal(0, (0.06, 7, 7, 7))
        return np.clip(np.array([*colour]) * (1 + noise[0]) + noise[1:], 10, 250)

    def draw(self, what: str, names: _Names, frame: _Frame, label: int) -> None:
        """Draw a drawing of the data, or shapes, of a class unless it names another."""
        if what not in _DRAWINGS:
            for shape in what.split(';'):
                self._fill(shape, names, frame, label)
            return
        base, scale = frame
        label = LABELS.get(what, label)
        for part in _DRAWINGS[what]:
            if isinstance(part, str):
                self.draw(part, names, frame, label)
            elif isinstance(part, dict) and 'put' not in part:
                names = names | {k: self.value(v, names) for k, v in part.items()}
                frame = base, scale = base, scale * (names.pop('stretch', 1), 1)
            else:
                puts = part if isinstance(part, list) else [part]
                places = [place for put in puts for place in self._places(put, names)]
                places.sort(key=lambda place: -place[0][1])
                for inner, size, child, known in places:
                    place = (base + scale * inner, scale * size)
                    self.draw(child, known, place, label)

    def _places(
        self, put: dict[str, Any], names: _Names
    ) -> Iterator[tuple[np.ndarray, np.ndarray, str, _Names]]:
        """Base and size of what a ``put`` draws, what it is and what it knows."""
        rng = self.rng

        def at(key: str, share: float, default: float = 0) -> float:
            ends = put.get(key, default)
            first, last = ends if isinstance(ends, list) else (ends, ends)
            first, last = _number(first, names), _number(last, names)
            return first + share * (last - first)

        spots = []  # share of the way from the first to the last one, base, size
        if 'cell' in put:
            spans = [at(axis, 1) - at(axis, 0) for axis in 'xy']
            cells = [at('cell', 0), at('cell', 1)]
            columns, rows = (
                max(1, round(s / c)) for s, c in zip(spans, cells, strict=True)
            )
            for row, column in product(range(rows), range(columns)):
                base = (at('x', (column + 0.5) / columns), at('y', row / rows))
                spots.append((row / rows, base, (spans[0] / columns, spans[1] / rows)))
        else:
            low, high = put.get('count', (1, 1))
            count = rng.integers(low, high + 1)
            for share in (np.arange(count) + rng.uniform(size=count)) / count:
                flip, side = 1 - 2 * rng.integers(2, size=2)
                aside = side * rng.uniform(at('gap', share), at('spread', share))
                size = at('size', share, 1) * rng.uniform(0.85, 1.15) ** ('size' in put)
                base = (at('x', share) + aside, at('y', share))
                spots.append((share, base, (flip * size, size)))
        options = put['put'] if isinstance(put['put'], list) else [put['put']]
        for share, base, size in spots:
            if rng.random() < at('chance', share, 1):
                tone = names['tone'] * at('tone', share, 1)
                fog = at('fog', share, names['fog'])
                child = options[rng.integers(len(options))]
                known = names | dict(tone=tone, fog=fog)
                yield np.array(base), np.array(size), child, known

    def _fill(self, shape: str, names: _Names, frame: _Frame, label: int) -> None:
        """Fill a shape, darken the ground, or blur what is drawn so far."""
        kind, paint, *corners = shape.split()
        if kind == 'blur':
            sigma = float(paint) * self.scale
            self.image = cv2.GaussianBlur(self.image, (0, 0), sigma)
            return
        texts = [corner.split(',') for corner in corners]
        points = np.array([[_number(text, names) for text in pair] for pair in texts])
        if kind == 'box':
            (left, low), (right, high) = points
            points = np.array([(left, low), (left, high), (right, high), (right, low)])
        elif kind in ('oval', 'shadow'):
            points = points[0] + points[1] * _CIRCLE
        elif kind == 'curve':
            for _ in range(3):  # Chaikin's corner cutting
                after = np.roll(points, -1, axis=0)
                cut = (0.75 * points + 0.25 * after, 0.25 * points + 0.75 * after)
                points = np.stack(cut, axis=1).reshape(-1, 2)
        points = (frame[0] + frame[1] * points) * (1, -1) + (0, 1)
        pixels = [np.round(points * self.scale).astype(np.int32)]
        if kind == 'shadow':
            cv2.fillPoly(self.light, pixels, float(paint))
            return
        owner, _, paint = paint.rpartition(':')
        name, _, tone = paint.partition('*')
        colour = names[name] * names['tone'] * float(tone or 1)
        colour = colour * self.rng.normal(1, 0.03)
        colour += names['fog'] * (names['haze'] - colour)
        cv2.fillPoly(self.image, pixels, colour.tolist())
        cv2.fillPoly(self.labels, pixels, LABELS[owner] if owner else label)
        cv2.fillPoly(self.light, pixels, 1.0)  # it stands in light

    def finish(self, light: list[float]) -> tuple[np.ndarray, np.ndarray]:
        """Apply texture, light, blur and noise; return the image and annotation."""
        rng = self.rng
        shade = cv2.GaussianBlur(self.light, (0, 0), 0.006 * self.scale)
        for number, height, width, contrast in _DATA['classes'].values():
            mask = self.labels == number
            if mask.any():
                grain = self._grain(height / 100, width / 100)
                shade[mask] *= 1 + contrast * grain[mask]
        # Light from one side, a little uneven over the picture.
        slope = np.linspace(-1, 1, shade.shape[1], dtype=np.float32)
        shade *= 1 + rng.normal(0, 0.08) * slope + 0.05 * self._grain(0.5, 0.7)
        exposure = np.array(light[::-1], np.float32) * rng.uniform(0.85, 1.15)
        image = self.image * shade[..., None] * exposure
        image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.2, 0.7))
        image += rng.normal(0, rng.uniform(2, 8), image.shape)
        step = slice(_OVERSAMPLING // 2, None, _OVERSAMPLING)
        return np.clip(image, 0, 255).astype(np.uint8), self.labels[step, step].copy()

    def _grain(self, height: float, width: float) -> np.ndarray:
        """Smooth noise with grains of the given size, standard deviation near 1."""
        aspect = self.size[1] / self.size[0]
        cells = (max(2, round(1 / height)), max(2, round(aspect / width)))
        coarse = self.rng.normal(size=cells).astype(np.float32)
        size = self.labels.shape[::-1]
        return cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)


def draw_scene(
    seed: int, split: str, index: int, size: tuple[int, int] = IMAGE_SIZE
) -> tuple[np.ndarray, np.ndarray]:
    """Draw one scene.

    Args:
        seed: Seed of the data set.
        split: ``training`` or ``validation``.
        index: Number of the scene in its split, from 0.
        size: Height and width.

    Returns:
        The image (H, W, 3) in OpenCV's channel order and its annotation (H, W) in
        ADE20K's numbering, both uint8.
    """
    rng = np.random.default_rng((seed, list(SPLITS).index(split), index))
    canvas = _Canvas(rng, size)
    weather = dict(_DATA['weathers'][rng.integers(len(_DATA['weathers']))])
    light = weather.pop('light')
    mid = size[1] / size[0] / 2
    names = dict(mid=mid, tone=1.0, fog=0.0)
    names |= {key: canvas.value(colour, names) for key, colour in weather.items()}
    frame = (np.array((mid, 0)), np.array((1 - 2 * rng.integers(2), 1)))
    canvas.draw(KINDS[index % len(KINDS)], names, frame, UNLABELLED)
    return canvas.finish(light)


def write_dataset(
    root: Path,
    seed: int,
    counts: dict[str, int],
    size: tuple[int, int] = IMAGE_SIZE,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Write scenes as ADE20K lies on disk; ``root`` appears once it is complete.

    Args:
        root: Folder to make, in ADE20K ``ADEChallengeData2016``: ``images/training``,
            ``annotations/validation`` and so on, and ``sceneCategories.txt``. An
            existing one is replaced.
        seed: Seed of the data set.
        counts: Number of scenes for ``training`` and ``validation``.
        size: Height and width.
        progress: Called after each scene with the numbers done and in all.
    """
    root.parent.mkdir(parents=True, exist_ok=True)
    scenes = [(split, index) for split in counts for index in range(counts[split])]
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}.', dir=root.parent) as tmp:
        unfinished = Path(tmp) / root.name
        for kind, split in product(('images', 'annotations'), counts):
            (unfinished / kind / split).mkdir(parents=True)
        categories = []
        for done, (split, index) in enumerate(scenes, 1):
            name = f'ADE_{SPLITS[split]}_{index + 1:08d}'
            image, labels = draw_scene(seed, split, index, size)
            for path, pixels in (
                (unfinished / 'images' / split / f'{name}.jpg', image),
                (unfinished / 'annotations' / split / f'{name}.png', labels),
            ):
                if not cv2.imwrite(str(path), pixels):
                    raise OSError(f'{path} could not be written')
            categories.append(f'{name} {KINDS[index % len(KINDS)]}\n')
            progress(done, len(scenes))
        (unfinished / 'sceneCategories.txt').write_text(''.join(categories))
        shutil.rmtree(root, ignore_errors=True)
        unfinished.rename(root)
