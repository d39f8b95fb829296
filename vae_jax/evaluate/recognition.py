"""What the latent space knows: neighbours, retrieval, verification, rejection.

The score of two images is the cosine of their latent means; "unseen" classes are those of
``data.hold_out``, which no training image has.
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOURS = 60_000  # training images among which neighbours are searched, at most
PAIRS = 4_000  # images whose pairs are verified, at most: eight million pairs
RESAMPLES = 200  # of the classes, for the intervals of verification
QUERIES = 2_000  # images whose complete rankings are judged, at most


def _distances(gallery_NxD: np.ndarray, query_MxD: np.ndarray, chunk: int) -> Iterator[jax.Array]:
    """|q|² − |q − g|² of all pairs, ``chunk`` queries at a time: higher is nearer."""
    g = jnp.asarray(gallery_NxD, jnp.float32)
    g = jnp.column_stack([2 * g, -(g**2).sum(1)]).T
    for part in np.array_split(np.asarray(query_MxD, np.float32), -(-len(query_MxD) // chunk)):
        x = jnp.column_stack([part, jnp.ones(len(part))])
        yield jnp.dot(x, g, precision=jax.lax.Precision.HIGHEST)


def neighbours(gallery_NxD: np.ndarray, query_MxD: np.ndarray, k: int) -> np.ndarray:
    """index_MxK of the ``k`` nearest of the gallery (Euclidean), nearest first, or all of it."""
    k = min(k, len(gallery_NxD))
    parts = [jax.lax.top_k(near, k)[1] for near in _distances(gallery_NxD, query_MxD, 256)]
    return np.concatenate(parts)


def knn_accuracy(
    train_NxD: np.ndarray,
    train_label_N: np.ndarray,
    test_MxD: np.ndarray,
    test_label_M: np.ndarray,
    k: int = 5,
) -> float:
    """Share of test examples whose ``k`` nearest training latents (Euclidean) vote for their class.

    Evaluation passes :data:`NEIGHBOURS` training images at most, an even stride apart.
    """
    return voted(train_label_N[neighbours(train_NxD, test_MxD, k)], test_label_M)


def voted(label_MxK: np.ndarray, test_label_M: np.ndarray) -> float:
    """Share of queries whose neighbours' most frequent label (of several the smallest) is right."""
    votes = (label_MxK[:, :, None] == np.arange(label_MxK.max() + 1)).sum(1)
    return float((votes.argmax(1) == test_label_M).mean())


def mean_average_precision(relevant_MxK: np.ndarray) -> float:
    r"""Mean average precision of ranked lists; ``relevant`` where a rank has the query's class.

    .. math:: AP = \frac{\sum_{k=1}^{K} P(k)\, rel(k)}{\sum_{k=1}^{K} rel(k)}, \qquad
              P(k) = \tfrac1k \sum_{j \le k} rel(j)

    0 for a list without a relevant item. Of complete rankings (:func:`retrieval_map`) this is the
    usual mAP. Of the first K ranks it is mAP@K with the relevant items *within the list* as the
    denominator: it judges the order of the list, not how much of the class is in it.
    """
    rel = np.asarray(relevant_MxK, np.float64)
    precision = np.cumsum(rel, 1) / np.arange(1, rel.shape[1] + 1)
    return float(((precision * rel).sum(1) / np.maximum(rel.sum(1), 1)).mean())


