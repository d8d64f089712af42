"""Outlines of regions as polygons along the edges of pixels, from which the region can be drawn again exactly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Polygon = npt.NDArray[np.int64]
"""Corners (N, 2) as x, y; pixel (x, y) is the square from (x, y) to (x + 1, y + 1)."""


def trace_polygons(region: npt.NDArray[np.bool_]) -> list[Polygon]:
    """Trace the outline of each connected component, pixels that touch at a corner being connected.

    A hole is joined to the outline above it by a cut without width, so that one polygon describes a component with its
    holes, in formats that know of no holes too. A pixel belongs to the component if its centre lies inside, by the
    even-odd rule as well as by the nonzero one.

    Args:
        region: `(H, W)`, any number of components.

    Returns:
        A polygon for each component, by their first pixels from the top left, clockwise as seen on the screen.

    Example:
        >>> trace_polygons(np.array([[False, True, True]]))[0].tolist()
        [[1, 0], [3, 0], [3, 1], [1, 1]]
    """
    width = region.shape[1]
    ys, xs, following, below = _corners(region)
    starts, holes = _rings(following, below)
    is_top = np.flatnonzero(below[0::2]) * 2  # left ends of the edges that have the region below
    places = ys[is_top] * (width + 1) + xs[is_top]
    y, x = ys.tolist(), xs.tolist()
    # By x from the right, so that cuts that end on one edge lie on it from left to right.
    for hole in sorted(holes, key=lambda node: -x[node]):
        outside = np.flatnonzero(~region[: y[hole], x[hole]])
        top = int(outside[-1]) + 1 if outside.size else 0
        edge = int(is_top[np.searchsorted(places, top * (width + 1) + x[hole], side="right") - 1])
        # edge -> (top, x) -> around the hole, back to where it starts -> (top, x) -> what came after edge
        down, again, up = len(y), len(y) + 1, len(y) + 2
        y += [top, y[hole], top]
        x += [x[hole]] * 3
        following += [hole, up, following[edge]]
        following[edge] = down
        following[hole + 1] = again
    return [_walk(start, following, x, y) for start in starts]


def _corners(
    region: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], list[int], npt.NDArray[np.bool_]]:
    """Corners of all outlines in reading order, and for each the next one with the region on the right hand.

    Where two pixels of the region touch at a corner only, two outlines meet; the corner stands there twice, first the
    one whose edge leads to the left.

    Returns:
        y and x `(N,)`, the number of the following corner, and whether the pixel to the lower right is in the region.
    """
    padded = np.pad(region, 1)
    upper_left, upper_right = padded[:-1, :-1], padded[:-1, 1:]  # of each corner of a pixel, (H + 1, W + 1)
    lower_left, lower_right = padded[1:, :-1], padded[1:, 1:]
    single = upper_left ^ upper_right ^ lower_left ^ lower_right
    double = (upper_left == lower_right) & (upper_right == lower_left) & (upper_left != upper_right)
    ys, xs = np.nonzero(single | double)
    twice = double[ys, xs]
    index = np.repeat(np.arange(ys.size), 1 + twice)
    ys, xs = ys[index], xs[index]
    second = np.concatenate([[False], index[1:] == index[:-1]]) if index.size else np.zeros(0, dtype=np.bool_)
    # Outlines go around the pixel outside: of two, the left one leads down if that pixel is the lower left.
    leads_down = second ^ (upper_left[ys, xs] & lower_right[ys, xs])
    following = np.zeros(ys.size, dtype=np.int64)
    left, right = np.arange(0, ys.size, 2), np.arange(1, ys.size, 2)
    below = lower_right[ys, xs]
    _link(following, left, right, forwards=below[left])
    order = np.lexsort((leads_down, ys, xs))
    upper, lower = order[0::2], order[1::2]
    _link(following, upper, lower, forwards=lower_left[ys[upper], xs[upper]])
    return ys, xs, following.tolist(), below


def _link(
    following: npt.NDArray[np.int64],
    first: npt.NDArray[np.int64],
    second: npt.NDArray[np.int64],
    *,
    forwards: npt.NDArray[np.bool_],
) -> None:
    following[np.where(forwards, first, second)] = np.where(forwards, second, first)


def _rings(following: list[int], below: npt.NDArray[np.bool_]) -> tuple[list[int], list[int]]:
    """First corner of each outer outline and of each hole: the corner at the top left of either."""
    seen = bytearray(len(following))
    starts: list[int] = []
    holes: list[int] = []
    for node, is_outer in enumerate(below.tolist()):
        if seen[node]:
            continue
        (starts if is_outer else holes).append(node)
        while not seen[node]:
            seen[node] = 1
            node = following[node]
    return starts, holes


def _walk(start: int, following: list[int], x: list[int], y: list[int]) -> Polygon:
    corners = [(x[start], y[start])]
    node = following[start]
    while node != start:
        corner = (x[node], y[node])
        if corner != corners[-1]:  # a cut may end where a corner is
            corners.append(corner)
        node = following[node]
    return np.array(corners, dtype=np.int64)
