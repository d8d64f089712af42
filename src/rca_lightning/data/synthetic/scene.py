"""Renders one image of the generated data set: paints its background, context and objects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.synthetic.placement import PART_RADIUS, Frame, PlacedObject, make_frame, place_objects
from rca_lightning.data.synthetic.shapes import (
    OBJECT_CLASSES,
    BodyLook,
    CompanionLook,
    FloatArray,
    GroundLook,
    ObjectClass,
    PartLook,
    colour,
    pattern,
    smooth_noise,
)

ON_ITS_GROUND = 0.5  # chance that one of an image's classes chooses the ground; else any class does, shown or not
WITH_COMPANION = 0.4  # chance of each object
STRAY_COMPANIONS = 0.3  # share of the distractors that are companions of any class


class Scene(NamedTuple):
    """A generated image with its truth.

    Attributes:
        image: `(S, S, 3)` RGB, 0 to 255.
        mask: `(S, S)` 0 background, 1 to 6 the classes, 255 void along the outlines.
        part: `(S, S)` True on the visible striking parts; for analysis only.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    part: npt.NDArray[np.bool_]


def render_scene(rng: np.random.Generator, size: int) -> Scene:
    """Render one to five objects before a cluttered background, `size` pixels high and wide.

    The same state of the generator gives the same scene.
    """
    objects = place_objects(rng, size)
    canvas = _background(rng, size, objects)
    owner = np.zeros((size, size), dtype=np.int32)
    mask = np.zeros((size, size), dtype=np.uint8)
    part = np.zeros((size, size), dtype=np.bool_)
    for number, item in enumerate(objects, start=1):
        _paint(rng, canvas, item)
        covered, window = item.body | item.part, item.frame.window
        owner[window][covered], mask[window][covered] = number, item.label
        part[window][covered] = item.part[covered]
    mask[_outlines(owner)] = IGNORE_INDEX
    return Scene(_photograph(rng, canvas), mask, part)


def _background(rng: np.random.Generator, size: int, objects: list[PlacedObject]) -> FloatArray:
    """Two surfaces, distractors and companions, `(size, size, 3)` around the range [0, 1]."""
    blend = 1 / (1 + np.exp(-6 * smooth_noise(rng, (size, size), cells=(3, 3))))
    first = _patterned_ground(rng, size, _choose_ground(rng, objects).ground)
    second = _plain_ground(rng, size)
    canvas = np.asarray(first + (second - first) * blend[..., None], dtype=np.float32)
    for _ in range(int(rng.integers(1, 5))):
        if rng.random() < STRAY_COMPANIONS:
            _paint_companion(rng, canvas, _any_class(rng).companion, centre=_any_place(rng, size))
        else:
            _paint_distractor(rng, canvas)
    for item, centre in _choose_companions(rng, size, objects):
        _paint_companion(rng, canvas, item.kind.companion, centre=centre)
    return canvas


def _choose_ground(rng: np.random.Generator, objects: list[PlacedObject]) -> ObjectClass:
    """The class whose ground an image has: it need not be shown."""
    return objects[rng.integers(len(objects))].kind if rng.random() < ON_ITS_GROUND else _any_class(rng)


def _choose_companions(
    rng: np.random.Generator, size: int, objects: list[PlacedObject]
) -> list[tuple[PlacedObject, tuple[float, float]]]:
    """The objects that have their companion beside them, and the place of it."""
    chosen = []
    for item in objects:
        if rng.random() < WITH_COMPANION:
            turn, away = rng.uniform(0, 2 * np.pi), item.length / 2 * rng.uniform(0.8, 1.3)
            x, y = np.clip((item.centre[0] + away * np.cos(turn), item.centre[1] + away * np.sin(turn)), 0, size - 1)
            chosen.append((item, (float(x), float(y))))
    return chosen


def _any_class(rng: np.random.Generator) -> ObjectClass:
    return OBJECT_CLASSES[rng.integers(len(OBJECT_CLASSES))]


def _any_place(rng: np.random.Generator, size: int) -> tuple[float, float]:
    return float(rng.uniform(0, size)), float(rng.uniform(0, size))


