"""Renders one image of the generated data set: places its objects and paints them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.synthetic.shapes import (
    OBJECT_CLASSES,
    BodyLook,
    FloatArray,
    ObjectClass,
    PartLook,
    body_radius,
    colour,
    pattern,
    smooth_noise,
)

PART_RADIUS = 0.26  # in units of half the body's length
MIN_VISIBLE = 0.45  # of an object, behind the others
MIN_PART_VISIBLE = 0.65
PART_TURNED_AWAY = 0.06  # share of the objects without a part to see; 6.1 % of 3,957 placed ones
MIN_AREA = 0.03  # of the image, before the void border is drawn
MAX_TRIES = 30


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


class _Object(NamedTuple):
    """An object that is placed, in its own frame: `u` runs along the body, 1 at its end, `v` across."""

    label: int
    kind: ObjectClass
    u: FloatArray
    v: FloatArray
    body: npt.NDArray[np.bool_]
    part: npt.NDArray[np.bool_]


def render_scene(rng: np.random.Generator, size: int) -> Scene:
    """Render one to three objects before a cluttered background, `size` pixels high and wide.

    The same state of the generator gives the same scene.
    """
    objects = _place_objects(rng, size)
    canvas = _background(rng, size)
    owner = np.zeros((size, size), dtype=np.int32)
    mask = np.zeros((size, size), dtype=np.uint8)
    part = np.zeros((size, size), dtype=np.bool_)
    for number, item in enumerate(objects, start=1):
        _paint(rng, canvas, item)
        covered = item.body | item.part
        owner[covered], mask[covered] = number, item.label
        part[covered] = item.part[covered]
    mask[_outlines(owner)] = IGNORE_INDEX
    return Scene(_photograph(rng, canvas), mask, part)


def _place_objects(rng: np.random.Generator, size: int) -> list[_Object]:
    """Objects from back to front, every one of them and its part visible enough."""
    wanted = int(rng.choice(3, p=(0.6, 0.32, 0.08))) + 1
    placed: list[_Object] = []
    for _ in range(MAX_TRIES):
        if len(placed) == wanted:
            break
        candidate = _random_object(rng, size, alone=wanted == 1)
        if _all_visible([*placed, candidate], size):
            placed.append(candidate)
    # An object alone in the middle of the image is always visible enough.
    return placed or [_random_object(rng, size, alone=True, centred=True)]


def _random_object(rng: np.random.Generator, size: int, *, alone: bool, centred: bool = False) -> _Object:
    label = int(rng.integers(len(OBJECT_CLASSES))) + 1
    kind = OBJECT_CLASSES[label - 1]
    length = size * rng.uniform(0.7, 0.95) if alone else size * rng.uniform(0.5, 0.7)
    turn = rng.uniform(0, 2 * np.pi)
    margin = 0.5 if centred else rng.uniform(0.3, 0.45)
    x, y = rng.uniform(margin * size, (1 - margin) * size, size=2)
    wobble = np.stack([rng.uniform(0, 0.035, size=4), rng.uniform(0, 2 * np.pi, size=4)], axis=1)
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    across, down = (columns - x) / (length / 2), (rows - y) / (length / 2)
    u = (np.cos(turn) * across + np.sin(turn) * down).astype(np.float32)
    v = (np.cos(turn) * down - np.sin(turn) * across).astype(np.float32)
    body = np.hypot(u, v) < body_radius(kind, np.arctan2(v, u), wobble=wobble.astype(np.float32))
    part = (np.hypot(u - kind.part_at, v) < PART_RADIUS) & (rng.random() >= PART_TURNED_AWAY)
    return _Object(label, kind, u, v, body, part)


def _all_visible(objects: list[_Object], size: int) -> bool:
    """Whether each object, back to front, shows enough of its area and of its part."""
    hidden = np.zeros((size, size), dtype=np.bool_)
    for item in reversed(objects):
        covered = item.body | item.part
        seen = covered & ~hidden
        unit = 1 / np.hypot(item.u[0, 1] - item.u[0, 0], item.v[0, 1] - item.v[0, 0])  # pixels of the object's frame
        full_part = np.pi * (PART_RADIUS * float(unit)) ** 2
        if seen.sum() < max(MIN_AREA * size**2, MIN_VISIBLE * covered.sum()):
            return False
        if item.part.any() and (item.part & seen).sum() < MIN_PART_VISIBLE * full_part:
            return False
        hidden |= covered
    return True


def _background(rng: np.random.Generator, size: int) -> FloatArray:
    """Two textured regions and plain distractor blobs, `(size, size, 3)` around the range [0, 1]."""
    blend = 1 / (1 + np.exp(-6 * smooth_noise(rng, size, cells=(3, 3))))
    first, second = _ground(rng, size), _ground(rng, size)
    canvas = np.asarray(first + (second - first) * blend[..., None], dtype=np.float32)
    for _ in range(int(rng.integers(2, 6))):
        _paint_distractor(rng, canvas)
    return canvas


def _ground(rng: np.random.Generator, size: int) -> FloatArray:
    """A surface of one hue: smooth shades under streaks or grain."""
    base = colour(_any_body_hue(rng), rng.uniform(0.05, 0.35), rng.uniform(0.3, 0.8))
    shades = smooth_noise(rng, size, cells=(4, 4)) * rng.uniform(0.02, 0.08)
    fine = int(rng.integers(8, size // 2))
    cells = (fine, max(3, fine // 5)) if rng.random() < 0.5 else (fine, fine)
    grain = smooth_noise(rng, size, cells=cells if rng.random() < 0.5 else cells[::-1])
    tint = rng.normal(0, 0.03, size=3).astype(np.float32)
    texture = shades + grain * rng.uniform(0.03, 0.09)
    return np.asarray(base + texture[..., None] * (1 + 3 * tint), dtype=np.float32)


def _any_body_hue(rng: np.random.Generator) -> float:
    """A hue that bodies have, so that a hue does not tell objects from background."""
    kind = OBJECT_CLASSES[rng.integers(len(OBJECT_CLASSES))]
    return kind.bodies[rng.integers(len(kind.bodies))].hue + rng.normal(0, 0.03)


def _paint_distractor(rng: np.random.Generator, canvas: FloatArray) -> None:
    """A blob shaded and coloured as a body, without a class's texture; a few are small and vivid."""
    size = len(canvas)
    vivid = rng.random() < 0.15
    radius = size * (rng.uniform(0.03, 0.07) if vivid else rng.uniform(0.08, 0.22))
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32)
    x, y = rng.uniform(0, size, size=2)
    stretch, turn = rng.uniform(0.6, 1.0), rng.uniform(0, np.pi)
    across, down = (columns - x) / radius, (rows - y) / radius
    u = np.cos(turn) * across + np.sin(turn) * down
    v = (np.cos(turn) * down - np.sin(turn) * across) / stretch
    angle = np.arctan2(v, u)
    rim = 1 + rng.uniform(0, 0.15) * np.cos(int(rng.integers(2, 6)) * angle)
    inside = (np.hypot(u, v) < rim).astype(np.float32)
    if vivid:
        tone = colour(rng.random(), rng.uniform(0.5, 0.8), rng.uniform(0.7, 1.0))
        texture = np.zeros_like(inside)
    else:
        tone = colour(_any_body_hue(rng), rng.uniform(0.2, 0.5), rng.uniform(0.4, 0.85))
        fine = int(rng.integers(4, 24))
        texture = smooth_noise(rng, size, cells=(fine, fine)) * rng.uniform(0.0, 0.06)
    _blend(canvas, tone + (texture + _shading(rng, u, v))[..., None], inside)


