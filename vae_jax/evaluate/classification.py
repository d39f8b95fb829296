"""How well a classifier classifies and how well its probabilities are calibrated."""

import numpy as np

Bins = tuple[np.ndarray, np.ndarray, np.ndarray]  # examples, accuracy, mean confidence of each bin


def reliability(confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15) -> Bins:
    """(n, accuracy, mean confidence) of equal-width bins of the confidence; NaN where n = 0."""
    bin_N = np.minimum((np.asarray(confidence_N) * bins).astype(int), bins - 1)
    n = np.bincount(bin_N, minlength=bins)
    correct = np.bincount(bin_N, correct_N, bins)
    confidence = np.bincount(bin_N, confidence_N, bins)
    count = np.where(n > 0, n, np.nan)
    return n, correct / count, confidence / count


def expected_calibration_error(
    confidence_N: np.ndarray, correct_N: np.ndarray, bins: int = 15
) -> float:
    r"""ECE = Σ_b (n_b/N) |accuracy_b − confidence_b| over :func:`reliability`'s bins.

    Guo et al. 2017 (arXiv:1706.04599), eq. 3; between 0 and 1.
    """
    n, accuracy, confidence = reliability(confidence_N, correct_N, bins)
    return float(np.nansum(n * np.abs(accuracy - confidence)) / n.sum())


def brier(p_NxY: np.ndarray, label_N: np.ndarray) -> float:
    """Mean of Σ_y (p_y − 1[y = label])²; between 0 and 2. Brier 1950, eq. 2."""
    truth_NxY = np.eye(p_NxY.shape[1])[label_N]
    return float(((p_NxY - truth_NxY) ** 2).sum(1).mean())


def macro_f1(counts_YxY: np.ndarray) -> float:
    """Mean over the classes of F1 = 2 TP / (2 TP + FP + FN), from a :func:`confusion` matrix.

    F1 is 0 for a class that is neither true nor predicted.
    """
    total_Y = counts_YxY.sum(0) + counts_YxY.sum(1)
    return float(np.mean(2 * np.diag(counts_YxY) / np.maximum(total_Y, 1)))


def confusion(label_N: np.ndarray, predicted_N: np.ndarray, classes: int) -> np.ndarray:
    """counts_YxY: rows are true classes, columns predicted ones."""
    cell_N = label_N * classes + predicted_N
    return np.bincount(cell_N, minlength=classes**2).reshape(classes, classes)


def log_softmax(logits_NxY: np.ndarray) -> np.ndarray:
    """log p_NxY in float64."""
    logits = np.asarray(logits_NxY, np.float64)
    log_p = logits - logits.max(1, keepdims=True)
    return log_p - np.log(np.exp(log_p).sum(1, keepdims=True))


def reliability_of(log_p_NxY: np.ndarray, label_N: np.ndarray) -> Bins:
    """:func:`reliability` of the most probable class."""
    return reliability(np.exp(log_p_NxY.max(1)), log_p_NxY.argmax(1) == label_N)


def figures(logits_NxY: np.ndarray, label_N: np.ndarray) -> tuple[dict[str, float], np.ndarray]:
    """({accuracy, cross-entropy in nats, ECE, Brier score, macro F1}, counts_YxY), in float64."""
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


def temperature(logits_NxY: np.ndarray, label_N: np.ndarray) -> float:
    r"""T in [1/50, 50] that minimises the mean cross-entropy of softmax(logits / T).

    Guo et al. 2017, eq. 9. Fit it on validation, never on the images that it is judged by. The
    predicted class stays; T > 1 means that the classifier was overconfident. The loss is convex in
    1/T, so the search over log T has one minimum. Where every prediction is right the minimum is at
    T = 0, which only means that there were too few images: then 1.
    """
    from scipy.optimize import minimize_scalar

    logits = np.asarray(logits_NxY, np.float64)
    if (logits.argmax(1) == label_N).all():
        return 1.0

    def loss(log_t: float) -> float:
        log_p = log_softmax(logits / np.exp(log_t))
        return -log_p[np.arange(len(label_N)), label_N].mean()

    bounds = (-np.log(50), np.log(50))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))
