"""Drawn outdoor scenes in ADE20K's directory layout.

Streets, country roads, farms and coasts, drawn from 14 of ADE20K's classes with
perspective, occlusion, texture, weather, shadows and noise. A scene depends on
nothing but the seed, the split and its number.
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import cv2
import numpy as np

#: Classes that are drawn and their numbers in ADE20K's annotations.
LABELS = dict(
    building=2,
    sky=3,
    tree=5,
    road=7,
    grass=10,
    sidewalk=12,
    person=13,
    mountain=17,
    car=21,
    house=26,
    sea=27,
    fence=33,
    sand=47,
    boat=77,
)
UNLABELLED = 0  # ADE20K's number for what belongs to none of its classes
SPLITS = dict(training='train', validation='val')  # folder and part of file names
IMAGE_SIZE = (144, 192)  # height, width

_OVERSAMPLING = 2  # scenes are drawn larger and averaged down, which softens edges

# Of each class: height and width of a texture's grains in hundredths of the
# image's height, and how strongly the texture varies the brightness.
_TEXTURES = dict(
    building=(1.5, 3.0, 0.06),
    sky=(30.0, 60.0, 0.04),
    tree=(3.0, 3.0, 0.22),
    road=(1.0, 1.0, 0.08),
    grass=(2.5, 1.0, 0.16),
    sidewalk=(1.5, 6.0, 0.07),
    person=(4.0, 2.0, 0.08),
    mountain=(4.0, 8.0, 0.13),
    car=(6.0, 12.0, 0.06),
    house=(1.5, 8.0, 0.07),
    sea=(1.5, 10.0, 0.16),
    fence=(8.0, 1.0, 0.10),
    sand=(1.5, 2.5, 0.08),
    boat=(2.0, 10.0, 0.06),
)

# Of each weather: the sky's colour above and at the horizon, and the light's.
_WEATHERS = (
    ((215, 150, 80), (240, 225, 200), (1.00, 1.00, 1.00)),  # clear
    ((235, 190, 130), (245, 235, 225), (1.05, 1.05, 1.05)),  # bright
    ((190, 180, 170), (215, 210, 205), (0.85, 0.82, 0.80)),  # overcast
    ((150, 90, 90), (110, 170, 245), (0.72, 0.82, 1.02)),  # evening
    ((120, 70, 45), (150, 120, 105), (0.72, 0.60, 0.55)),  # dusk
)

Colour = Sequence[float]
Points = Sequence[tuple[float, float]]


class Canvas:
    """An image and its annotation, drawn together.

    Lengths are in image heights: y runs from 0 at the top to 1, x from 0 to
    `width`. Colours are in OpenCV's order: blue, green, red, up to 255.

    Args:
        rng: Source of every random choice.
        size: Height and width of the finished image.
    """

    def __init__(self, rng: np.random.Generator, size: tuple[int, int]) -> None:
        self.rng = rng
        self.size = size
        self.width = size[1] / size[0]
        self.scale = size[0] * _OVERSAMPLING
        shape = (self.scale, size[1] * _OVERSAMPLING)
        self.image = np.zeros((*shape, 3), np.float32)
        self.labels = np.full(shape, UNLABELLED, np.uint8)
        self.light = np.ones(shape, np.float32)

    def polygon(self, points: Points, colour: Colour, label: int | None = None) -> None:
        """Fill a polygon; without a label it is a detail of what is below it."""
        pixels = np.round(np.asarray(points) * self.scale).astype(np.int32)
        cv2.fillPoly(self.image, [pixels], tuple(map(float, colour)))
        if label is not None:
            cv2.fillPoly(self.labels, [pixels], label)
            cv2.fillPoly(self.light, [pixels], 1.0)

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        colour: Colour,
        label: int | None = None,
    ) -> None:
        """Fill a rectangle."""
        corners = ((left, top), (right, top), (right, bottom), (left, bottom))
        self.polygon(corners, colour, label)

    def ellipse(
        self,
        centre: tuple[float, float],
        radii: tuple[float, float],
        colour: Colour,
        label: int | None = None,
    ) -> None:
        """Fill an ellipse."""
        angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        self.polygon(circle * radii + centre, colour, label)

    def shadow(self, centre: tuple[float, float], radii: tuple[float, float]) -> None:
        """Darken an ellipse of the ground; what is drawn later stands in light."""
        centre = tuple(round(v * self.scale) for v in centre)
        radii = tuple(max(1, round(v * self.scale)) for v in radii)
        cv2.ellipse(self.light, centre, radii, 0, 0, 360, 0.6, -1)

    def vary(self, colour: Colour, amount: float = 0.12) -> np.ndarray:
        """A colour near the given one."""
        return np.clip(
            np.asarray(colour) * self.rng.normal(1, amount / 2)
            + self.rng.normal(0, amount * 60, 3),
            10,
            250,
        )

    def pick(self, *colours: Colour) -> np.ndarray:
        """A colour near one of the given ones."""
        return self.vary(colours[self.rng.integers(len(colours))])

    def finish(self, light: Colour) -> tuple[np.ndarray, np.ndarray]:
        """Apply texture, light, blur and noise.

        Args:
            light: Factors on blue, green and red.

        Returns:
            The image (H, W, 3) and its annotation (H, W), both uint8.
        """
        rng = self.rng
        shape = self.labels.shape
        texture = np.ones(shape, np.float32)
        for name, (height, width, contrast) in _TEXTURES.items():
            mask = self.labels == LABELS[name]
            if mask.any():
                grain = self._grain(height / 100, width / 100)
                texture[mask] += contrast * grain[mask]
        shade = cv2.GaussianBlur(self.light, (0, 0), 0.006 * self.scale) * texture
        # Light from one side, a little uneven over the picture.
        slope = np.linspace(-1, 1, shape[1], dtype=np.float32) * rng.normal(0, 0.08)
        shade *= 1 + slope + 0.05 * self._grain(0.5, 0.7)
        exposure = np.asarray(light, np.float32) * rng.uniform(0.85, 1.15)
        image = self.image * shade[..., None] * exposure
        image = cv2.resize(image, self.size[::-1], interpolation=cv2.INTER_AREA)
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.2, 0.7))
        image += rng.normal(0, rng.uniform(2, 8), image.shape)
        step = slice(_OVERSAMPLING // 2, None, _OVERSAMPLING)
        return np.clip(image, 0, 255).astype(np.uint8), self.labels[step, step].copy()

    def _grain(self, height: float, width: float) -> np.ndarray:
        """Smooth noise with grains of the given size, standard deviation near 1."""
        rows = max(2, round(1 / height))
        columns = max(2, round(self.width / width))
        coarse = self.rng.normal(size=(rows, columns)).astype(np.float32)
        return cv2.resize(
            coarse, self.labels.shape[::-1], interpolation=cv2.INTER_CUBIC
        )


def draw_sky(canvas: Canvas, horizon: float, weather: tuple) -> None:
    """Sky down to the horizon, with clouds and sometimes a balloon."""
    rng = canvas.rng
    top, bottom, _ = weather
    rows = int(np.ceil(horizon * canvas.scale)) + 1
    blend = np.linspace(0, 1, rows, dtype=np.float32)[:, None, None]
    canvas.image[:rows] = (1 - blend) * np.float32(top) + blend * np.float32(bottom)
    canvas.labels[:rows] = LABELS['sky']
    cloud = np.zeros(canvas.labels.shape, np.float32)
    for _ in range(rng.integers(0, 5)):
        x, y = rng.uniform(0, canvas.width), rng.uniform(0, horizon * 0.7)
        length = rng.uniform(0.08, 0.25)
        for _ in range(8):
            centre = (
                round((x + rng.normal(0, length / 2)) * canvas.scale),
                round((y + rng.normal(0, length / 10)) * canvas.scale),
            )
            radius = length * rng.uniform(0.2, 0.5) * canvas.scale
            cv2.ellipse(
                cloud, centre, (round(radius), round(radius / 3)), 0, 0, 360, 0.6, -1
            )
    cloud = cv2.GaussianBlur(cloud, (0, 0), 0.02 * canvas.scale)[:rows, :, None]
    canvas.image[:rows] += cloud * (np.float32((250, 248, 245)) - canvas.image[:rows])
    if rng.random() < 0.25:
        draw_balloon(canvas, rng.uniform(0.2, canvas.width - 0.2), horizon * 0.35)


def draw_balloon(canvas: Canvas, x: float, y: float) -> None:
    """A hot-air balloon, which none of the classes covers."""
    radius = canvas.rng.uniform(0.04, 0.07)
    colour = canvas.pick((40, 60, 210), (40, 180, 230), (190, 90, 60))
    canvas.polygon(
        ((x - radius * 0.6, y), (x + radius * 0.6, y), (x, y + 1.9 * radius)),
        (70, 80, 90),
        UNLABELLED,
    )
    canvas.ellipse((x, y), (radius, 1.15 * radius), colour, UNLABELLED)
    canvas.ellipse((x, y), (radius * 0.4, 1.1 * radius), 0.5 * colour + 110)
    canvas.box(
        x - radius / 4,
        y + 1.7 * radius,
        x + radius / 4,
        y + 2.1 * radius,
        (50, 80, 110),
        UNLABELLED,
    )


def draw_mountains(canvas: Canvas, horizon: float, haze: Colour) -> None:
    """One to three ridges, paler with distance, the higher ones with snow."""
    rng = canvas.rng
    ridges = rng.integers(1, 4)
    colour = canvas.pick((110, 105, 90), (95, 110, 95), (120, 115, 115))
    for ridge in range(ridges):
        near = (ridge + 1) / ridges
        height = horizon * rng.uniform(0.25, 0.6) * (1.3 - 0.6 * near)
        xs = np.linspace(-0.1, canvas.width + 0.1, 40)
        ys = np.zeros_like(xs)
        for waves, weight in ((1.3, 1.0), (3.1, 0.5), (7.0, 0.2), (15.0, 0.08)):
            phase = rng.uniform(0, 2 * np.pi)
            ys += weight * np.abs(np.sin(waves * xs + phase))
        ys = horizon - height * ys / ys.max()
        tone = near * colour + (1 - near) * np.asarray(haze)
        outline = [*zip(xs, ys, strict=True)]
        foot = [(xs[-1], horizon + 0.01), (xs[0], horizon + 0.01)]
        canvas.polygon([*outline, *foot], tone, LABELS['mountain'])
        snow_line = horizon - 0.72 * height
        if height > 0.2:
            edge = np.maximum(ys, snow_line + rng.normal(0, 0.015, xs.shape))
            lower = [*zip(xs, edge, strict=True)]
            canvas.polygon([*outline, *reversed(lower)], 0.4 * tone + 140)


def draw_ground(canvas: Canvas, top: float, colour: Colour, name: str) -> None:
    """Ground of one class from a line to the bottom of the picture."""
    canvas.box(-0.1, top, canvas.width + 0.1, 1.05, colour, LABELS[name])


def draw_building(canvas: Canvas, left: float, right: float, top: float, base: float):
    """A block of flats or offices with rows of windows."""
    rng = canvas.rng
    colour = canvas.pick(
        (120, 150, 190),
        (150, 160, 165),
        (90, 100, 150),
        (170, 180, 190),
        (140, 130, 115),
    )
    canvas.box(left, top, right, base, colour, LABELS['building'])
    if rng.random() < 0.4:
        edge = (right - left) * rng.uniform(0.1, 0.3)
        canvas.box(
            left + edge, top - 0.04, right - edge, top, 0.9 * colour, LABELS['building']
        )
    side = left + (right - left) * rng.uniform(0.75, 1.0)
    canvas.box(side, top, right, base, 0.75 * colour)
    canvas.box(left, top, right, top + 0.012, 0.6 * colour)
    pane = canvas.pick((90, 70, 50), (120, 100, 80), (60, 55, 55))
    lit = canvas.vary((120, 215, 245))
    wide, high = rng.uniform(0.022, 0.045), rng.uniform(0.03, 0.05)
    lit_share = rng.choice((0.05, 0.3))
    for y in np.arange(top + 0.035, base - high, high * rng.uniform(1.5, 2.0)):
        for x in np.arange(left + 0.02, side - wide, wide * 1.7):
            glass = lit if rng.random() < lit_share else pane
            canvas.box(x, y, x + wide, y + high, glass)


def draw_house(canvas: Canvas, x: float, base: float, height: float) -> None:
    """A detached house: gable roof, chimney, door and windows."""
    rng = canvas.rng
    label = LABELS['house']
    wide = height * rng.uniform(0.55, 0.8)
    eaves = base - height * rng.uniform(0.5, 0.6)
    top = base - height
    wall = canvas.pick(
        (215, 225, 235), (150, 200, 230), (190, 190, 160), (120, 140, 200)
    )
    roof = canvas.pick((50, 60, 140), (70, 70, 80), (60, 90, 120))
    canvas.shadow((x + 0.3 * wide, base), (1.2 * wide, 0.08 * height))
    chimney = x + wide * rng.uniform(0.3, 0.5)
    canvas.box(chimney, top, chimney + 0.12 * wide, eaves, 0.8 * roof, label)
    canvas.box(x - wide, eaves, x + wide, base, wall, label)
    ridge = wide * rng.choice((0.0, 0.6))
    canvas.polygon(
        (
            (x - 1.15 * wide, eaves),
            (x - ridge, top),
            (x + ridge, top),
            (x + 1.15 * wide, eaves),
        ),
        roof,
        label,
    )
    door = canvas.pick((50, 70, 110), (90, 60, 50), (60, 100, 60))
    canvas.box(x - 0.14 * wide, base - 0.32 * height, x + 0.14 * wide, base, door)
    for shift in (-0.6, 0.6):
        middle = x + shift * wide
        canvas.box(
            middle - 0.2 * wide,
            base - 0.38 * height,
            middle + 0.2 * wide,
            base - 0.18 * height,
            (245, 245, 245),
        )
        canvas.box(
            middle - 0.16 * wide,
            base - 0.36 * height,
            middle + 0.16 * wide,
            base - 0.2 * height,
            (110, 90, 70),
        )


def draw_tree(canvas: Canvas, x: float, base: float, height: float) -> None:
    """A conifer, or a broad-leaved tree of many leafy blobs."""
    rng = canvas.rng
    label = LABELS['tree']
    canvas.shadow((x + 0.1 * height, base), (0.3 * height, 0.05 * height))
    trunk = canvas.vary((45, 65, 90))
    leaves = canvas.pick((45, 105, 55), (50, 120, 90), (40, 85, 50), (40, 110, 150))
    stem = height * 0.035
    canvas.box(x - stem, base - 0.5 * height, x + stem, base, trunk, label)
    if rng.random() < 0.35:
        needles = canvas.pick((45, 85, 45), (60, 90, 55))
        for tier in range(4):
            bottom = base - height * (0.14 + 0.2 * tier)
            half = height * (0.27 - 0.055 * tier)
            tip = bottom - height * 0.34
            tone = needles * rng.uniform(0.8, 1.05)
            canvas.polygon(
                ((x - half, bottom), (x, tip), (x + half, bottom)), tone, label
            )
        return
    for blob in range(16):
        # Later blobs lie higher and catch more light.
        rise = 0.45 + 0.4 * blob / 16 + rng.normal(0, 0.05)
        shift = rng.normal(0, 0.13)
        radius = height * rng.uniform(0.09, 0.17)
        centre = (x + shift * height, base - rise * height)
        tone = leaves * (0.65 + 0.5 * blob / 16 + rng.normal(0, 0.06))
        canvas.ellipse(centre, (radius, 0.9 * radius), tone, label)


def draw_person(canvas: Canvas, x: float, base: float, height: float) -> None:
    """A standing or walking person."""
    rng = canvas.rng
    label = LABELS['person']
    canvas.shadow((x + 0.05 * height, base), (0.2 * height, 0.03 * height))
    shirt = canvas.pick(
        (60, 60, 200), (200, 120, 50), (60, 170, 220), (230, 230, 230), (80, 60, 90)
    )
    trousers = canvas.pick((110, 70, 40), (50, 50, 55), (110, 140, 160))
    skin = canvas.pick((150, 185, 230), (80, 115, 160), (50, 70, 105))
    hip, neck = base - 0.47 * height, base - 0.83 * height
    limb = 0.06 * height
    for side in (-1, 1):
        foot = x + side * height * rng.uniform(0.03, 0.14)
        canvas.polygon(
            (
                (x - limb, hip),
                (x + limb, hip),
                (foot + limb * 0.8, base),
                (foot - limb * 0.8, base),
            ),
            trousers,
            label,
        )
        hand = x + side * height * rng.uniform(0.13, 0.26)
        canvas.polygon(
            (
                (x + side * 0.07 * height, neck),
                (x + side * 0.13 * height, neck + 0.04 * height),
                (hand + 0.025 * height, hip + 0.02 * height),
                (hand - 0.025 * height, hip + 0.02 * height),
            ),
            0.85 * shirt,
            label,
        )
    canvas.polygon(
        (
            (x - 0.12 * height, neck),
            (x + 0.12 * height, neck),
            (x + 0.09 * height, hip + 0.02 * height),
            (x - 0.09 * height, hip + 0.02 * height),
        ),
        shirt,
        label,
    )
    head = (x, base - 0.91 * height)
    canvas.ellipse(head, (0.068 * height, 0.085 * height), skin, label)
    hair = canvas.pick((30, 35, 40), (40, 70, 110), (90, 170, 210))
    canvas.ellipse(
        (x, base - 0.95 * height), (0.066 * height, 0.05 * height), hair, label
    )


def draw_car(canvas: Canvas, x: float, base: float, length: float) -> None:
    """A car from the side, facing either way."""
    rng = canvas.rng
    label = LABELS['car']
    body = canvas.pick(
        (50, 50, 190), (180, 110, 50), (225, 225, 225), (60, 60, 60), (60, 190, 220)
    )
    way = rng.choice((-1, 1))
    half, wheel = length / 2, length * 0.1
    sill, belt = base - wheel, base - 0.26 * length
    roof = base - length * rng.uniform(0.38, 0.44)
    canvas.shadow((x, base), (0.56 * length, 0.07 * length))

    def outline(points: Points) -> list[tuple[float, float]]:
        return [(x + way * half * along, y) for along, y in points]

    canvas.polygon(
        outline(
            (
                (-1, belt + 0.03 * length),
                (-0.9, belt),
                (0.75, belt),
                (1, belt + 0.06 * length),
                (1, sill + 0.02 * length),
                (-1, sill + 0.02 * length),
            )
        ),
        body,
        label,
    )
    canvas.polygon(
        outline(((-0.8, belt), (-0.55, roof), (0.2, roof), (0.55, belt))), body, label
    )
    glass = canvas.vary((120, 100, 80))
    low, high = belt - 0.01 * length, roof + 0.025 * length
    canvas.polygon(
        outline(((-0.68, low), (-0.5, high), (-0.2, high), (-0.2, low))), glass
    )
    canvas.polygon(
        outline(((-0.13, low), (-0.13, high), (0.16, high), (0.43, low))), glass
    )
    lamp = belt + 0.06 * length
    canvas.polygon(
        outline(
            (
                (0.88, lamp),
                (1, lamp),
                (1, lamp + 0.04 * length),
                (0.88, lamp + 0.04 * length),
            )
        ),
        (170, 240, 250),
    )
    for along in (-0.58, 0.6):
        centre = (x + way * half * along, base - wheel)
        canvas.ellipse(centre, (wheel, wheel), (35, 35, 35), label)
        canvas.ellipse(centre, (0.5 * wheel, 0.5 * wheel), (150, 150, 150))


def draw_fence(canvas: Canvas, left: float, right: float, base: float, height: float):
    """A picket fence; what shows between the pickets keeps its own class."""
    rng = canvas.rng
    label = LABELS['fence']
    wood = canvas.pick((235, 235, 235), (70, 105, 150), (100, 130, 150))
    pitch = height * rng.uniform(0.24, 0.3)
    wide = pitch * rng.uniform(0.72, 0.9)
    for rail in (0.3, 0.75):
        y = base - rail * height
        canvas.box(
            left, y - 0.06 * height, right, y + 0.06 * height, 0.75 * wood, label
        )
    for x in np.arange(left, right, pitch):
        top = base - height * rng.uniform(0.95, 1.05)
        tone = wood * rng.uniform(0.88, 1.0)
        canvas.polygon(
            (
                (x, base),
                (x, top + 0.5 * wide),
                (x + wide / 2, top),
                (x + wide, top + 0.5 * wide),
                (x + wide, base),
            ),
            tone,
            label,
        )


def draw_boat(canvas: Canvas, x: float, base: float, length: float) -> None:
    """A sailing or a fishing boat."""
    rng = canvas.rng
    label = LABELS['boat']
    hull = canvas.pick((60, 60, 180), (235, 235, 235), (130, 80, 40), (60, 120, 160))
    half, deck = length / 2, base - 0.2 * length
    canvas.shadow((x, base), (0.55 * length, 0.05 * length))
    canvas.polygon(
        (
            (x - half, deck),
            (x + half * 1.1, deck),
            (x + 0.7 * half, base),
            (x - 0.8 * half, base),
        ),
        hull,
        label,
    )
    canvas.polygon(
        (
            (x - half, deck),
            (x + half * 1.1, deck),
            (x + half, deck + 0.04 * length),
            (x - half, deck + 0.04 * length),
        ),
        0.6 * hull,
    )
    if rng.random() < 0.6:
        top = base - length * rng.uniform(1.0, 1.3)
        sail = canvas.pick((240, 240, 240), (200, 225, 240), (70, 80, 210))
        canvas.box(
            x - 0.015 * length, top, x + 0.015 * length, deck, (60, 80, 100), label
        )
        low = deck - 0.06 * length
        canvas.polygon(
            (
                (x + 0.04 * length, top),
                (x + 0.45 * length, low),
                (x + 0.04 * length, low),
            ),
            sail,
            label,
        )
        canvas.polygon(
            (
                (x - 0.04 * length, top + 0.1 * length),
                (x - 0.38 * length, low),
                (x - 0.04 * length, low),
            ),
            0.9 * sail,
            label,
        )
    else:
        cabin = deck - 0.22 * length
        canvas.box(
            x - 0.3 * length, cabin, x + 0.08 * length, deck, (225, 230, 235), label
        )
        canvas.box(
            x - 0.24 * length,
            cabin + 0.05 * length,
            x + 0.02 * length,
            cabin + 0.13 * length,
            (110, 90, 70),
        )


def draw_lamp_post(canvas: Canvas, x: float, base: float, height: float) -> None:
    """A street lamp, left unlabelled as annotators leave small things."""
    canvas.box(x - 0.008, base - height, x + 0.008, base, (70, 75, 75), UNLABELLED)
    canvas.box(
        x - 0.008,
        base - height,
        x + 0.08,
        base - height + 0.015,
        (70, 75, 75),
        UNLABELLED,
    )
    canvas.ellipse(
        (x + 0.08, base - height + 0.02), (0.025, 0.016), (190, 235, 250), UNLABELLED
    )


def stand(
    canvas: Canvas,
    draw: Callable[[Canvas, float, float, float], None],
    count: int,
    bases: tuple[float, float],
    sizes: tuple[float, float],
) -> list[tuple[float, Callable[[], None]]]:
    """Objects on the ground, each with its base line, for drawing far ones first.

    Args:
        canvas: Where they will be drawn.
        draw: Draws one from its place, base line and size.
        count: How many.
        bases: Range of the base lines.
        sizes: Sizes at the two ends of that range; an object between them has a
            size between them.
    """
    rng = canvas.rng
    objects = []
    for _ in range(count):
        near = rng.uniform()
        base = bases[0] + near * (bases[1] - bases[0])
        size = (sizes[0] + near * (sizes[1] - sizes[0])) * rng.uniform(0.85, 1.15)
        x = rng.uniform(0.02, canvas.width - 0.02)
        objects.append(
            (base, lambda x=x, base=base, size=size: draw(canvas, x, base, size))
        )
    return objects


def draw_in_depth(objects: list[tuple[float, Callable[[], None]]]) -> None:
    """Draw objects from the farthest to the nearest."""
    for _, draw in sorted(objects, key=lambda item: item[0]):
        draw()


def draw_street(canvas: Canvas, weather: tuple) -> None:
    """A row of buildings behind a pavement and a road seen from across."""
    rng = canvas.rng
    kerb, curb = rng.uniform(0.52, 0.6), rng.uniform(0.66, 0.72)
    draw_sky(canvas, kerb, weather)
    if rng.random() < 0.3:
        draw_mountains(canvas, kerb, weather[1])
    draw_ground(
        canvas, kerb - 0.02, canvas.pick((175, 180, 185), (150, 165, 180)), 'sidewalk'
    )
    x = rng.uniform(-0.3, 0.0)
    while x < canvas.width:
        right = x + rng.uniform(0.2, 0.45)
        draw_building(canvas, x, right, kerb - rng.uniform(0.2, 0.5), kerb)
        x = right + rng.choice((0.0, 0.0, rng.uniform(0.05, 0.3)))
    draw_in_depth(
        [
            *stand(
                canvas,
                draw_tree,
                rng.integers(0, 4),
                (kerb + 0.01, kerb + 0.04),
                (0.35, 0.4),
            ),
            *stand(
                canvas,
                draw_lamp_post,
                rng.integers(0, 3),
                (curb - 0.03, curb - 0.01),
                (0.45, 0.45),
            ),
            *stand(
                canvas,
                draw_person,
                rng.integers(0, 5),
                (kerb + 0.04, curb - 0.02),
                (0.2, 0.24),
            ),
        ]
    )
    canvas.box(
        -0.1, curb, canvas.width + 0.1, curb + 0.02, (150, 155, 160), LABELS['sidewalk']
    )
    draw_ground(canvas, curb + 0.018, canvas.pick((95, 90, 88), (75, 72, 70)), 'road')
    middle = (curb + 1.02) / 2
    for x in np.arange(rng.uniform(-0.2, 0), canvas.width, 0.28):
        canvas.box(x, middle, x + 0.15, middle + 0.014, (225, 230, 235))
    draw_in_depth(
        [
            *stand(
                canvas, draw_car, rng.integers(0, 3), (curb + 0.06, middle), (0.34, 0.4)
            ),
            *stand(
                canvas, draw_car, rng.integers(0, 2), (middle + 0.08, 0.97), (0.45, 0.5)
            ),
            *stand(
                canvas, draw_person, rng.integers(0, 2), (middle, 0.98), (0.32, 0.4)
            ),
        ]
    )


def draw_meadow(
    canvas: Canvas, weather: tuple, horizons: tuple[float, float], mountainous: float
) -> float:
    """Sky over grass, mountains between them as often as told; return the horizon."""
    horizon = canvas.rng.uniform(*horizons)
    draw_sky(canvas, horizon, weather)
    if canvas.rng.random() < mountainous:
        draw_mountains(canvas, horizon, weather[1])
    draw_ground(
        canvas,
        horizon,
        canvas.pick((60, 140, 95), (65, 150, 140), (70, 120, 80)),
        'grass',
    )
    return horizon


def draw_country_road(canvas: Canvas, weather: tuple) -> None:
    """A road that runs through grass to the horizon."""
    rng = canvas.rng
    horizon = draw_meadow(canvas, weather, (0.35, 0.5), 0.8)
    far = rng.uniform(0.25, 0.75) * canvas.width
    near = rng.uniform(0.3, 0.7) * canvas.width
    wide = rng.uniform(0.3, 0.5)
    road = canvas.pick((105, 100, 98), (80, 78, 76), (130, 130, 128))
    canvas.polygon(
        (
            (far - 0.02, horizon),
            (far + 0.02, horizon),
            (near + wide, 1.02),
            (near - wide, 1.02),
        ),
        road,
        LABELS['road'],
    )
    for start in np.linspace(0.05, 0.95, 7) ** 2:
        end = start + 0.06 * (0.3 + start)
        line = []
        for depth, side in ((start, -1), (start, 1), (end, 1), (end, -1)):
            x = far + depth * (near - far) + side * (0.002 + 0.016 * depth)
            line.append((x, horizon + depth * (1.02 - horizon)))
        canvas.polygon(line, (225, 230, 235))

    def beside_road(draw: Callable) -> Callable:
        """Move an object off the road, to the side where it stands."""

        def moved(canvas: Canvas, x: float, base: float, size: float) -> None:
            depth = (base - horizon) / (1.02 - horizon)
            centre, half = far + depth * (near - far), 0.05 + depth * wide
            side = -1 if x < centre else 1
            if abs(x - centre) < half:
                x = centre + side * (half + canvas.rng.uniform(0, 0.2))
            draw(canvas, x, base, size)

        return moved

    objects = [
        *stand(
            canvas,
            beside_road(draw_tree),
            rng.integers(2, 8),
            (horizon + 0.02, 0.9),
            (0.2, 0.75),
        ),
        *stand(
            canvas,
            beside_road(draw_house),
            rng.integers(0, 3),
            (horizon + 0.06, 0.7),
            (0.16, 0.4),
        ),
        *stand(
            canvas,
            beside_road(draw_person),
            rng.integers(0, 3),
            (horizon + 0.1, 0.95),
            (0.12, 0.42),
        ),
    ]
    for depth in rng.uniform(0.12, 0.8, rng.integers(0, 3)):
        base = horizon + depth * (1.02 - horizon)
        x = far + depth * (near - far) + rng.uniform(-0.4, 0.4) * depth * wide
        size = 0.06 + 0.55 * depth
        objects.append(
            (base, lambda x=x, base=base, size=size: draw_car(canvas, x, base, size))
        )
    draw_in_depth(objects)


def draw_farm(canvas: Canvas, weather: tuple) -> None:
    """Houses, trees and fences on grass."""
    rng = canvas.rng
    horizon = draw_meadow(canvas, weather, (0.38, 0.55), 0.7)
    objects = [
        *stand(
            canvas, draw_house, rng.integers(1, 4), (horizon + 0.06, 0.8), (0.25, 0.55)
        ),
        *stand(
            canvas, draw_tree, rng.integers(1, 6), (horizon + 0.02, 0.85), (0.22, 0.7)
        ),
        *stand(
            canvas,
            draw_person,
            rng.integers(0, 4),
            (horizon + 0.12, 0.97),
            (0.16, 0.44),
        ),
    ]
    for base in rng.uniform(horizon + 0.12, 0.98, rng.integers(1, 3)):
        height = 0.08 + 0.2 * (base - horizon)
        left = rng.uniform(-0.2, 0.6 * canvas.width)
        right = left + rng.uniform(0.4, 1.0)
        objects.append(
            (
                base,
                lambda left=left, right=right, base=base, height=height: draw_fence(
                    canvas, left, right, base, height
                ),
            )
        )
    draw_in_depth(objects)


def draw_coast(canvas: Canvas, weather: tuple) -> None:
    """The sea with boats behind a beach."""
    rng = canvas.rng
    horizon = rng.uniform(0.35, 0.5)
    draw_sky(canvas, horizon, weather)
    if rng.random() < 0.6:
        draw_mountains(canvas, horizon, weather[1])
    water = canvas.pick((150, 110, 50), (160, 130, 70), (120, 95, 60))
    draw_ground(canvas, horizon, water, 'sea')
    shore = rng.uniform(0.65, 0.8)
    draw_in_depth(
        stand(
            canvas,
            draw_boat,
            rng.integers(1, 4),
            (horizon + 0.03, shore - 0.04),
            (0.12, 0.4),
        )
    )
    xs = np.linspace(-0.1, canvas.width + 0.1, 30)
    ys = shore + rng.uniform(0.01, 0.05) * np.sin(
        rng.uniform(2, 5) * xs + rng.uniform(0, 6)
    )
    ys += rng.uniform(-0.15, 0.15) * (xs / canvas.width - 0.5)
    edge = [*zip(xs, ys, strict=True)]
    canvas.polygon(
        [*edge, (xs[-1], 1.05), (xs[0], 1.05)],
        canvas.pick((150, 200, 225), (130, 175, 200)),
        LABELS['sand'],
    )
    foam = [(x, y - 0.012) for x, y in reversed(edge)]
    canvas.polygon([*edge, *foam], (240, 240, 235))
    draw_in_depth(
        [
            *stand(
                canvas,
                draw_person,
                rng.integers(0, 5),
                (shore + 0.1, 0.98),
                (0.24, 0.42),
            ),
            *stand(
                canvas, draw_tree, rng.integers(0, 2), (shore + 0.1, 0.98), (0.5, 0.75)
            ),
            *stand(
                canvas, draw_boat, rng.integers(0, 2), (shore + 0.12, 0.96), (0.3, 0.4)
            ),
        ]
    )


#: The kinds of scene, in turn those of scenes 0, 1, 2, ...
KINDS: dict[str, Callable[[Canvas, tuple], None]] = dict(
    street=draw_street,
    country_road=draw_country_road,
    farm=draw_farm,
    coast=draw_coast,
)


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
    canvas = Canvas(rng, size)
    weather = _WEATHERS[rng.integers(len(_WEATHERS))]
    kind = list(KINDS)[index % len(KINDS)]
    KINDS[kind](canvas, weather)
    return canvas.finish(weather[2])


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
    total = sum(counts.values())
    done = 0
    with tempfile.TemporaryDirectory(prefix=f'.{root.name}.', dir=root.parent) as tmp:
        unfinished = Path(tmp) / root.name
        kinds = []
        for split, count in counts.items():
            for kind in ('images', 'annotations'):
                (unfinished / kind / split).mkdir(parents=True)
            for index in range(count):
                name = f'ADE_{SPLITS[split]}_{index + 1:08d}'
                image, labels = draw_scene(seed, split, index, size)
                for kind, suffix, pixels in (
                    ('images', '.jpg', image),
                    ('annotations', '.png', labels),
                ):
                    path = unfinished / kind / split / f'{name}{suffix}'
                    if not cv2.imwrite(str(path), pixels):
                        raise OSError(f'{path} could not be written')
                kinds.append(f'{name} {list(KINDS)[index % len(KINDS)]}\n')
                done += 1
                progress(done, total)
        (unfinished / 'sceneCategories.txt').write_text(''.join(kinds))
        shutil.rmtree(root, ignore_errors=True)
        unfinished.rename(root)