def _paint(rng: np.random.Generator, canvas: FloatArray, item: _Object) -> None:
    """Paint an object in one of its looks, body first."""
    body = item.kind.bodies[rng.integers(len(item.kind.bodies))]
    part = item.kind.parts[rng.integers(len(item.kind.parts))]
    _blend(canvas, _body_colours(rng, item, body), item.body.astype(np.float32))
    _blend(canvas, _part_colours(rng, item, part), item.part.astype(np.float32))


def _body_colours(rng: np.random.Generator, item: _Object, look: BodyLook) -> FloatArray:
    size = len(item.u)
    tone = colour(look.hue + rng.normal(0, 0.02), rng.uniform(0.5, 0.8), rng.uniform(0.5, 0.85))
    shift = rng.uniform(-0.3, 0.3, size=2).astype(np.float32) * (item.kind.texture not in ("rings", "spokes"))
    texture = pattern(
        item.kind.texture, item.u + shift[0], item.v + shift[1], frequency=look.frequency * rng.uniform(0.9, 1.1)
    )
    texture = texture * rng.uniform(0.10, 0.18) + smooth_noise(rng, size, cells=(size // 3, size // 3)) * 0.03
    return np.asarray(tone + (texture + _shading(rng, item.u, item.v))[..., None], dtype=np.float32)


def _part_colours(rng: np.random.Generator, item: _Object, look: PartLook) -> FloatArray:
    """Two vivid colours in the pattern of the part, turned a little."""
    turn = rng.normal(0, 0.25)
    u, v = (item.u - item.kind.part_at) / PART_RADIUS, item.v / PART_RADIUS
    across = (np.cos(turn) * u + np.sin(turn) * v).astype(np.float32)
    down = (np.cos(turn) * v - np.sin(turn) * u).astype(np.float32)
    share = (pattern(look.pattern, across, down, frequency=look.frequency)[..., None] + 1) / 2
    first, second = (
        colour(hue + rng.normal(0, 0.012), rng.uniform(0.85, 1.0), rng.uniform(0.8, 1.0)) for hue in look.hues
    )
    return np.asarray(first + (second - first) * share, dtype=np.float32)


def _shading(rng: np.random.Generator, u: FloatArray, v: FloatArray) -> FloatArray:
    """Darker to the rim and away from a light."""
    direction = rng.uniform(0, 2 * np.pi)
    light = 0.09 * (np.cos(direction) * u + np.sin(direction) * v)
    return np.asarray(light - 0.10 * (u * u + v * v), dtype=np.float32)


def _blend(canvas: FloatArray, colours: FloatArray, inside: FloatArray) -> None:
    """Paint `colours` over the canvas where `inside` is 1, with soft edges."""
    import cv2  # here, not above: importing this module must stay cheap

    alpha = np.asarray(cv2.GaussianBlur(inside, (3, 3), 0.6), dtype=np.float32)[..., None]
    canvas += (colours - canvas) * alpha


def _outlines(owner: npt.NDArray[np.int32]) -> npt.NDArray[np.bool_]:
    """Pixels whose right or lower neighbour belongs to another object, or to none."""
    edge = np.zeros(owner.shape, dtype=np.bool_)
    edge[:, :-1] |= owner[:, :-1] != owner[:, 1:]
    edge[:-1] |= owner[:-1] != owner[1:]
    return edge


def _photograph(rng: np.random.Generator, canvas: FloatArray) -> npt.NDArray[np.uint8]:
    """Uneven light, exposure and sensor noise."""
    size = len(canvas)
    light = 1 + 0.10 * smooth_noise(rng, size, cells=(2, 2)) + rng.normal(0, 0.08)
    exposed = np.clip(canvas * light[..., None], 0, 1) ** rng.uniform(0.85, 1.2)
    noisy = exposed + rng.standard_normal(canvas.shape, dtype=np.float32) * rng.uniform(0.01, 0.03)
    return np.asarray(np.clip(noisy * 255 + 0.5, 0, 255), dtype=np.uint8)