def retrieval_map(
    gallery_NxD: np.ndarray, label_N: np.ndarray, query_MxD: np.ndarray, label_M: np.ndarray
) -> float:
    """The usual mAP: :func:`mean_average_precision` of rankings of the whole gallery.

    At most :data:`QUERIES` queries, an even stride apart.
    """
    every = -(-len(query_MxD) // QUERIES)
    queries = query_MxD[::every]
    labels = label_M[::every]
    total = 0.0
    start = 0
    for near in _distances(gallery_NxD, queries, 100):
        order = np.argsort(-np.asarray(near), axis=1, kind="stable")
        same = label_N[order] == labels[start : start + len(order), None]
        total += mean_average_precision(same) * len(order)
        start += len(order)
    return total / len(queries)


def verification(
    mu_NxD: np.ndarray, label_N: np.ndarray, resamples: int = RESAMPLES, seed: int = 0
) -> dict:
    """Same class or not, from the cosine of each pair of latent means.

    ``auroc``; ``eer``, the rate at which as many pairs of different classes pass as pairs of one
    class do not, interpolated between thresholds; ``false`` and ``true``, the rates along the ROC
    curve; ``same`` and ``different``, the numbers of pairs; ``auroc_interval`` and
    ``eer_interval``, 95 % percentile bootstraps over *classes*, the unit that varies from one set
    of unseen classes to the next: a class that is drawn n times weighs its pairs n-fold. They are
    None below three classes, and all rates are None where one kind of pair is missing.
    """
    from sklearn.metrics import auc, roc_curve

    unit = np.asarray(mu_NxD, np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    class_N = np.unique(label_N, return_inverse=True)[1]
    a_P, b_P = np.triu_indices(len(unit), 1)
    score_P = (unit @ unit.T)[a_P, b_P]
    same_P = class_N[a_P] == class_N[b_P]
    rates = dict.fromkeys(("auroc", "eer", "false", "true", "auroc_interval", "eer_interval"))
    rates |= {"same": int(same_P.sum()), "different": int((~same_P).sum())}
    if not rates["same"] or not rates["different"]:
        return rates
    false, true, _ = roc_curve(same_P, score_P)
    rates |= {"auroc": float(auc(false, true)), "eer": equal_error(false, true)}
    rates |= {"false": false, "true": true}
    if class_N.max() >= 2:
        pairs = (class_N[a_P], class_N[b_P])
        low, high = _class_bootstrap(score_P, pairs, resamples, seed)
        rates["auroc_interval"] = (float(low[0]), float(high[0]))
        rates["eer_interval"] = (float(low[1]), float(high[1]))
    return rates


def _class_bootstrap(
    score_P: np.ndarray, class_P: tuple[np.ndarray, np.ndarray], resamples: int, seed: int
) -> np.ndarray:
    """The 2.5 and 97.5 % quantiles of (AUROC, EER), 2x2; scores are put into 1,000 bins."""
    from sklearn.metrics import auc

    a_P, b_P = class_P
    same_P = a_P == b_P
    classes = max(a_P.max(), b_P.max()) + 1
    bins = 1000
    bin_P = np.searchsorted(np.quantile(score_P, np.linspace(0, 1, bins + 1)[1:-1]), score_P)
    rng = np.random.default_rng(seed)
    rates = []
    while len(rates) < resamples:
        weight_Y = np.bincount(rng.integers(0, classes, classes), minlength=classes)
        if np.count_nonzero(weight_Y) < 2:  # one class only has no pairs of different classes
            continue
        # A pair within a class is drawn with its class, one between classes with both.
        weight_P = np.where(same_P, weight_Y[a_P], weight_Y[a_P] * weight_Y[b_P])
        same = np.bincount(bin_P, weight_P * same_P, bins)[::-1]
        if same.sum() == 0:  # classes of one image each
            continue
        different = np.bincount(bin_P, weight_P * ~same_P, bins)[::-1]
        true = np.append(0, np.cumsum(same) / same.sum())
        false = np.append(0, np.cumsum(different) / different.sum())
        rates.append((auc(false, true), equal_error(false, true)))
    return np.quantile(rates, (0.025, 0.975), axis=0)


def equal_error(false: np.ndarray, true: np.ndarray) -> float:
    """The rate where as many pairs of different classes pass as pairs of one class do not."""
    return float(np.interp(0, false + true - 1, false))  # where false = 1 − true


def rejection(sure_N: np.ndarray, correct_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(share kept, accuracy of what is kept) as the least certain images are rejected one by one.

    ``correct`` is false for an image of a class that the classifier does not have, so to keep it is
    an error. Chow 1970 (error and reject), with unknown classes among the errors.
    """
    order = np.argsort(-np.asarray(sure_N), kind="stable")
    kept = np.arange(1, len(order) + 1)
    return kept / len(order), np.cumsum(np.asarray(correct_N, np.float64)[order]) / kept


def active_units(mu_NxD: np.ndarray, threshold: float = 0.01) -> int:
    """How many latent dimensions have Var_x(E[z|x]) > ``threshold`` (Burda et al. 2016, 5.1)."""
    return int((np.var(mu_NxD, axis=0) > threshold).sum())
