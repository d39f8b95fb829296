"""Whether dimensions of the code are the factors that made the images: the task ``factors``.

``z_NxD`` are codes and ``v_NxF`` the values of F factors, whole numbers from 0. All scores are
between 0 and 1, and higher is better.
"""

import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vae_jax import data
from vae_jax.data import sprites
from vae_jax.evaluate import probes
from vae_jax.evaluate.run import Forward, Result
from vae_jax.evaluate.subject import Subject
from vae_jax.report.metrics import Metric, register

IMAGES = 5_000  # that scores of one set of codes look at, drawn anew
VOTES = 400  # of the FactorVAE score's classifier, and as many to judge it
BATCH = 64  # images of a vote
BINS = 20  # of a dimension of the code, in a histogram
LABELS = 100  # of the probe
TREES = 10  # of a forest that predicts a factor
VALUES = 64  # most values of a dimension of the code that counts as discrete
NEIGHBOURS = 10  # of the estimate of a continuous dimension's information
STEPS = 200  # of L-BFGS, of a linear classifier without a penalty
ACTIVE = 0.05  # a dimension whose range is a smaller share of the largest one is not looked at
_TITLES = {
    "mig": ("MIG", "How much more the best dimension knows of a factor than the next one."),
    "sap": ("SAP", "How much better the best dimension predicts a factor than the next one."),
    "dci_disentanglement": ("DCI disentanglement", "Whether a dimension serves one factor."),
    "dci_completeness": ("… completeness", "Whether one dimension serves a factor."),
    "dci_informativeness": ("… informativeness", "Accuracy of the factors from the code."),
    "info_m": ("InfoMEC modularity", "Whether a dimension knows of one factor only."),
    "info_e": ("… explicitness", "Nats of the factors that a linear classifier of the code gains."),
    "info_c": ("… compactness", "Whether one dimension only knows of a factor."),
    "factor_vae_score": (
        "FactorVAE score",
        "Accuracy of the constant factor from the dimension that varies least.",
    ),
    "shape_accuracy": ("Shape by a probe", f"A linear classifier of the code, {LABELS} labels."),
}
for _name, (_title, _meaning) in _TITLES.items():
    register(Metric(_name, _title, "", "higher", _meaning, form=".3f"))


class Factors(NamedTuple):
    """The factors of a data set, the shape first, and how an image is made of them."""

    sizes: Sequence[int]  # F
    ordered: Sequence[bool]  # F
    draw: Callable[[np.random.Generator, int], np.ndarray]  # → v_NxF
    render: Callable[[np.ndarray, int], np.ndarray]  # v_NxF, the side in pixels → images


SETS = {
    sprites.NAME: Factors(sprites.SIZES, sprites.ORDERED, sprites.draw_factors, sprites.render),
}


def entropy(count: np.ndarray) -> float:
    """−Σ p log p of counts; nats."""
    p = count[count > 0] / count.sum()
    return -float((p * np.log(p)).sum())


def information(z_NxD: np.ndarray, v_NxF: np.ndarray, bins: int = BINS) -> np.ndarray:
    """I(z_d; v_f) in nats, DxF, each z_d in a histogram of ``bins`` bins of equal width."""
    matrix = np.zeros((z_NxD.shape[1], v_NxF.shape[1]))
    for d, z in enumerate(z_NxD.T):
        edges = np.linspace(z.min(), z.max(), bins + 1)
        place = np.digitize(z, edges[1:-1])
        for f, v in enumerate(v_NxF.T):
            joint = np.zeros((bins, v.max() + 1))
            np.add.at(joint, (place, v), 1)
            matrix[d, f] = entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)
    return matrix


def gap(score_DxF: np.ndarray) -> np.ndarray:
    """The largest score of each factor less the second largest, F."""
    ranked = np.sort(score_DxF, axis=0)
    return ranked[-1] - ranked[-2]


def mig(z_NxD: np.ndarray, v_NxF: np.ndarray) -> float:
    r"""The mutual information gap.

    .. math:: \tfrac1F \sum_f \tfrac{1}{H(v_f)} \big(I(z_{d_1}; v_f) - I(z_{d_2}; v_f)\big)

    d_1 and d_2 are the dimensions that know most of v_f. Chen et al. 2018 (arXiv:1802.04942),
    eq. 6.
    """
    entropies = np.array([entropy(np.bincount(v)) for v in v_NxF.T])
    return float((gap(information(z_NxD, v_NxF)) / entropies).mean())


