"""Metrics of OOD detection against scikit-learn, with ties; the false-alarm rate of a threshold."""

import numpy as np
import pytest
from sklearn import metrics

from vae_jax.config import UserError
from vae_jax.evaluate import detection

RNG = np.random.default_rng


def by_sklearn(inside_N, outside_M):
    """The four numbers as OpenOOD's ``auc_and_fpr_recall`` takes them from scikit-learn."""
    score = np.concatenate([inside_N, outside_M])
    is_ood = np.repeat([0, 1], [len(inside_N), len(outside_M)])
    fpr, tpr, _ = metrics.roc_curve(is_ood, score, drop_intermediate=False)
    precision_in, recall_in, _ = metrics.precision_recall_curve(1 - is_ood, -score)
    precision_out, recall_out, _ = metrics.precision_recall_curve(is_ood, score)
    return {
        "auroc": metrics.auc(fpr, tpr),
        "aupr_in": metrics.auc(recall_in, precision_in),
        "aupr_out": metrics.auc(recall_out, precision_out),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
    }


@pytest.mark.parametrize("decimals", [0, 1, 8])
def test_the_four_numbers_are_scikit_learns(decimals):
    rng = RNG(decimals)
    inside = np.round(rng.normal(size=400), decimals)
    outside = np.round(rng.normal(1, 2, 150), decimals)
    want = by_sklearn(inside, outside)
    got = detection.detection(inside, outside)
    assert got == pytest.approx(want, abs=1e-12)
    swapped = detection.detection(outside, inside)
    assert swapped == pytest.approx(by_sklearn(outside, inside), abs=1e-12)


def test_written_out_values():
    """Scores 1 2 | 2 3: one OOD image above all, one tied with an inside one."""
    got = detection.detection(np.array([1.0, 2.0]), np.array([2.0, 3.0]))
    assert got["auroc"] == pytest.approx((2 + 1.5) / 4)
    # Precision 1 at recall 1/2, then 2/3 at recall 1.
    assert got["aupr_out"] == pytest.approx(0.5 + 0.5 * (1 + 2 / 3) / 2)
    assert got["fpr95"] == 0.5
    apart = detection.detection(np.zeros(3), np.ones(5))
    assert apart == {"auroc": 1.0, "aupr_in": 1.0, "aupr_out": 1.0, "fpr95": 0.0}
    same = detection.detection(np.zeros(3), np.zeros(5))
    assert same["auroc"] == 0.5 and same["fpr95"] == 1.0


def test_the_threshold_is_a_validation_score():
    validation = np.arange(19.0)
    assert detection.threshold(validation, 0.05) == 18.0  # k = 20 · 0.95 = 19 of 19
    assert detection.threshold(validation, 0.5) == 9.0  # k = 10
    shuffled = RNG(0).permutation(validation)
    assert detection.threshold(shuffled, 0.5) == 9.0


@pytest.mark.parametrize(
    ("rate", "message"),
    [
        (0.01, "false_alarm=0.01: 19 validation images bear 0.05 or more"),
        (0.0, "false_alarm=0.0: want a rate between 0 and 1"),
        (1.0, "false_alarm=1.0: want a rate between 0 and 1"),
    ],
)
def test_a_rate_that_validation_does_not_bear_is_one_line(rate, message):
    with pytest.raises(UserError, match=message):
        detection.threshold(np.arange(19.0), rate)


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_the_false_alarm_rate_holds_on_fresh_data(rate):
    """In 400 trials the mean rate lies between α − 1/(N + 1) and α."""
    rng = RNG(1)
    n = 199
    rates = []
    for _ in range(400):
        limit = detection.threshold(rng.gamma(2, size=n), rate)
        rates.append((rng.gamma(2, size=500) > limit).mean())
    error = np.std(rates) / np.sqrt(len(rates))
    assert rate - 1 / (n + 1) - 4 * error < np.mean(rates) < rate + 4 * error


def test_the_interval_of_a_rate_is_clopper_and_pearsons():
    """5 of 100: the ends are quantiles of beta distributions."""
    from scipy.stats import beta

    score = np.repeat([0.0, 2.0], [95, 5])
    rate, low, high = detection.alarm_rate(score, 1.0)
    assert rate == 0.05
    assert low == pytest.approx(beta.ppf(0.025, 5, 96))
    assert high == pytest.approx(beta.ppf(0.975, 6, 95))
