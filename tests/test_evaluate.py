"""Figures of evaluation against independent libraries and written-out values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss

from vae_jax import densities
from vae_jax.evaluate import classification, latent, recognition


def test_classification_figures_against_scikit_learn():
    rng = np.random.default_rng(0)
    logits, label = 3 * rng.normal(size=(500, 7)), rng.integers(0, 7, 500)
    figures, confusion = classification.figures(logits, label)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert figures["accuracy"] == pytest.approx(accuracy_score(label, p.argmax(1)))
    assert figures["cross_entropy_nats"] == pytest.approx(log_loss(label, p))
    np.testing.assert_array_equal(confusion, confusion_matrix(label, p.argmax(1)))


def test_cross_entropy_survives_extreme_logits():
    figures, _ = classification.figures(np.array([[1e4, 0.0], [0.0, -1e4]]), np.array([0, 1]))
    assert figures["cross_entropy_nats"] == pytest.approx(5e3)


def test_ece_written_out():
    # Bins of width 1/15: 0.95 in the last (two right of three), 0.5 in the eighth (one right of one).
    got = classification.expected_calibration_error(np.array([0.95, 0.95, 0.95, 0.5]), np.array([1, 1, 0, 1]))
    assert got == pytest.approx((3 * abs(2 / 3 - 0.95) + abs(1 - 0.5)) / 4)
    assert classification.expected_calibration_error(np.array([1.0]), np.array([1])) == 0


def test_ece_of_a_calibrated_classifier_is_within_sampling_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.1, 1, 100_000)
    correct = rng.uniform(size=100_000) < confidence
    # E|gap| of a bin is sqrt(2 p q / (pi n)); the sum over 15 bins is below 0.4 / sqrt(n / 15).
    assert classification.expected_calibration_error(confidence, correct) < 0.4 / np.sqrt(100_000 / 15)


def test_neighbours_against_a_double_loop():
    rng = np.random.default_rng(0)
    a, ya, b, yb = rng.normal(size=(60, 3)), rng.integers(0, 2, 60), rng.normal(size=(20, 3)), rng.integers(0, 2, 20)
    hits = 0
    for x, y in zip(b, yb, strict=True):
        votes = ya[np.argsort(((a - x) ** 2).sum(1))[:5]]
        hits += int(np.bincount(votes, minlength=2).argmax() == y)
    assert recognition.knn_accuracy(a, ya, b, yb) == pytest.approx(hits / 20)


def test_active_units():
    mu = np.stack([np.linspace(-1, 1, 50), np.full(50, 3.0), 0.05 * np.linspace(-1, 1, 50)], 1)
    assert recognition.active_units(mu) == 1


def test_the_rate_is_mutual_information_plus_aggregate_kl_and_the_closed_forms():
    """x ~ N(0, 1), q(z|x) = N(a x, s²): q(z) = N(0, a² + s²), I = ½ log(1 + a²/s²), both exact for N → ∞."""
    a, s, n = 0.8, 0.5, 4000
    x = np.random.default_rng(0).normal(size=(n, 1))
    q = densities.Normal(jnp.asarray(a * x, jnp.float32), jnp.full((n, 1), 2 * np.log(s), jnp.float32))
    prior = densities.Normal(jnp.zeros(1), jnp.zeros(1))
    got = latent.surgery(q, prior, jax.random.key(0))
    assert got["rate"] == pytest.approx(got["mutual_information"] + got["aggregate_kl"], abs=1e-6)
    v = a**2 + s**2
    assert got["mutual_information"] == pytest.approx(0.5 * np.log(v / s**2), abs=0.05)
    assert got["aggregate_kl"] == pytest.approx(0.5 * (v - 1 - np.log(v)), abs=0.05)
    assert latent.kl_per_dimension(q.mu, q.logvar)[0] == pytest.approx(got["rate"], abs=0.05)


def test_a_collapsed_code_carries_nothing():
    q = densities.Normal(jnp.zeros((200, 3)), jnp.zeros((200, 3)))
    prior = densities.Normal(jnp.zeros(3), jnp.zeros(3))
    got = latent.surgery(q, prior, jax.random.key(0), chunk=64)
    assert got == pytest.approx({"mutual_information": 0, "aggregate_kl": 0, "rate": 0}, abs=1e-5)


def test_mutual_information_gap():
    rng = np.random.default_rng(0)
    v = rng.integers(0, 4, (5000, 2))
    apart = np.concatenate([v, rng.normal(size=(5000, 1))], 1)  # one dimension for each factor
    assert latent.mutual_information_gap(apart, v) > 0.97
    twice = np.concatenate([v, v], 1)  # two dimensions know each factor equally well
    assert latent.mutual_information_gap(twice, v) == pytest.approx(0, abs=1e-9)
