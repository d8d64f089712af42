"""Quality of a mask without any true mask, and the reasons why a human should look at it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from rca_lightning.pseudo_labels.labels import check_share

_NEARLY_NOTHING = 0.002  # of the photograph: 375 pixels of 375 x 500
_NEARLY_ALL = 0.95
_LOW_QUALITY = 0.25
_TIE = 0.05  # difference of two maps below which they say the same
_MANY_TIES = 0.25  # of the pixels of all classes
_DOUBTED = 0.25  # image probability; at 0.5 the list names 112 of 321 photographs of VOC, at 0.25 79


def margin_quality(maps: npt.NDArray[np.floating], threshold: float) -> float:
    """Quality of class maps: mean margin between the best and the second best score of a pixel, balanced by class.

    The scores of a pixel are its class maps and, for the background, the threshold. The margin (the measure of margin
    sampling: Scheffer, Decomain & Wrobel, IDA 2001) is divided by the largest that is possible: by `threshold` where
    the background wins, and by `1 - threshold` where a class does. It is averaged over the pixels of the background and
    over those of each class, and then over these, so that a small object counts as much as a wide background. A class
    that wins nowhere counts as 0.

    Args:
        maps: `(K, H, W)` in `[0, 1]`.
        threshold: of the background, in `[0, 1]`.

    Returns:
        In `[0, 1]`: 1 where every pixel is decided beyond doubt, 0 without a class.

    Raises:
        ArgumentError: for a threshold outside `[0, 1]`.

    Example:
        >>> margin_quality(np.array([[[1.0, 0.0, 0.25]]]), 0.5)
        0.875
    """
    check_share("threshold", threshold)
    if len(maps) == 0:
        return 0.0
    background = np.full((1, *maps.shape[1:]), threshold, dtype=np.float64)
    scores = np.concatenate([background, maps.astype(np.float64)])
    winner = scores.argmax(axis=0)
    second, best = np.partition(scores, -2, axis=0)[-2:]
    widest = np.where(winner == 0, threshold, 1 - threshold)
    margin = np.divide(best - second, widest, out=np.zeros_like(best), where=widest > 0)
    means = []
    for channel in range(len(scores)):
        won = winner == channel
        if won.any():
            means.append(float(margin[won].mean()))
        elif channel > 0:
            means.append(0.0)
    return sum(means) / len(means)


def tied_classes(
    maps: npt.NDArray[np.floating], classes: Sequence[int], threshold: float
) -> tuple[float, tuple[int, int] | None]:
    """Finds the two classes whose maps are most often equal within 0.05 above the threshold.

    Args:
        maps: `(K, H, W)` in `[0, 1]`.
        classes: class of each map.
        threshold: of the background.

    Returns:
        The share of the pixels above the threshold at which the best two maps are so near, and the pair of classes at
        most of these; `(0.0, None)` with fewer than two maps or no such pixel.

    Example:
        >>> tied_classes(np.array([[[0.9, 0.8]], [[0.88, 0.1]]]), [3, 7], 0.5)
        (0.5, (3, 7))
    """
    if len(maps) < 2:
        return 0.0, None
    order = np.argsort(maps, axis=0)
    first, second = order[-1], order[-2]
    values = np.take_along_axis(maps, order[-2:], axis=0).astype(np.float64)
    above = values[1] > threshold
    tied = above & (values[1] - values[0] < _TIE)
    if not tied.any():
        return 0.0, None
    pairs = np.sort(np.stack([first[tied], second[tied]]), axis=0)
    codes, counts = np.unique(pairs[0] * len(maps) + pairs[1], return_counts=True)
    low, high = divmod(int(codes[counts.argmax()]), len(maps))
    return float(tied.sum() / above.sum()), (classes[low], classes[high])


def reasons_to_look(
    tags: Sequence[str],
    shares: Mapping[str, float],
    *,
    quality: float | None = None,
    undecided: float = 0.0,
    ties: tuple[float, str, str] | None = None,
    probabilities: Mapping[str, float] | None = None,
) -> list[str]:
    """Reasons why a human should look at a mask, in words; often none.

    Args:
        tags: of the photograph.
        shares: of the photograph that each drawn class has.
        quality: in `[0, 1]`, if known.
        undecided: share of the photograph with the label 255.
        ties: share of the pixels of classes at which two are tied, and the two; see `tied_classes`.
        probabilities: image probability of each class, where known.

    Example:
        >>> reasons_to_look(["dog", "cat"], {"dog": 0.97}, quality=0.6)
        ['cat is never drawn', 'the mask is nearly the whole photograph (97 %)']
    """
    reasons = []
    for tag in tags:
        share = shares.get(tag, 0.0)
        if share == 0:
            reasons.append(f"{tag} is never drawn")
        elif share < _NEARLY_NOTHING:
            reasons.append(f"{tag} is hardly drawn ({100 * share:.2f} %)")
    drawn = sum(shares.values())
    if drawn > _NEARLY_ALL:
        reasons.append(f"the mask is nearly the whole photograph ({100 * drawn:.0f} %)")
    if drawn == 0 and not tags:
        reasons.append("no class is drawn")
    if undecided > 0.5:
        reasons.append(f"{100 * undecided:.0f} % is undecided")
    if ties is not None and ties[0] > _MANY_TIES:
        reasons.append(f"{ties[1]} and {ties[2]} are tied on {100 * ties[0]:.0f} % of what is drawn")
    if quality is not None and quality < _LOW_QUALITY:
        reasons.append(f"classes and background are hardly apart (quality {quality:.2f})")
    for name in tags:
        probability = (probabilities or {}).get(name, 1.0)
        if probability < _DOUBTED:
            reasons.append(f"the network doubts {name} ({probability:.2f})")
    return reasons
