"""Whether clusters of the codes are the classes: the task ``clusters`` of eval.py."""

from typing import Any

import numpy as np

from vae_jax import data
from vae_jax.evaluate.run import Forward, Result
from vae_jax.evaluate.subject import Subject
from vae_jax.objectives.vade import log_assignments
from vae_jax.report.metrics import Metric, register

MOST = 20_000  # training images that k-means is fitted to, an even stride apart
STARTS = 10  # of k-means; the one with the smallest sum of squares is kept
FULL = 64  # most dimensions of codes whose mixture has full covariances, not diagonal ones
RIDGE = 1e-4  # of the codes' mean variance, added to each of a mixture: a dead dimension has one
KEYS = ("cluster_accuracy", "cluster_nmi", "cluster_ari")
KINDS = {  # what comes before the names of KEYS → a title, and whose clusters they are
    "": ("Clusters of k-means", "k-means on the codes of training, as many clusters as classes"),
    "mixture_": (
        "Clusters of a mixture",
        "A mixture of Gaussians, fitted to the codes of training",
    ),
    "prior_": (
        "Clusters of the prior",
        "The component with the largest p(c|z) of the mixture p(z)",
    ),
}
_ROWS = (
    ("", "%", "accuracy on the test set under the best one-to-one assignment.", ""),
    ("… mutual information", "", "of clusters and classes, over their mean entropy.", ".3f"),
    ("… adjusted Rand index", "", "pairs on which both agree: 0 by chance, 1 at best.", ".3f"),
)
for _kind, (_first, _whose) in KINDS.items():
    for _key, (_title, _unit, _meaning, _form) in zip(KEYS, _ROWS, strict=True):
        _words = (_title or _first, _unit, "higher", f"{_whose}; {_meaning}")
        register(Metric(_kind + _key, *_words, form=_form))


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
    """``clusters``: clusters of the latent means of training images, judged on the test set.

    By k-means, by a mixture of Gaussians, and by the prior where it is a mixture of as many
    components as there are classes. No label is used but to judge.
    """
    test = subject.data.test
    if test.label is None:
        return {}, dict.fromkeys(KEYS, "the data has no labels"), {}
    few = data.some(subject.data.train, MOST)
    count = len(subject.data.classes)
    if len(few.image) < count:
        reason = f"{len(few.image)} training images are fewer than the {count} classes"
        return {}, dict.fromkeys(KEYS, reason), {}
    label = np.asarray(test.label)
    z = look(test)["mu"]
    metrics = {}
    for kind, clusters in fitted(look(few)["mu"], count, subject.config.seed).items():
        metrics |= named(kind, agreement(clusters.predict(z), label))
    if has_clusters(subject, count):
        prior = subject.model.prior(subject.params)
        own = np.asarray(log_assignments(prior, z)).argmax(-1)
        metrics |= named("prior_", agreement(own, label))
    return metrics, {}, {}


def has_clusters(subject: Subject, count: int) -> bool:
    """Whether p(z) of the code is a mixture of so many components that no label has shaped."""
    c = subject.config
    mixture = c.prior.name == "mixture" and c.prior.components == count
    return mixture and not subject.model.spec.auxiliary


def fitted(z_NxD: np.ndarray, count: int, seed: int) -> dict[str, Any]:
    """{kind: clusters of scikit-learn} of these codes."""
    from sklearn.cluster import KMeans
    from sklearn.mixture import GaussianMixture

    kmeans = KMeans(count, n_init=STARTS, random_state=seed).fit(z_NxD)
    ridge = RIDGE * z_NxD.var(0).mean() + 1e-12
    covariance = "full" if z_NxD.shape[1] <= FULL else "diag"
    mixture = GaussianMixture(count, covariance_type=covariance, reg_covar=ridge, random_state=seed)
    mixture.set_params(means_init=kmeans.cluster_centers_)
    return {"": kmeans, "mixture_": mixture.fit(z_NxD)}


def named(kind: str, metrics: dict[str, float]) -> dict[str, float]:
    """The metrics with ``kind`` before their names."""
    return {kind + key: value for key, value in metrics.items()}
