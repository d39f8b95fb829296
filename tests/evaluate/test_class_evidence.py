"""Classifiers that read a trained model: probes of its code, and Bayes' rule on p(x|y)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.tiny import LABEL, PIXELS, SEED, SHAPE, log_evidence, m2
from vae_jax import config, data
from vae_jax.evaluate import generative, probes
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules as sharding

KEY = jax.random.key(SEED)
LEVELS = 256


def test_a_probe_takes_its_setting_from_validation():
    rng = np.random.default_rng(0)
    label = np.arange(40) % 2
    x = (label * 2.0 - 1)[:, None] + 0.1 * rng.normal(size=(40, 1))
    # Four labels are wrong: single neighbours are misled, five are not.
    noisy = np.where(np.arange(40) < 4, 1 - label, label)
    _, setting = probes.fit("knn", (x, noisy), (x, label))
    assert setting == 5
    _, setting = probes.fit("knn", (x, noisy), None)
    assert setting == 5
    predict, setting = probes.fit("knn", (x, noisy), (x[:4], noisy[:4]))
    assert setting in (1, 3)
    labels, probabilities = predict(x)
    np.testing.assert_allclose(probabilities.sum(1), 1)
    assert labels.shape == (40,)


def dense(kernel):
    return {"kernel": kernel, "bias": np.zeros(kernel.shape[1])}


def two_gaussians(w_P, centre_YxP, variance):
    """A model with p(x|y, z) = N(w z + c_y, variance) whose q is the exact p(z|x, y)."""
    logvar = float(np.log(variance))
    model, params = m2(
        likelihood=config.call("likelihood", "gaussian", logvar=logvar),
        encoder=config.call("encoder", "mlp", widths=(2 * PIXELS,), activation="relu"),
    )
    posterior_variance = 1 / (1 + w_P @ w_P / variance)
    gain = posterior_variance * w_P / variance
    # relu(x) - relu(-x) = x
    both = np.concatenate([np.eye(PIXELS), -np.eye(PIXELS)], 1)
    encoder = {"dense": dense(both), "label": {"kernel": -centre_YxP @ both}}
    decoder = {"dense": dense(np.array([[1.0, -1, 0, 0]])), "label": {"kernel": np.eye(4)[2:]}}
    head = {
        "kernel": np.stack([np.r_[gain, -gain], np.zeros(2 * PIXELS)], 1),
        "bias": np.array([0, np.log(posterior_variance)]),
    }
    params |= {
        "encoder": {"Layer_0": encoder},
        "posterior": {"Dense_0": head},
        "decoder": {"Layer_0": decoder, "out": dense(np.stack([w_P, -w_P, *centre_YxP]))},
    }
    return model, jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), params)


def evidence(c, model, params, split, k):
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:1])
    dataset = data.Dataset("", SHAPE, LEVELS, (), split, split, split)
    return generative.class_evidence(Subject(c, model, params, dataset, mesh), split, KEY, k=k)


def test_bayes_rule_on_the_model_is_that_of_the_two_gaussians():
    """log p(x|y) and the best decision are known; q is p(z|x, y), so that K = 1 is exact."""
    rng = np.random.default_rng(0)
    variance = 0.5
    w_P = rng.normal(size=PIXELS)
    centre_YxP = 0.5 + 0.3 * rng.normal(size=(2, PIXELS))
    model, params = two_gaussians(w_P, centre_YxP, variance)
    x = np.clip(rng.normal(size=(30, *SHAPE)) * 60 + 128, 0, 255).astype(np.uint8)
    label = np.tile(LABEL, 6)
    log_p = evidence(config.default(), model, params, data.Split(x, label), k=1)
    x_NxP = x.reshape(30, PIXELS) / (LEVELS - 1.0)
    covariance = np.outer(w_P, w_P) + variance * np.eye(PIXELS)
    densities = [stats.multivariate_normal(mean, covariance).logpdf(x_NxP) for mean in centre_YxP]
    exact = np.stack(densities, 1)
    np.testing.assert_allclose(log_p, exact, rtol=2e-5, atol=5e-4)
    best = exact.argmax(1)
    assert 0 < best.sum() < 30
    np.testing.assert_array_equal(log_p.argmax(1), best)
    most_likely = np.argsort(-np.logaddexp(*exact.T), kind="stable")[:27]
    accuracy = (best == label)[most_likely].mean()
    assert generative.kept_accuracy(log_p, best, 0.9) == 1.0
    assert generative.kept_accuracy(log_p, label, 0.9) == pytest.approx(accuracy)


def test_bayes_rule_on_a_grey_image_is_below_the_mean_evidence_of_its_binary_draws():
    """E log p(x'|y) over x' ~ Bernoulli(x), exactly: all 2^6 images, each by quadrature over z."""
    model, params = m2()
    # q = p, and a decoder that depends little on z: weights of small variance.
    params["posterior"] = jax.tree.map(jnp.zeros_like, params["posterior"])
    params["decoder"]["out"] = jax.tree.map(lambda leaf: 0.4 * leaf, params["decoder"]["out"])
    grey = np.random.default_rng(3).integers(0, 256, (4, *SHAPE)).astype(np.uint8)
    grey[:, 0, 0] = 255
    x_NxP = grey.reshape(4, PIXELS) / 255
    binary = np.array(list(np.ndindex(*[2] * PIXELS)))
    chance = np.where(binary, x_NxP[:, None], 1 - x_NxP[:, None]).prod(2)
    np.testing.assert_allclose(chance.sum(1), 1)
    mean_evidence = chance @ log_evidence(model, params, binary)
    grey_evidence = log_evidence(model, params, x_NxP)
    assert (grey_evidence < mean_evidence - 0.05).all()
    split = data.Split(grey, np.zeros(4, np.int32))
    c = config.default()
    c.data.binarize = "dynamic"
    log_p = evidence(c, model, params, split, k=4000)
    np.testing.assert_allclose(log_p, grey_evidence, atol=0.03)
    c.data.binarize = "threshold"
    other = evidence(c, model, params, split, k=4000)
    assert abs(other - grey_evidence).max() > 0.5, "one binary image has another evidence"
