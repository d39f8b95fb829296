"""Classifiers of scikit-learn on frozen features: what a code knows of the class, at the price of a few labels."""

import numpy as np


def _logistic(strength):
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=strength, max_iter=500)


def _svm(strength):
    from sklearn.svm import SVC

    return SVC(C=strength)  # a Gaussian kernel as wide as the features


def _knn(k):
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(k, algorithm="brute", n_jobs=1)


# name -> (a classifier of one setting, the settings; the first where validation has no say)
PROBES = {
    "logistic": (_logistic, (1.0, 0.1, 0.01, 10.0)),
    "svm": (_svm, (10.0, 1.0, 100.0)),
    "knn": (_knn, (5, 3, 1)),
}
MOST = 20_000  # examples that an SVM sees, an even stride apart: its time grows with their square


def fit(name, train, validation):
    """A classifier of :data:`PROBES`, fitted to (features_NxF, label_N), and its setting.

    The setting is the one that is right most often on validation, the first of equals; where validation is None or
    has no examples, the first of all. Features are divided by one number, their standard deviation over everything
    in ``train``: strengths then mean the same for pixels and for codes of any scale, and no dimension is favoured.
    """
    make, settings = PROBES[name]
    features, label = train
    if name == "svm":
        every = -(-len(label) // MOST)
        features, label = features[::every], label[::every]
    scale = features.std() or 1.0
    judged = validation is not None and len(validation[1]) > 0
    best = None
    for setting in settings if judged else settings[:1]:
        setting = min(setting, len(label)) if name == "knn" else setting
        found = make(setting).fit(features / scale, label)
        score = (found.predict(validation[0] / scale) == validation[1]).mean() if judged else 0.0
        if best is None or score > best[0]:
            best = score, found, setting
    _, found, setting = best
    return lambda x: _predict(found, x / scale), setting


def _predict(classifier, x_MxF):
    """(label_M, p_MxC over the classes that were in training in rising order; None for an SVM, which has no p)."""
    if not hasattr(classifier, "predict_proba"):
        return classifier.predict(x_MxF), None
    p = classifier.predict_proba(x_MxF)
    return classifier.classes_[np.argmax(p, 1)], p