def sap(z_NxD: np.ndarray, v_NxF: np.ndarray, ordered: Sequence[bool]) -> float:
    """The separated attribute predictability (Kumar et al. 2018, arXiv:1711.00848, section 3).

    The score of z_d and v_f is their squared correlation where v_f is a number, else the balanced
    accuracy of a linear classifier of z_d alone.
    """
    score = np.zeros((z_NxD.shape[1], v_NxF.shape[1]))
    for f, v in enumerate(v_NxF.T):
        for d, z in enumerate(z_NxD.T):
            score[d, f] = _squared_correlation(z, v) if ordered[f] else _accuracy_of_one(z, v)
    return float(gap(score).mean())


def _squared_correlation(z_N: np.ndarray, v_N: np.ndarray) -> float:
    if not z_N.std() or not v_N.std():
        return 0.0
    return float(np.corrcoef(z_N, v_N)[0, 1] ** 2)


def _accuracy_of_one(z_N: np.ndarray, v_N: np.ndarray) -> float:
    """Mean recall of a linear classifier of one number."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import balanced_accuracy_score

    scaled = (z_N / (z_N.std() or 1.0))[:, None]
    classifier = LogisticRegression(class_weight="balanced").fit(scaled, v_N)
    return float(balanced_accuracy_score(v_N, classifier.predict(scaled)))


def dci(z_NxD: np.ndarray, v_NxF: np.ndarray, seed: int = 0) -> tuple[float, float, float]:
    r"""(disentanglement, completeness, informativeness) of Eastwood & Williams 2018.

    R_df is the importance of z_d in a random forest that predicts v_f from one half of the
    examples. With rows and columns of R as distributions,

    .. math:: \mathrm{disentanglement} = \sum_d \rho_d \big(1 - H_F(R_{d\cdot})\big),
              \quad \mathrm{completeness} = \sum_f \rho_f \big(1 - H_D(R_{\cdot f})\big)

    H to the base of their length, ρ the share of all importance. Informativeness is the mean
    accuracy on the other half.
    """
    from sklearn.ensemble import RandomForestClassifier

    half = len(z_NxD) // 2
    importance = np.zeros((z_NxD.shape[1], v_NxF.shape[1]))
    accuracy = np.zeros(v_NxF.shape[1])
    for f, v in enumerate(v_NxF.T):
        forest = RandomForestClassifier(TREES, max_features=None, max_depth=12, random_state=seed)
        forest.fit(z_NxD[:half], v[:half])
        importance[:, f] = forest.feature_importances_
        accuracy[f] = (forest.predict(z_NxD[half:]) == v[half:]).mean()
    return _concentration(importance), _concentration(importance.T), float(accuracy.mean())


def _concentration(weight_AxB: np.ndarray) -> float:
    """Σ_a ρ_a (1 − H_B(row a)): 1 where every row has one entry, 0 where rows are uniform."""
    total = weight_AxB.sum()
    if not total:
        return 0.0
    value = 0.0
    for row in weight_AxB:
        if row.sum():
            share = row.sum() / total
            value += share * (1 - entropy(row) / np.log(len(row)))
    return float(value)


def normalised_information(z_NxD: np.ndarray, v_NxF: np.ndarray) -> np.ndarray:
    """I(z_d; v_f) / H(v_f), DxF.

    Of a dimension of at most :data:`VALUES` values it is that of the two histograms; of others the
    estimate from nearest neighbours of Ross 2014.
    """
    from sklearn.feature_selection import mutual_info_classif

    matrix = np.zeros((z_NxD.shape[1], v_NxF.shape[1]))
    for d, z in enumerate(z_NxD.T):
        values, place = np.unique(z, return_inverse=True)
        for f, v in enumerate(v_NxF.T):
            if len(values) <= VALUES:
                joint = np.zeros((len(values), v.max() + 1))
                np.add.at(joint, (place, v), 1)
                nats = entropy(joint.sum(0)) + entropy(joint.sum(1)) - entropy(joint)
            else:
                scaled = (z / z.std())[:, None]
                options = {"n_neighbors": NEIGHBOURS, "random_state": 0}
                nats = mutual_info_classif(scaled, v, discrete_features=False, **options)[0]
            matrix[d, f] = max(nats, 0.0) / entropy(np.bincount(v))
    return matrix


def explicitness(z_NxD: np.ndarray, v_NxF: np.ndarray) -> float:
    """The mean over factors of (H(v_f) − H_linear(v_f|z)) / H(v_f).

    H_linear is the cross-entropy of a logistic regression without a penalty, of the examples that
    it was fitted to, after :data:`STEPS` steps at most; discrete dimensions are one-hot.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    columns = []
    for z in z_NxD.T:
        values, place = np.unique(z, return_inverse=True)
        if len(values) <= VALUES:
            columns.append(np.eye(len(values))[place])
        else:
            columns.append((z - z.mean())[:, None] / z.std())
    x = np.concatenate(columns, axis=1)
    gains = []
    for v in v_NxF.T:
        classifier = LogisticRegression(C=np.inf, max_iter=STEPS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            classifier.fit(x, v)
        nats = log_loss(v, classifier.predict_proba(x), labels=classifier.classes_)
        gains.append(1 - nats / entropy(np.bincount(v)))
    return float(np.mean(gains))


def info_mec(z_NxD: np.ndarray, v_NxF: np.ndarray) -> tuple[float, float, float]:
    r"""(modularity, explicitness, compactness) by information (Hsu et al. 2023, arXiv:2305.18378).

    .. math:: \mathrm{InfoM} = \frac{\mathrm{mean}_d \big(\max_f R_{df} / \sum_f R_{df}\big) - 1/F}
              {1 - 1/F}, \qquad
              \mathrm{InfoC} = \frac{\mathrm{mean}_f \big(\max_d R_{df} / \sum_d R_{df}\big) - 1/D}
              {1 - 1/D}

    R is :func:`normalised_information`, over the D dimensions whose range is more than 5 % of the
    largest. Both are 0 where none knows anything, and InfoC is 1 where D is 1. InfoE is
    :func:`explicitness`, of all that move.
    """
    reach = np.ptp(z_NxD, axis=0)
    if not reach.any():
        return 0.0, 0.0, 0.0
    r = normalised_information(z_NxD[:, reach > ACTIVE * reach.max()], v_NxF)
    return _peak(r), explicitness(z_NxD[:, reach > 0], v_NxF), _peak(r.T)


def _peak(weight_AxB: np.ndarray) -> float:
    """The largest share in a row, 0 where rows are uniform and 1 where each has one entry."""
    rows, columns = weight_AxB.shape
    if columns == 1:
        return 1.0
    total = weight_AxB.sum(1)
    share = np.divide(weight_AxB.max(1), total, out=np.full(rows, 1 / columns), where=total > 0)
    return float((share.mean() - 1 / columns) / (1 - 1 / columns))


def factor_vae_score(
    encode: Callable[[np.ndarray], np.ndarray],
    draw: Callable[[np.random.Generator, int], np.ndarray],
    rng: np.random.Generator,
    *,
    votes: int,
    batch: int = BATCH,
) -> float:
    """The accuracy of a majority vote (Kim & Mnih 2018, arXiv:1802.05983, section 4).

    One factor is constant in a batch; the vote is the dimension whose variance, over its variance
    of all, is the smallest. A table from dimensions to factors is made of ``votes`` and judged on
    as many others. ``encode``: v_NxF → z_NxD. ``draw``: (rng, n) → v_NxF.
    """
    v = draw(rng, 2 * votes * batch)
    constant = rng.integers(0, v.shape[1], 2 * votes)
    v = v.reshape(2 * votes, batch, -1)
    rows = np.arange(2 * votes)
    v[rows, :, constant] = v[rows, 0, constant][:, None]
    z = encode(v.reshape(2 * votes * batch, -1)).reshape(2 * votes, batch, -1)
    spread = z.reshape(2 * votes * batch, -1).var(0)
    alive = spread > 1e-12 * spread.max()
    scaled = z[..., alive].var(1) / spread[alive]
    vote = scaled.argmin(1)
    table = np.zeros((scaled.shape[1], v.shape[-1]))
    np.add.at(table, (vote[:votes], constant[:votes]), 1)
    return float((table.argmax(1)[vote[votes:]] == constant[votes:]).mean())


def factor_scores(subject: Subject, look: Forward) -> Result:
    """``factors``: all scores of the latent means of images that are drawn for it."""
    name = subject.data.name
    if name not in SETS:
        reason = f"data.name={name} has no known factors; want {', '.join(SETS)}"
        return {}, dict.fromkeys(_TITLES, reason), {}
    known = SETS[name]
    side = subject.data.shape[0]
    rng = np.random.default_rng(subject.config.seed)

    def encode(v_NxF: np.ndarray) -> np.ndarray:
        return look(data.Split(known.render(v_NxF, side), None))["mu"]

    v = known.draw(rng, IMAGES)
    z = encode(v)
    if z.shape[1] < 2:
        return {}, dict.fromkeys(_TITLES, "a code of one dimension has no second best"), {}
    predict, _ = probes.fit("logistic", (z[:LABELS], v[:LABELS, 0]), None)
    shape_accuracy = (predict(z[LABELS:])[0] == v[LABELS:, 0]).mean()
    score = factor_vae_score(encode, known.draw, rng, votes=VOTES)
    values = (
        *(mig(z, v), sap(z, v, known.ordered)),
        *dci(z, v),
        *info_mec(z, v),
        *(score, float(shape_accuracy)),
    )
    return dict(zip(_TITLES, values, strict=True)), {}, {}
