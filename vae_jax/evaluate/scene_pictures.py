"""What the report draws of the task ``scenes``."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from vae_jax.data.scenes import iou
from vae_jax.evaluate.average_precision import Boxes, matches

SHOWN = 24
MISSED = 16


def errors(detected: Boxes, true: Boxes, threshold: float = 0.5) -> int:
    """Objects that no box finds and boxes that find none, at this IoU."""
    order = np.argsort(-detected.score, kind="stable")
    hits = int(matches(iou(detected.box[order], true.box), threshold).sum())
    return len(detected.label) + len(true.label) - 2 * hits


def rows(images: Sequence[Boxes]) -> np.ndarray:
    """Boxes of N images as an array NxMx5: x, y, w, h, class; −1 beyond an image's number."""
    most = max([1, *(len(one.label) for one in images)])
    out = np.full((len(images), most, 5), -1.0)
    for i, one in enumerate(images):
        out[i, : len(one.label), :4] = one.box
        out[i, : len(one.label), 4] = one.label
    return out


def spread(count_N: np.ndarray, n: int) -> np.ndarray:
    """Indices of n scenes at most: two of no object, and as many of each other count."""
    empty = np.flatnonzero(count_N == 0)[:2]
    counts = np.unique(count_N[count_N > 0])
    each = (n - len(empty)) // max(1, len(counts))
    return np.concatenate([empty, *(np.flatnonzero(count_N == k)[:each] for k in counts)])


def pictures(
    image_NxHxWxC: np.ndarray,
    detections: Sequence[Boxes],
    truth: Sequence[Boxes],
    curves: dict[str, np.ndarray],
    *,
    classes: bool,
) -> dict[str, Any]:
    """The canvases that are shown, and those with the most :func:`errors`.

    ``image_NxHxWxC`` is in [0, 1]; ``detections`` are those with a probability above 1/2.
    """
    wrong_N = np.array([errors(*pair) for pair in zip(detections, truth, strict=True)])
    worst = np.argsort(-wrong_N, kind="stable")[:MISSED]
    count_N = np.array([len(one.label) for one in truth])
    chosen = {"shown": spread(count_N, SHOWN), "missed": worst[wrong_N[worst] > 0]}
    out = {"classes": classes, "precision": curves}
    for name, index in chosen.items():
        true = rows([truth[i] for i in index])
        detected = rows([detections[i] for i in index])
        out[name] = (image_NxHxWxC[index], true, detected)
    return {"scenes": out}
