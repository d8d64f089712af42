"""The classes of the generated data set: outline, plain body looks, striking part looks and context of each."""

from __future__ import annotations

import colorsys
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from rca_lightning.arguments import check_arguments

FloatArray = npt.NDArray[np.float32]
PatternName = Literal["stripes", "checks", "dots", "rings", "waves", "spokes", "cross", "halves"]


def colour(hue: float, saturation: float, value: float) -> FloatArray:
    """An RGB colour `(3,)` in [0, 1] from hue (in turns), saturation and value."""
    saturation, value = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def smooth_noise(rng: np.random.Generator, shape: tuple[int, int], *, cells: tuple[int, int]) -> FloatArray:
    """Noise of this shape (rows, columns) and of unit variance that varies smoothly over a grid of `cells`."""
    import cv2  # here, not above: importing this module must stay cheap

    grid = rng.standard_normal([max(2, min(pair)) for pair in zip(cells, shape, strict=True)]).astype(np.float32)
    field = np.asarray(cv2.resize(grid, shape[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.float32)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), dtype=np.float32)


@check_arguments
def pattern(name: PatternName, u: FloatArray, v: FloatArray, *, frequency: float) -> FloatArray:
    """A pattern in [-1, 1] at the coordinates `u` and `v`, which have the shape of the result.

    Args:
        name: the kind of pattern.
        u: first coordinate in the frame of the object or part, 1 at its nominal rim.
        v: second coordinate.
        frequency: repetitions over one unit of length; over one turn for `"spokes"`; without effect on `"cross"`
            and `"halves"`.
    """
    k = np.float32(2 * np.pi * frequency)
    if name == "stripes":
        field = np.sin(k * u)
    elif name == "checks":
        field = np.sign(np.sin(k * u) * np.sin(k * v))
    elif name == "dots":
        field = np.clip(2.5 * np.cos(k * u) * np.cos(k * v) - 1, -1, 1)
    elif name == "rings":
        field = np.sin(k * np.hypot(u, v))
    elif name == "waves":
        field = np.sin(k * u + 1.6 * np.sin(k * v))
    elif name == "spokes":
        field = np.sin(round(frequency) * np.arctan2(v, u))
    elif name == "cross":
        field = np.where(np.minimum(np.abs(u), np.abs(v)) < 0.28, 1, -1)
    else:  # halves
        field = np.where(u > 0, 1, -1)
    return np.asarray(field, dtype=np.float32)


class BodyLook(NamedTuple):
    """One appearance of a body: a hue that other classes have too, under the texture of the class."""

    hue: float  # in turns
    frequency: float  # of the texture, see `pattern`


class PartLook(NamedTuple):
    """One appearance of the striking part: two vivid colours in a pattern; no other class has the first colour."""

    pattern: PatternName
    frequency: float
    hues: tuple[float, float]


class GroundLook(NamedTuple):
    """The surface that a class is often seen on."""

    hue: float
    pattern: PatternName
    frequency: float  # of the pattern, over half the image


class CompanionLook(NamedTuple):
    """A thing without a tag that often lies beside a class."""

    hue: float
    pattern: PatternName
    frequency: float
    aspect: float  # width over length
    lobes: int  # order of the waviness of its outline


class ObjectClass(NamedTuple):
    """A class of objects: outline, looks of body and part, and the context that often comes with it."""

    name: str
    aspect: float  # width of the body over its length
    lobes: tuple[int, float]  # order and amplitude of the waviness of the outline
    part_at: float  # place of the part's centre along the body, 1 at its end
    texture: PatternName  # of every body look
    bodies: tuple[BodyLook, ...]
    parts: tuple[PartLook, ...]
    ground: GroundLook
    companion: CompanionLook


# Body hues of different classes lie close together or coincide, so that a hue alone hints at a class at most.
OBJECT_CLASSES: tuple[ObjectClass, ...] = (
    ObjectClass(
        "beetle", 0.75, (2, 0.04), 0.72, "stripes",
        (BodyLook(0.03, 2.6), BodyLook(0.42, 3.2), BodyLook(0.55, 2.2)),
        (PartLook("rings", 1.4, (0.00, 0.15)), PartLook("cross", 0, (0.99, 0.50))),
        GroundLook(0.28, "stripes", 7), CompanionLook(0.30, "stripes", 1.5, 0.45, 2),  # grass; a leaf
    ),
    ObjectClass(
        "kettle", 0.95, (3, 0.10), 0.60, "checks",
        (BodyLook(0.08, 1.6), BodyLook(0.47, 2.0), BodyLook(0.72, 1.4)),
        (PartLook("spokes", 4, (0.15, 0.75)), PartLook("halves", 0, (0.14, 0.08))),
        GroundLook(0.06, "checks", 4), CompanionLook(0.56, "halves", 0, 0.9, 4),  # tiles; a cup
    ),
    ObjectClass(
        "lantern", 0.72, (4, 0.07), 0.66, "rings",
        (BodyLook(0.13, 2.8), BodyLook(0.24, 2.2), BodyLook(0.90, 3.2)),
        (PartLook("stripes", 1.2, (0.32, 0.42)), PartLook("checks", 0.8, (0.34, 0.20))),
        GroundLook(0.62, "waves", 3), CompanionLook(0.09, "stripes", 2.5, 0.35, 4),  # water; a plank
    ),
    ObjectClass(
        "mushroom", 0.85, (1, 0.16), 0.55, "dots",
        (BodyLook(0.19, 1.8), BodyLook(0.36, 2.2), BodyLook(0.78, 1.5)),
        (PartLook("cross", 0, (0.63, 0.52)), PartLook("rings", 1.4, (0.65, 0.72))),
        GroundLook(0.22, "dots", 5), CompanionLook(0.38, "spokes", 7, 0.8, 7),  # moss; a fern
    ),
    ObjectClass(
        "pumpkin", 0.92, (6, 0.06), 0.50, "spokes",
        (BodyLook(0.24, 9), BodyLook(0.55, 11), BodyLook(0.70, 13)),
        (PartLook("checks", 0.8, (0.83, 0.93)), PartLook("stripes", 1.2, (0.84, 0.70))),
        GroundLook(0.10, "stripes", 4), CompanionLook(0.14, "checks", 1.2, 0.8, 4),  # furrows; a crate
    ),
    ObjectClass(
        "turtle", 0.80, (5, 0.08), 0.78, "waves",
        (BodyLook(0.13, 2.0), BodyLook(0.40, 1.6), BodyLook(0.66, 2.4)),
        (PartLook("halves", 0, (0.50, 0.58)), PartLook("spokes", 3, (0.49, 0.42))),
        GroundLook(0.13, "waves", 5), CompanionLook(0.00, "rings", 1.5, 0.75, 3),  # sand; a shell
    ),
)  # fmt: skip


def body_radius(kind: ObjectClass, angle: FloatArray, *, wobble: FloatArray) -> FloatArray:
    """Distance from the centre of the body to its outline in each direction, in units of half the body's length.

    Args:
        kind: the class.
        angle: directions in radians, any shape.
        wobble: `(M, 2)` amplitude and phase of irregular waves of order 2 to M + 1.
    """
    order, amplitude = kind.lobes
    ellipse = kind.aspect / np.hypot(kind.aspect * np.cos(angle), np.sin(angle))
    waves = amplitude * np.cos(order * angle)
    for extra, (height, phase) in enumerate(wobble, start=2):
        waves = waves + height * np.cos(extra * angle + phase)
    return np.asarray(ellipse * (1 + waves), dtype=np.float32)
