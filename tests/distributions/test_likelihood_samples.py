"""Samples of likelihoods have their probabilities, and their means."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.distributions.images import KEY, all_images, make, random_out

CASES = [("bernoulli", 2, 1), ("categorical", 5, 1), ("discretized_logistic", 7, 1)]
CASES += [("discretized_mix_logistic", 7, 1), ("discretized_mix_logistic", 3, 3)]


@pytest.mark.parametrize("name, levels, c", CASES)
def test_samples_of_discrete_likelihoods_have_their_probabilities(name, levels, c):
    n = 20_000
    likelihood = make(name, levels)
    out = random_out(likelihood, 1, c, seed=3)
    x = likelihood.sample(KEY, jnp.broadcast_to(out, (n, *out.shape[1:])))
    assert x.shape == (n, 1, 1, c)
    k = np.rint(np.asarray(x).reshape(n, c) * (levels - 1)).astype(int)
    counts = np.bincount(k @ levels ** np.arange(c)[::-1], minlength=levels**c)
    p = np.exp(np.float64(likelihood.log_prob(out, all_images(levels, c))[:, 0]))
    often = p * n > 5
    counts = [*counts[often], counts[~often].sum() + 1e-9]
    expected = n * np.array([*p[often], p[~often].sum() + 1e-12])
    assert stats.chisquare(counts, expected * np.sum(counts) / expected.sum()).pvalue > 1e-3
    # The mean: exact for two, before rounding for logistics (half a level), chained over channels.
    exact = p @ all_images(levels, c).reshape(-1, c)
    slack = 1e-5 if name in ("bernoulli", "categorical") else 0.5 / (levels - 1)
    if c == 1:
        np.testing.assert_allclose(likelihood.mean(out)[0, 0, 0], exact, atol=slack)


def test_mean_of_a_colour_mixture_is_that_of_its_samples_inside_the_scale():
    likelihood = make("discretized_mix_logistic", 256, components=3)
    out = random_out(likelihood, 1, 3, 0.2)
    out[..., 12:21] = -4.0  # narrow: nothing beyond the ends
    x = np.float64(likelihood.sample(KEY, jnp.broadcast_to(out, (20_000, 1, 1, 30)))[:, 0, 0])
    error = x.std(0) / np.sqrt(len(x))
    assert (np.abs(x.mean(0) - likelihood.mean(out)[0, 0, 0]) < 4 * error + 1e-4).all()


@pytest.mark.parametrize("logit", [-200.0, -2.0, 0.0, 1e-5, 0.4, 30.0])
def test_samples_of_the_continuous_bernoulli_have_its_distribution(logit):
    likelihood = make("continuous_bernoulli")
    x = np.float64(likelihood.sample(KEY, jnp.full((20_000, 1, 1, 1), logit)).ravel())
    y = x if logit < 0 else 1 - x
    want = stats.truncexpon(abs(logit), scale=1 / abs(logit)) if abs(logit) > 0.1 else stats.uniform
    assert stats.kstest(y, want.cdf).pvalue > 1e-3


@pytest.mark.parametrize("name", ["gaussian", "gaussian_learned"])
def test_samples_of_gaussians_have_their_distribution(name):
    likelihood = make(name)
    out = np.full((20_000, 1, 1, likelihood.outputs(1)), -1.0, np.float32)
    sigma = np.exp((-4.0 if name == "gaussian" else -1.0) / 2)
    x = np.float64(likelihood.sample(KEY, out).ravel())
    assert stats.kstest(x, stats.norm(-1, sigma).cdf).pvalue > 1e-3
    np.testing.assert_array_equal(likelihood.mean(out), out[..., :1])