def _patterned_ground(rng: np.random.Generator, size: int, look: GroundLook) -> FloatArray:
    """The surface that a class is often seen on, in any turn."""
    frame = make_frame(size, _any_place(rng, size), size / 2, rng.uniform(0, 2 * np.pi), reach=3)
    texture = pattern(look.pattern, frame.u, frame.v, frequency=look.frequency * rng.uniform(0.85, 1.2))
    texture = texture * rng.uniform(0.03, 0.07) + smooth_noise(rng, frame.shape, cells=(4, 4)) * 0.05
    tone = colour(look.hue + rng.normal(0, 0.02), rng.uniform(0.1, 0.35), rng.uniform(0.35, 0.75))
    return np.asarray(tone + texture[..., None], dtype=np.float32)


def _plain_ground(rng: np.random.Generator, size: int) -> FloatArray:
    """A surface of one hue: smooth shades under streaks or grain."""
    base = colour(_any_body_hue(rng), rng.uniform(0.05, 0.35), rng.uniform(0.3, 0.8))
    shades = smooth_noise(rng, (size, size), cells=(4, 4)) * rng.uniform(0.02, 0.08)
    fine = int(rng.integers(8, size // 2))
    cells = (fine, max(3, fine // 5)) if rng.random() < 0.5 else (fine, fine)
    grain = smooth_noise(rng, (size, size), cells=cells if rng.random() < 0.5 else cells[::-1])
    tint = rng.normal(0, 0.03, size=3).astype(np.float32)
    texture = shades + grain * rng.uniform(0.03, 0.09)
    return np.asarray(base + texture[..., None] * (1 + 3 * tint), dtype=np.float32)


def _any_body_hue(rng: np.random.Generator) -> float:
    """A hue that bodies have, so that a hue does not tell objects from background."""
    kind = _any_class(rng)
    return kind.bodies[rng.integers(len(kind.bodies))].hue + rng.normal(0, 0.03)


def _paint_companion(
    rng: np.random.Generator, canvas: FloatArray, look: CompanionLook, *, centre: tuple[float, float]
) -> None:
    """A thing that often lies beside a class: its pattern and outline are always the same, its colours nearly."""
    size = len(canvas)
    frame = make_frame(size, centre, size * rng.uniform(0.07, 0.14), rng.uniform(0, 2 * np.pi))
    inside = _stretched_blob(frame, look.aspect, lobes=look.lobes, depth=0.12)
    tone = colour(look.hue + rng.normal(0, 0.02), rng.uniform(0.3, 0.6), rng.uniform(0.45, 0.8))
    texture = pattern(look.pattern, frame.u, frame.v, frequency=look.frequency) * rng.uniform(0.08, 0.14)
    _blend(canvas, frame, tone + (texture + _shading(rng, frame))[..., None], inside)


def _paint_distractor(rng: np.random.Generator, canvas: FloatArray) -> None:
    """A blob shaded and coloured as a body, without a class's texture; a few are small and vivid."""
    size = len(canvas)
    vivid = rng.random() < 0.15
    radius = size * (rng.uniform(0.03, 0.07) if vivid else rng.uniform(0.08, 0.22))
    frame = make_frame(size, _any_place(rng, size), radius, rng.uniform(0, 2 * np.pi))
    stretch, depth = rng.uniform(0.6, 1.0), rng.uniform(0, 0.15)
    inside = _stretched_blob(frame, stretch, lobes=int(rng.integers(2, 6)), depth=depth)
    texture: FloatArray | float = 0.0
    if vivid:
        tone = colour(rng.random(), rng.uniform(0.5, 0.8), rng.uniform(0.7, 1.0))
    else:
        tone = colour(_any_body_hue(rng), rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.85))
        fine = int(rng.integers(2, 12))
        texture = smooth_noise(rng, frame.shape, cells=(fine, fine)) * np.float32(rng.uniform(0.0, 0.06))
    _blend(canvas, frame, tone + (texture + _shading(rng, frame))[..., None], inside)


def _stretched_blob(frame: Frame, aspect: float, *, lobes: int, depth: float) -> npt.NDArray[np.bool_]:
    """Whether pixels lie in a wavy ellipse."""
    v = frame.v / np.float32(aspect)
    rim = 1 + np.float32(depth) * np.cos(lobes * np.arctan2(v, frame.u))
    return np.asarray(np.hypot(frame.u, v) < rim, dtype=np.bool_)


def _paint(rng: np.random.Generator, canvas: FloatArray, item: PlacedObject) -> None:
    """Paint an object in one of its looks, body first."""
    body = item.kind.bodies[rng.integers(len(item.kind.bodies))]
    part = item.kind.parts[rng.integers(len(item.kind.parts))]
    _blend(canvas, item.frame, _body_colours(rng, item, body), item.body)
    _blend(canvas, item.frame, _part_colours(rng, item, part), item.part)


def _body_colours(rng: np.random.Generator, item: PlacedObject, look: BodyLook) -> FloatArray:
    frame = item.frame
    rows, columns = frame.shape
    tone = colour(look.hue + rng.normal(0, 0.02), rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.85))
    shift = rng.uniform(-0.3, 0.3, size=2).astype(np.float32) * (item.kind.texture not in ("rings", "spokes"))
    texture = pattern(
        item.kind.texture, frame.u + shift[0], frame.v + shift[1], frequency=look.frequency * rng.uniform(0.9, 1.1)
    )
    grain = smooth_noise(rng, frame.shape, cells=(rows // 3, columns // 3))
    texture = texture * np.float32(rng.uniform(0.10, 0.18)) + grain * np.float32(0.03)
    return np.asarray(tone + (texture + _shading(rng, frame))[..., None], dtype=np.float32)


def _part_colours(rng: np.random.Generator, item: PlacedObject, look: PartLook) -> FloatArray:
    """Two vivid colours in the pattern of the part, turned a little."""
    turn = rng.normal(0, 0.25)
    u, v = (item.frame.u - item.kind.part_at) / PART_RADIUS, item.frame.v / PART_RADIUS
    across = (np.cos(turn) * u + np.sin(turn) * v).astype(np.float32)
    down = (np.cos(turn) * v - np.sin(turn) * u).astype(np.float32)
    share = (pattern(look.pattern, across, down, frequency=look.frequency)[..., None] + 1) / 2
    first, second = (
        colour(hue + rng.normal(0, 0.012), rng.uniform(0.85, 1.0), rng.uniform(0.8, 1.0)) for hue in look.hues
    )
    return np.asarray(first + (second - first) * share, dtype=np.float32)


def _shading(rng: np.random.Generator, frame: Frame) -> FloatArray:
    """Darker to the rim and away from a light."""
    direction = rng.uniform(0, 2 * np.pi)
    u, v = frame.u, frame.v
    light = 0.09 * (np.cos(direction) * u + np.sin(direction) * v)
    return np.asarray(light - 0.10 * (u * u + v * v), dtype=np.float32)


def _blend(canvas: FloatArray, frame: Frame, colours: FloatArray, inside: npt.NDArray[np.bool_]) -> None:
    """Paint `colours` over the frame's window of the canvas where `inside` is True, with soft edges."""
    import cv2  # here, not above: importing this module must stay cheap

    alpha = np.asarray(cv2.GaussianBlur(inside.astype(np.float32), (3, 3), 0.6), dtype=np.float32)[..., None]
    window = canvas[frame.window]
    window += (colours - window) * alpha


def _outlines(owner: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour belongs to another object, or to none."""
    edge = np.zeros(owner.shape, dtype=np.bool_)
    edge[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edge[:-1] |= owner[:-1] != owner[1:]
    return edge


def _photograph(rng: np.random.Generator, canvas: FloatArray) -> npt.NDArray[np.uint8]:
    """Uneven light, exposure and sensor noise."""
    size = len(canvas)
    light = 1 + 0.10 * smooth_noise(rng, (size, size), cells=(2, 2)) + rng.normal(0, 0.08)
    exposed = np.clip(canvas * light[..., None], 0, 1) ** rng.uniform(0.85, 1.2)
    noisy = exposed + rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(0.01, 0.03)
    return np.asarray(np.clip(noisy * 255 + 0.5, 0, 255), dtype=np.uint8)
