"""APGD and Square: closed forms of linear classifiers, FGSM, gradients that say nothing."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vae_jax.evaluate import attacks, robustness
from vae_jax.train import program

KEY = jax.random.key(0)
WEIGHT = np.random.default_rng(3).normal(size=16).astype(np.float32)


def linear(params: dict, x: jax.Array, key: jax.Array) -> jax.Array:
    """log p of two classes whose logits are ±w·(x − 1/2) / 2."""
    logit = (x.reshape(len(x), -1) - 0.5) @ WEIGHT
    return jax.nn.log_softmax(jnp.stack([logit / 2, -logit / 2], 1))


def masked(params: dict, x: jax.Array, key: jax.Array) -> jax.Array:
    """The same of an image in 64 grey levels: its gradient is 0 everywhere."""
    return linear(params, jnp.round(x * 63) / 63, key)


def images(n: int = 64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(x far from black and white, the label that the linear classifier gives, its |logit|)."""
    x = np.random.default_rng(1).uniform(0.35, 0.65, (n, 4, 4, 1)).astype(np.float32)
    logit = (x.reshape(n, -1) - 0.5) @ WEIGHT
    return x, (logit < 0).astype(int), np.abs(logit)


def test_a_linear_classifier_is_misled_exactly_where_its_margin_allows():
    r"""The least margin within the ball is |logit| − ε‖w‖₁."""
    x, label, margin = images()
    epsilon = 0.03
    expected = margin < epsilon * np.abs(WEIGHT).sum()
    assert 10 < expected.sum() < 54
    _, misled = attacks.apgd(linear)({}, x, label, KEY, epsilon)
    np.testing.assert_array_equal(misled, expected)
    found, misled = attacks.square(linear, 150)({}, x, label, KEY, epsilon)
    misled = np.asarray(misled)
    assert not (misled & ~expected).any() and misled.sum() > 0.8 * expected.sum()
    assert np.abs(np.asarray(found) - x).max() <= epsilon + 1e-6


def test_square_misleads_where_gradients_say_nothing():
    x, label, _ = images()
    curves = attacks.curves({}, [(x, label)], masked, KEY, (0.05,))
    accuracy = {name: hits[0] for name, (_, hits) in curves.items()}
    assert accuracy["square"] < 0.6 < accuracy["apgd"]
    assert accuracy["worst"] <= min(accuracy["square"], accuracy["apgd"])


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["joint", "bayes"])
def test_apgd_finds_what_fgsm_finds(reading: str, request: pytest.FixtureRequest):
    """On real digits, and on a generative classifier by Bayes' rule; within ε and [0, 1]."""
    if reading == "joint":
        _, s, params = request.getfixturevalue("trained")
        x = np.asarray(s.dataset.test.image[:60], np.float32) / 16
        label = s.dataset.test.label[:60]
        log_p = robustness.log_probabilities(s.model)
    else:
        model, params = tiny.m2()
        x = np.random.default_rng(0).uniform(size=(40, *tiny.SHAPE)).astype(np.float32)
        log_p = robustness.log_probabilities(model, 4, True)
        label = np.asarray(jnp.argmax(log_p(params, x, KEY), 1))

    @program.simple
    def sign(x: jax.Array) -> jax.Array:
        return jnp.sign(jax.grad(loss)(x))

    def loss(x: jax.Array) -> jax.Array:
        return -log_p(params, x, KEY)[jnp.arange(len(label)), label].sum()

    judge = program.simple(lambda x: jnp.argmax(log_p(params, x, KEY), 1))

    def correct(x: jax.Array) -> np.ndarray:
        return np.asarray(judge(x)) == label

    run = attacks.apgd(log_p, steps=10)
    more = 0
    for epsilon in (0.03, 0.1):
        fgsm = correct(jnp.clip(x + epsilon * sign(x), 0, 1))
        found, misled = map(np.asarray, run(params, x, label, KEY, epsilon))
        assert misled[~fgsm].all(), "what FGSM misleads"
        np.testing.assert_array_equal(correct(found), ~misled)
        assert np.abs(found - x).max() <= epsilon + 1e-6
        assert found.min() >= 0 and found.max() <= 1
        more += misled.sum() - (~fgsm).sum()
    assert more > 0 or reading == "bayes", "and more than that"


def test_the_schedules_are_the_papers():
    assert attacks.checkpoints(100) == [22, 41, 57, 70, 80, 87, 93, 99]
    sides = [attacks.side_of_squares(query, 10_000, 28, 28) for query in (0, 50, 200, 9_999)]
    assert sides == [6, 4, 3, 1]  # the root of 0.05, 0.025, 0.0125 and 1e-4 of 784, rounded
    assert attacks.side_of_squares(0, 10, 2, 2) == 1
