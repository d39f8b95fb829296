"""Whether clusters of the codes are the classes: the task ``clusters`` of eval.py."""

import numpy as np

from vae_jax import data
from vae_jax.evaluate.run import Forward, Result
from vae_jax.evaluate.subject import Subject
from vae_jax.report.metrics import Metric, register

MOST = 20_000  # training images that k-means is fitted to, an even stride apart
STARTS = 10  # of k-means; the one with the smallest sum of squares is kept
KEYS = ("cluster_accuracy", "cluster_nmi", "cluster_ari")
_MEANINGS = (
    Metric(
        "cluster_accuracy",
        "Clustering accuracy",
        "%",
        "higher",
        "k-means on the codes of training, as many clusters as classes, best one-to-one "
        "assignment on the test set.",
    ),
    Metric(
        "cluster_nmi",
        "… mutual information",
        "",
        "higher",
        "Of clusters and classes, over the mean of their entropies; 0 to 1.",
        form=".3f",
    ),
    Metric(
        "cluster_ari",
        "… adjusted Rand index",
        "",
        "higher",
        "Share of pairs on which clusters and classes agree, 0 by chance, 1 at best.",
        form=".3f",
    ),
)
for _metric in _MEANINGS:
    register(_metric)


def assignment_accuracy(cluster_N: np.ndarray, label_N: np.ndarray) -> float:
    """Share of examples whose cluster is their class under the best one-to-one assignment."""
    from scipy.optimize import linear_sum_assignment

    size = max(cluster_N.max(), label_N.max()) + 1
    count = np.bincount(cluster_N * size + label_N, minlength=size * size).reshape(size, size)
    rows, columns = linear_sum_assignment(count, maximize=True)
    return float(count[rows, columns].sum() / len(label_N))


def agreement(cluster_N: np.ndarray, label_N: np.ndarray) -> dict[str, float]:
    """{metric: value} of a clustering: accuracy, NMI and ARI."""
    from sklearn import metrics

    values = (
        assignment_accuracy(cluster_N, label_N),
        metrics.normalized_mutual_info_score(label_N, cluster_N),
        metrics.adjusted_rand_score(label_N, cluster_N),
    )
    return dict(zip(KEYS, values, strict=True))


def clustering(subject: Subject, look: Forward) -> Result:
    """``clusters``: k-means of the latent means of training images, judged on the test set.

    No label is used but to judge.
    """
    from sklearn.cluster import KMeans

    test = subject.data.test
    if test.label is None:
        return {}, dict.fromkeys(KEYS, "the data has no labels"), {}
    few = data.some(subject.data.train, MOST)
    count = len(subject.data.classes)
    if len(few.image) < count:
        reason = f"{len(few.image)} training images are fewer than the {count} classes"
        return {}, dict.fromkeys(KEYS, reason), {}
    seed = subject.config.seed
    kmeans = KMeans(count, n_init=STARTS, random_state=seed).fit(look(few)["mu"])
    cluster = kmeans.predict(look(test)["mu"])
    return agreement(cluster, np.asarray(test.label)), {}, {}
