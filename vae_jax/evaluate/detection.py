"""How well a score detects out-of-distribution (OOD) images, and at which threshold.

The conventions are those of OpenOOD (Zhang et al. 2023, arXiv:2306.09301): the OOD image is the
positive one and should have the higher score; images of equal score lie on one side of every
threshold. ``inside`` are scores of images of the training distribution, ``outside`` of OOD ones.
"""

import math

import numpy as np

from vae_jax.config import UserError
from vae_jax.evaluate import ood

TPR = 0.95  # share of OOD images that are detected where the false positive rate is read

# Near sets share the format of the training set (size, centred objects), far sets nothing with it.
# "textures" is made by vae_jax/data/textures.py; sets that are not prepared can be left out.
SETS = {
    "digits": {"near": ("mnist",), "far": ("fashion_mnist", "textures")},
    "mnist": {"near": ("fashion_mnist", "kmnist"), "far": ("cifar10_20k", "textures")},
    "fashion_mnist": {"near": ("mnist", "kmnist"), "far": ("cifar10_20k", "textures")},
    "cifar10_20k": {"near": ("svhn_cropped",), "far": ("mnist", "fashion_mnist", "textures")},
}


def _counts(negative_N: np.ndarray, positive_M: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(negatives, positives) with a score of at least each threshold, from the highest."""
    score = np.concatenate([negative_N, positive_M])
    positive = np.repeat([0, 1], [len(negative_N), len(positive_M)])
    order = np.argsort(-score, kind="stable")
    # One threshold for each distinct score: ties are detected together.
    last_of_tie = np.append(np.diff(score[order]) != 0, True)
    true = np.cumsum(positive[order])[last_of_tie]
    false = np.cumsum(1 - positive[order])[last_of_tie]
    return false, true


def aupr(negative_N: np.ndarray, positive_M: np.ndarray) -> float:
    """Area under precision against recall, positives having the higher score.

    The trapezoid rule over all thresholds, from precision 1 at recall 0, as OpenOOD has it from
    scikit-learn's ``precision_recall_curve`` and ``auc``. Average precision is another number.
    """
    false, true = _counts(negative_N, positive_M)
    precision = np.append(1.0, true / (true + false))
    recall = np.append(0.0, true / len(positive_M))
    return float(np.sum(np.diff(recall) * (precision[1:] + precision[:-1]) / 2))


def fpr_at_tpr(inside_N: np.ndarray, outside_M: np.ndarray, tpr: float = TPR) -> float:
    """Share of inside images above the highest threshold that detects ``tpr`` of those outside."""
    false, true = _counts(inside_N, outside_M)
    first = np.argmax(true >= tpr * len(outside_M))
    return float(false[first] / len(inside_N))


def detection(inside_N: np.ndarray, outside_M: np.ndarray) -> dict[str, float]:
    """OpenOOD's four numbers: ``auroc``, ``aupr_in``, ``aupr_out`` and ``fpr95``.

    ``aupr_in`` takes the inside images as the positive ones, with the score's sign turned.
    """
    return {
        "auroc": float(ood.auroc(inside_N, outside_M)),
        "aupr_in": aupr(-outside_M, -inside_N),
        "aupr_out": aupr(inside_N, outside_M),
        "fpr95": fpr_at_tpr(inside_N, outside_M),
    }


def threshold(validation_N: np.ndarray, false_alarm: float) -> float:
    r"""The score above which an image is called OOD, from validation images alone.

    .. math:: t = s_{(k)}, \qquad k = \lceil (N + 1)(1 - \alpha) \rceil

    s_(k) is the k-th smallest validation score and α the rate of false alarms. For a fresh image
    that is exchangeable with these, P(s > t) <= α, and > α − 1/(N + 1) without ties: split
    conformal prediction (Vovk et al. 2005, Algorithmic Learning in a Random World, section 4.1).

    Raises:
      UserError: there are too few validation images for this rate, or it is no rate.
    """
    n = len(validation_N)
    if not 0 < false_alarm < 1:
        raise UserError(f"false_alarm={false_alarm}: want a rate between 0 and 1")
    k = math.ceil((n + 1) * (1 - false_alarm) - 1e-9)  # 1e-9: 0.95 is not exact in binary
    if k > n:
        least = 1 / (n + 1)
        raise UserError(
            f"false_alarm={false_alarm}: {n} validation images bear {least:.2g} or more"
        )
    return float(np.sort(validation_N)[k - 1])


def alarm_rate(score_N: np.ndarray, limit: float) -> tuple[float, float, float]:
    """(share of scores above ``limit``, the ends of its exact 95 % binomial interval).

    Clopper & Pearson 1934 (Biometrika 26).
    """
    from scipy.stats import binomtest

    count = int((np.asarray(score_N) > limit).sum())
    interval = binomtest(count, len(score_N)).proportion_ci(0.95, "exact")
    return count / len(score_N), float(interval.low), float(interval.high)
