"""What the latent space knows: nearest neighbours, retrieval, verification, classes it never saw.

A score of images against images is the cosine of their latent means; "unseen" classes are those of
``data.hold_out``, which training never met.
"""

import jax
import jax.numpy as jnp
import numpy as np

NEIGHBOURS = 60_000  # training images that neighbours are looked for among, at most
PAIRS = 2_000  # images whose pairs are verified, at most: two million pairs


def neighbours(gallery_NxD, query_MxD, k):
    """index_MxK of the ``k`` nearest of the gallery (Euclidean), nearest first; fewer where it is smaller."""
    g = jnp.asarray(gallery_NxD, jnp.float32)
    g = jnp.column_stack([2 * g, -(g**2).sum(1)]).T  # its product with (x, 1) is |x|² − |x − g|²

    def near(x):
        x = jnp.column_stack([x, jnp.ones(len(x))])
        return jax.lax.top_k(
            jnp.dot(x, g, precision=jax.lax.Precision.HIGHEST), min(k, g.shape[1])
        )[1]

    parts = np.array_split(np.asarray(query_MxD, np.float32), -(-len(query_MxD) // 256))
    return np.concatenate([np.asarray(near(part)) for part in parts])


def knn_accuracy(train_NxD, train_label_N, test_MxD, test_label_M, k=5):
    """Share of test examples whose ``k`` nearest training latents (Euclidean) vote for their class.

    Evaluation gives it :data:`NEIGHBOURS` training images at most, an even stride apart.
    """
    return voted(train_label_N[neighbours(train_NxD, test_MxD, k)], test_label_M)


def voted(label_MxK, test_label_M):
    """Share of queries whose neighbours' most frequent label, the smallest of several, is theirs."""
    votes = (label_MxK[:, :, None] == np.arange(label_MxK.max() + 1)).sum(1)
    return float((votes.argmax(1) == test_label_M).mean())


def mean_average_precision(relevant_MxK):
    r"""mAP@K of ranked lists, ``relevant`` true where the item at a rank is of the query's class.

    .. math:: AP@K = \frac{\sum_{k=1}^{K} P(k)\, rel(k)}{\sum_{k=1}^{K} rel(k)}, \qquad
              P(k) = \tfrac1k \sum_{j \le k} rel(j)

    0 for a list without a relevant item. The denominator is what was found within K: a class has thousands of
    members, and the number of all of them would leave no list near 1.
    """
    rel = np.asarray(relevant_MxK, np.float64)
    precision = np.cumsum(rel, 1) / np.arange(1, rel.shape[1] + 1)
    return float(((precision * rel).sum(1) / np.maximum(rel.sum(1), 1)).mean())


def verification(mu_NxD, label_N):
    """{'auroc', 'eer', 'false', 'true'}: same class or not, from the cosine of each pair of latent means.

    The equal error rate is where as many pairs of different classes pass as pairs of one class do not; between
    two thresholds it is interpolated. ``false`` and ``true`` are the rates along the ROC curve.
    """
    from sklearn.metrics import auc, roc_curve

    unit = np.asarray(mu_NxD, np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    a, b = np.triu_indices(len(unit), 1)
    false, true, _ = roc_curve(label_N[a] == label_N[b], (unit @ unit.T)[a, b])
    eer = float(np.interp(0, false + true - 1, false))  # false = 1 − true
    return {"auroc": float(auc(false, true)), "eer": eer, "false": false, "true": true}


def rejection(sure_N, right_N):
    """(share kept, accuracy of what is kept) as the least sure images are rejected one by one; the sure come first.

    ``right`` is false for an image of a class that the classifier does not have, so to keep it is an error. Chow
    1970 (error and reject), with what is unknown among the errors.
    """
    order = np.argsort(-np.asarray(sure_N), kind="stable")
    kept = np.arange(1, len(order) + 1)
    return kept / len(order), np.cumsum(np.asarray(right_N, np.float64)[order]) / kept


def active_units(mu_NxD, threshold=0.01):
    """How many latent dimensions have Var_x(E[z|x]) > ``threshold`` (Burda et al. 2016, section 5.1)."""
    return int((np.var(mu_NxD, axis=0) > threshold).sum())
