"""How well a classifier classifies: figures of predicted probabilities against labels."""

import numpy as np


def expected_calibration_error(confidence_N, correct_N, bins=15):
    r"""ECE = Σ_b (n_b/N) |accuracy_b − confidence_b| over equal-width bins of the confidence.

    Guo et al. 2017 (arXiv:1706.04599), eq. 3; between 0 and 1.
    """
    which = np.minimum((np.asarray(confidence_N) * bins).astype(int), bins - 1)
    n = np.bincount(which, minlength=bins)
    gap = np.bincount(which, correct_N, bins) - np.bincount(which, confidence_N, bins)
    return float(np.abs(gap).sum() / n.sum())


def confusion(label_N, predicted_N, classes):
    """counts_YxY: rows are true classes, columns predicted ones."""
    return np.bincount(label_N * classes + predicted_N, minlength=classes**2).reshape(classes, classes)


def figures(logits_NxY, label_N):
    """(accuracy, cross-entropy in nats and ECE, counts_YxY) from logits, in float64."""
    logits = np.asarray(logits_NxY, np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    predicted = log_p.argmax(1)
    correct = predicted == label_N
    confidence = np.exp(log_p.max(1))
    return {
        "accuracy": float(correct.mean()),
        "cross_entropy_nats": float(-log_p[np.arange(len(label_N)), label_N].mean()),
        "ece": expected_calibration_error(confidence, correct),
    }, confusion(label_N, predicted, logits.shape[1])
