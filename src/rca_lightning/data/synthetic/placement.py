"""Places the objects of a generated image: at any place, of any size, in any turn, each visible enough."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from rca_lightning.data.synthetic.shapes import OBJECT_CLASSES, FloatArray, ObjectClass, body_radius

BoolArray = npt.NDArray[np.bool_]

PART_RADIUS = 0.26  # in units of half the body's length
NUMBERS = (0.34, 0.27, 0.19, 0.12, 0.08)  # shares of images with 1, 2, ... objects wanted
SAME_CLASS = 0.35  # chance of a further object to be of a class that the image has already
MAX_CLASSES = 3
LENGTHS = (0.28, 1.1)  # of bodies, in units of the image's side; every factor between is as likely
MIN_VISIBLE = 0.45  # of an object, behind others and beyond the border
MIN_PART_VISIBLE = 0.65
PART_TURNED_AWAY = 0.06  # share of the objects without a part to see
MIN_AREA = 0.02  # of the image, before the void border is drawn
MAX_TRIES = 30
_REACH = 1.35  # no body is longer, in units of half its length


class Frame(NamedTuple):
    """The window of an image that a thing lies in, with the thing's own coordinates.

    Attributes:
        window: rows and columns of the image.
        u: `(h, w)` coordinate along the thing, 1 at its end.
        v: `(h, w)` coordinate across, in the same unit.
    """

    window: tuple[slice, slice]
    u: FloatArray
    v: FloatArray

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the window."""
        return self.u.shape[0], self.u.shape[1]


class PlacedObject(NamedTuple):
    """An object that is placed.

    Attributes:
        label: 1 for the first class.
        kind: its class.
        centre: column and row in pixels.
        length: of the body in pixels.
        frame: where it lies.
        body: `(h, w)` True on the body, in the window of the frame.
        part: `(h, w)` True on the striking part; nowhere if that is turned away.
        turned_away: whether it is.
    """

    label: int
    kind: ObjectClass
    centre: tuple[float, float]
    length: float
    frame: Frame
    body: BoolArray
    part: BoolArray
    turned_away: bool


def make_frame(size: int, centre: tuple[float, float], radius: float, turn: float, *, reach: float = _REACH) -> Frame:
    """The frame of a thing in an image of `size` x `size` pixels.

    Args:
        size: of the image.
        centre: column and row within the image.
        radius: half the thing's length in pixels, its unit.
        turn: in radians.
        reach: how far the window goes from the centre, in units of the radius.
    """
    far = reach * radius + 2  # 2: edges are soft
    columns, rows = (slice(max(0, int(at - far)), min(size, int(at + far) + 1)) for at in centre)
    down, across = np.ogrid[rows, columns]
    x = (across.astype(np.float32) - np.float32(centre[0])) / np.float32(radius)
    y = (down.astype(np.float32) - np.float32(centre[1])) / np.float32(radius)
    cos, sin = np.float32(np.cos(turn)), np.float32(np.sin(turn))
    return Frame((rows, columns), cos * x + sin * y, cos * y - sin * x)


def place_objects(rng: np.random.Generator, size: int) -> list[PlacedObject]:
    """Places one to five objects, from back to front, every one of them and its part visible enough.

    Small ones lie before large ones, which would hide them.
    """
    wanted = int(rng.choice(len(NUMBERS), p=NUMBERS)) + 1
    shortest, longest = np.log(LENGTHS)
    lengths = np.sort(np.exp(rng.uniform(shortest, longest, size=wanted)))[::-1] * size
    turned_away = rng.random(wanted) < PART_TURNED_AWAY  # of each, not of each try: parts are often out of sight there
    placed: list[PlacedObject] = []
    seen: list[BoolArray] = []  # of the placed ones, in the whole image
    for _ in range(MAX_TRIES):
        if len(placed) == wanted:
            break
        label, number = _next_label(rng, placed), len(placed)
        candidate = _random_object(rng, size, label, lengths[number], turned_away=bool(turned_away[number]))
        covered = np.zeros((size, size), dtype=np.bool_)
        covered[candidate.frame.window] = candidate.body | candidate.part
        left = [of_one & ~covered for of_one in seen]
        if all(map(_is_visible, [*placed, candidate], [*left, covered])):
            placed.append(candidate)
            seen = [*left, covered]
    # An object alone in the middle of the image is always visible enough.
    return placed or [_random_object(rng, size, _next_label(rng, []), 0.6 * size, centre=(size / 2, size / 2))]


def _next_label(rng: np.random.Generator, placed: list[PlacedObject]) -> int:
    there = sorted({item.label for item in placed})
    if there and (len(there) == MAX_CLASSES or rng.random() < SAME_CLASS):
        return int(rng.choice(there))
    return int(rng.integers(len(OBJECT_CLASSES))) + 1


def _random_object(
    rng: np.random.Generator,
    size: int,
    label: int,
    length: float,
    *,
    turned_away: bool = False,
    centre: tuple[float, float] | None = None,
) -> PlacedObject:
    kind = OBJECT_CLASSES[label - 1]
    x, y = rng.uniform(0, size, size=2) if centre is None else centre
    frame = make_frame(size, (float(x), float(y)), length / 2, rng.uniform(0, 2 * np.pi))
    wobble = np.stack([rng.uniform(0, 0.035, size=4), rng.uniform(0, 2 * np.pi, size=4)], axis=1)
    outline = body_radius(kind, np.arctan2(frame.v, frame.u), wobble=wobble.astype(np.float32))
    body = np.hypot(frame.u, frame.v) < outline
    part = (np.hypot(frame.u - np.float32(kind.part_at), frame.v) < PART_RADIUS) & (not turned_away)
    return PlacedObject(label, kind, (float(x), float(y)), float(length), frame, body, part, turned_away)


def _is_visible(item: PlacedObject, seen: BoolArray) -> bool:
    """Whether an object shows enough of its area and of its part where it is `seen`."""
    whole = np.pi * item.kind.aspect * (item.length / 2) ** 2
    if seen.sum() < max(MIN_AREA * seen.size, MIN_VISIBLE * whole):
        return False
    whole_part = np.pi * (PART_RADIUS * item.length / 2) ** 2
    return item.turned_away or bool((item.part & seen[item.frame.window]).sum() >= MIN_PART_VISIBLE * whole_part)
