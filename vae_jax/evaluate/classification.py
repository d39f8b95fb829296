"""How well a classifier classifies, and how far its probabilities can be believed: from logits and labels."""

import numpy as np


def reliability(confidence_N, correct_N, bins=15):
    """(n, accuracy, mean confidence) of each equal-width bin of the confidence; the last two are NaN where n = 0."""
    which = np.minimum((np.asarray(confidence_N) * bins).astype(int), bins - 1)
    n, hits, sure = (np.bincount(which, w, bins) for w in (None, correct_N, confidence_N))
    empty = np.where(n, n, np.nan)
    return n, hits / empty, sure / empty


def expected_calibration_error(confidence_N, correct_N, bins=15):
    r"""ECE = Σ_b (n_b/N) |accuracy_b − confidence_b| over :func:`reliability`'s bins.

    Guo et al. 2017 (arXiv:1706.04599), eq. 3; between 0 and 1.
    """
    n, accuracy, confidence = reliability(confidence_N, correct_N, bins)
    return float(np.nansum(n * np.abs(accuracy - confidence)) / n.sum())


def brier(p_NxY, label_N):
    """Mean of Σ_y (p_y − 1[y = label])²; between 0 and 2. Brier 1950, eq. 2."""
    right = np.eye(p_NxY.shape[1])[label_N]
    return float(((p_NxY - right) ** 2).sum(1).mean())


def macro_f1(counts_YxY):
    """Mean over the classes of F1 = 2 TP / (2 TP + FP + FN), from a :func:`confusion`; 0 for a class nobody names."""
    return float(
        np.mean(2 * np.diag(counts_YxY) / np.maximum(counts_YxY.sum(0) + counts_YxY.sum(1), 1))
    )


def confusion(label_N, predicted_N, classes):
    """counts_YxY: rows are true classes, columns predicted ones."""
    return np.bincount(label_N * classes + predicted_N, minlength=classes**2).reshape(
        classes, classes
    )


def log_softmax(logits_NxY):
    """In float64."""
    logits = np.asarray(logits_NxY, np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    return log_p - np.log(np.exp(log_p).sum(1, keepdims=True))


def figures(logits_NxY, label_N):
    """(accuracy, cross-entropy in nats, ECE, Brier score and macro F1; counts_YxY) from logits, in float64."""
    log_p = log_softmax(logits_NxY)
    predicted = log_p.argmax(1)
    correct = predicted == label_N
    counts = confusion(label_N, predicted, log_p.shape[1])
    return {
        "accuracy": float(correct.mean()),
        "cross_entropy_nats": float(-log_p[np.arange(len(label_N)), label_N].mean()),
        "ece": expected_calibration_error(np.exp(log_p.max(1)), correct),
        "brier": brier(np.exp(log_p), label_N),
        "macro_f1": macro_f1(counts),
    }, counts


def temperature(logits_NxY, label_N):
    r"""T > 0 that minimises the mean cross-entropy of softmax(logits / T); in [1/50, 50].

    Guo et al. 2017, eq. 9: to be fitted on validation, never on the images that it is judged by. The predicted
    class stays; T > 1 says that the classifier was too sure. The loss is convex in 1/T, so the search over log T
    has one minimum to find. Where every prediction is right that is T = 0, which says only that there were too few
    images: then 1.
    """
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits_NxY, np.float64)
    if (logits.argmax(1) == label_N).all():
        return 1.0

    def loss(log_t):
        return -log_softmax(logits / np.exp(log_t))[np.arange(len(label_N)), label_N].mean()

    return float(
        np.exp(minimize_scalar(loss, bounds=(-np.log(50), np.log(50)), method="bounded").x)
    )
