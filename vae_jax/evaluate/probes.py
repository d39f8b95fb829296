"""Classifiers of scikit-learn on frozen features: what a code knows of the class."""

from collections.abc import Callable
from typing import Any

import numpy as np

Examples = tuple[np.ndarray, np.ndarray]  # features_NxF, label_N
Predict = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]


def _logistic(strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=500)


def _svm(strength: float) -> Any:
    from sklearn.svm import SVC

    return SVC(C=strength)  # a Gaussian kernel as wide as the features


def _knn(k: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(k, algorithm="brute", n_jobs=1)


# name -> (a classifier of one setting, the settings; the first where validation has no say)
PROBES = {
    "logistic": (_logistic, (1.0, 0.1, 0.01, 10.0)),
    "svm": (_svm, (10.0, 1.0, 100.0)),
    "knn": (_knn, (5, 3, 1)),
}
MOST = 20_000  # examples of an SVM, an even stride apart: its time grows with their square


def fit(name: str, train: Examples, validation: Examples | None) -> tuple[Predict, float]:
    """A classifier of :data:`PROBES`, fitted to (features_NxF, label_N), and its setting.

    The setting is the one that is right most often on validation, the first of equals; where
    validation is None or has no examples, the first of all. Features are divided by one number,
    their standard deviation over everything in ``train``: strengths then mean the same for pixels
    and for codes of any scale, and no dimension is favoured.
    """
    make, settings = PROBES[name]
    features, label = train
    if name == "svm":
        every = -(-len(label) // MOST)
        features = features[::every]
        label = label[::every]
    if name == "knn":
        settings = [min(k, len(label)) for k in settings]
    scale = features.std() or 1.0
    scored = validation is not None and len(validation[1]) > 0
    best = None
    for setting in settings if scored else settings[:1]:
        classifier = make(setting).fit(features / scale, label)
        score = 0.0
        if scored:
            score = (classifier.predict(validation[0] / scale) == validation[1]).mean()
        if best is None or score > best[0]:
            best = score, classifier, setting
    _, classifier, setting = best

    def predict(x_MxF: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        return _predict(classifier, x_MxF / scale)

    return predict, setting


def _predict(classifier: Any, x_MxF: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
    """(label_M, p_MxC over training's classes in rising order; None for an SVM, without p)."""
    if not hasattr(classifier, "predict_proba"):
        return classifier.predict(x_MxF), None
    p = classifier.predict_proba(x_MxF)
    return classifier.classes_[np.argmax(p, 1)], p
