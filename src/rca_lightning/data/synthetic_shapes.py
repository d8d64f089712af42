"""The classes of the generated data set: outline, plain body looks and striking part looks of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from rca_lightning.data.synthetic_textures import FloatArray, PatternName


class BodyLook(NamedTuple):
    """One appearance of a body: a hue that other classes have too, under the texture of the class.

    Attributes:
        hue: in turns.
        frequency: of the texture, see `pattern`.
    """

    hue: float
    frequency: float


class PartLook(NamedTuple):
    """One appearance of the striking part: two vivid colours in a pattern; no other class has the first colour.

    Attributes:
        pattern: how the two colours are laid out.
        frequency: of the pattern, see `pattern`.
        hues: of the two colours.
    """

    pattern: PatternName
    frequency: float
    hues: tuple[float, float]


class ObjectClass(NamedTuple):
    """A class of objects.

    Attributes:
        name: the tag.
        aspect: width of the body over its length.
        lobes: order and amplitude of the waviness of the outline.
        part_at: place of the part's centre along the body, 1 at its end.
        texture: pattern of every body look.
        bodies: looks of the body.
        parts: looks of the part.
    """

    name: str
    aspect: float
    lobes: tuple[int, float]
    part_at: float
    texture: PatternName
    bodies: tuple[BodyLook, ...]
    parts: tuple[PartLook, ...]


# Body hues of different classes lie close together or coincide, so that a hue alone hints at a class at most.
OBJECT_CLASSES: tuple[ObjectClass, ...] = (
    ObjectClass(
        "beetle", 0.75, (2, 0.04), 0.72, "stripes",
        (BodyLook(0.03, 2.6), BodyLook(0.42, 3.2), BodyLook(0.55, 2.2)),
        (PartLook("rings", 1.4, (0.00, 0.15)), PartLook("cross", 0, (0.99, 0.50))),
    ),
    ObjectClass(
        "kettle", 0.95, (3, 0.10), 0.60, "checks",
        (BodyLook(0.08, 1.6), BodyLook(0.47, 2.0), BodyLook(0.72, 1.4)),
        (PartLook("spokes", 4, (0.15, 0.75)), PartLook("halves", 0, (0.14, 0.08))),
    ),
    ObjectClass(
        "lantern", 0.72, (4, 0.07), 0.66, "rings",
        (BodyLook(0.13, 2.8), BodyLook(0.24, 2.2), BodyLook(0.90, 3.2)),
        (PartLook("stripes", 1.2, (0.32, 0.42)), PartLook("checks", 0.8, (0.34, 0.20))),
    ),
    ObjectClass(
        "mushroom", 0.85, (1, 0.16), 0.55, "dots",
        (BodyLook(0.19, 1.8), BodyLook(0.36, 2.2), BodyLook(0.78, 1.5)),
        (PartLook("cross", 0, (0.63, 0.52)), PartLook("rings", 1.4, (0.65, 0.72))),
    ),
    ObjectClass(
        "pumpkin", 0.92, (6, 0.06), 0.50, "spokes",
        (BodyLook(0.24, 9), BodyLook(0.55, 11), BodyLook(0.70, 13)),
        (PartLook("checks", 0.8, (0.83, 0.93)), PartLook("stripes", 1.2, (0.84, 0.70))),
    ),
    ObjectClass(
        "turtle", 0.80, (5, 0.08), 0.78, "waves",
        (BodyLook(0.13, 2.0), BodyLook(0.40, 1.6), BodyLook(0.66, 2.4)),
        (PartLook("halves", 0, (0.50, 0.58)), PartLook("spokes", 3, (0.49, 0.42))),
    ),
)  # fmt: skip


def body_radius(kind: ObjectClass, angle: FloatArray, *, wobble: FloatArray) -> FloatArray:
    """Distance from the centre of the body to its outline, 1 at most or nearly so.

    Args:
        kind: the class.
        angle: direction in radians, any shape.
        wobble: `(M, 2)` amplitude and phase of irregular waves of order 2 to M + 1.

    Returns:
        The radius in units of half the body's length, with the shape of `angle`.
    """
    order, amplitude = kind.lobes
    ellipse = kind.aspect / np.hypot(kind.aspect * np.cos(angle), np.sin(angle))
    waves = amplitude * np.cos(order * angle)
    for extra, (height, phase) in enumerate(wobble, start=2):
        waves = waves + height * np.cos(extra * angle + phase)
    return np.asarray(ellipse * (1 + waves), dtype=np.float32)
