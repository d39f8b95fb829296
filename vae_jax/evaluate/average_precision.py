"""Average precision of boxes, as COCO counts it (Lin et al. 2014, arXiv:1405.0312)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vae_jax.data.scenes import iou

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # boxes of an image that count, as in COCO's measure


class Boxes(NamedTuple):
    """The boxes of one image; of true objects the score is not used."""

    box: np.ndarray  # Dx4: x, y, w, h
    label: np.ndarray  # D
    score: np.ndarray  # D


def true_boxes(objects_Mx5: np.ndarray) -> Boxes:
    """The objects of one scene, without the empty rows."""
    real = objects_Mx5[objects_Mx5[:, 4] >= 0]
    return Boxes(real[:, :4], real[:, 4], np.ones(len(real)))


def matches(overlap_DxK: np.ndarray, threshold: float) -> np.ndarray:
    """Which of D boxes, in falling order of score, match one of K true boxes; bool, shape D."""
    return assigned(overlap_DxK, threshold) >= 0


def assigned(overlap_DxK: np.ndarray, threshold: float) -> np.ndarray:
    """The true box that each of D boxes, in falling order of score, matches; −1: none.

    Each takes the true box of the highest IoU that no box before it has taken, if that IoU is at
    least ``threshold``.
    """
    overlap = overlap_DxK.copy()
    taken = np.full(len(overlap), -1)
    if not overlap.shape[1]:
        return taken
    for i, row in enumerate(overlap):
        best = row.argmax()
        if row[best] >= threshold:
            taken[i] = best
            overlap[:, best] = -1
    return taken


def precision_at_recalls(score_N: np.ndarray, hit_N: np.ndarray, count: int) -> np.ndarray:
    """Interpolated precision at :data:`RECALLS`: the highest at this recall or a higher one.

    ``count``: true objects. 0 at recalls that are not reached.
    """
    order = np.argsort(-score_N, kind="stable")
    true = np.cumsum(hit_N[order])
    precision = true / np.arange(1, len(true) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(true / count, RECALLS, side="left")
    return np.append(precision, 0.0)[place]


def precision_curve(
    detections: Sequence[Boxes], truth: Sequence[Boxes], threshold: float
) -> np.ndarray:
    """Precision at :data:`RECALLS` of the boxes of all images, whatever their class."""
    scores = []
    hits = []
    for one, true in zip(detections, truth, strict=True):
        order = np.argsort(-one.score, kind="stable")[:MOST]
        scores.append(one.score[order])
        hits.append(matches(iou(one.box[order], true.box), threshold))
    count = sum(len(true.label) for true in truth)
    return precision_at_recalls(np.concatenate(scores), np.concatenate(hits), count)


def average_precision(
    detections: Sequence[Boxes],
    truth: Sequence[Boxes],
    thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
    """COCO's AP at each IoU threshold: the mean over recalls, then over the classes in ``truth``.

    NaN where there are no true objects. Lin et al. 2014 (arXiv:1405.0312).
    """
    classes = np.unique(np.concatenate([true.label for true in truth]))
    values = np.full((len(thresholds), len(classes)), np.nan)
    for y, label in enumerate(classes):
        ours = [_of_class(one, label) for one in detections]
        theirs = [_of_class(one, label) for one in truth]
        for t, threshold in enumerate(thresholds):
            values[t, y] = precision_curve(ours, theirs, threshold).mean()
    if not len(classes):
        return np.full(len(thresholds), np.nan)
    return values.mean(1)


def _of_class(one: Boxes, label: int) -> Boxes:
    mine = one.label == label
    return Boxes(one.box[mine], one.label[mine], one.score[mine])


def without_classes(images: Sequence[Boxes]) -> list[Boxes]:
    """The same boxes, all of one class."""
    return [one._replace(label=np.zeros(len(one.label), int)) for one in images]
