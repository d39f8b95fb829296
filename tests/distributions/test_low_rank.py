"""The Gaussian of low rank against scipy's with the whole covariance, and its draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy import stats

from vae_jax import distributions as de
from vae_jax.distributions.low_rank import LowRankNormal

B, D = 3, 5
RNG = np.random.default_rng(0)


def low_rank(rank, scale=1.0, dtype=np.float32):
    """Random parameters, and the covariance of each example in float64."""
    mu = RNG.normal(size=(B, D)).astype(dtype)
    logvar = RNG.normal(size=(B, D)).astype(dtype)
    factor = (scale * RNG.normal(size=(B, D, rank))).astype(dtype)
    root = np.exp(0.5 * np.float64(logvar))[..., None] * np.float64(factor)
    covariance = root @ np.swapaxes(root, 1, 2)
    covariance += np.exp(np.float64(logvar))[..., None] * np.eye(D)
    return LowRankNormal(*map(jnp.asarray, (mu, logvar, factor))), covariance


@pytest.mark.parametrize(("rank", "scale"), [(1, 1.0), (3, 1.0), (3, 100.0), (7, 0.01)])
def test_the_density_is_scipys(rank, scale):
    q, covariance = low_rank(rank, scale)
    z = RNG.normal(size=(4, B, D)).astype(np.float32)
    got = jax.jit(q.log_prob)(z)
    for b in range(B):
        want = stats.multivariate_normal(q.mu[b], covariance[b]).logpdf(z[:, b])
        np.testing.assert_allclose(got[:, b], want, rtol=2e-5, atol=2e-4)
    np.testing.assert_allclose(q.log_prob(z[0]), got[0], rtol=1e-5)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_kl_is_that_of_the_whole_covariance(rank):
    q, covariance = low_rank(rank)
    p = de.Normal(*(jnp.asarray(RNG.normal(size=D), jnp.float32) for _ in range(2)))
    full = de.FullNormal(q.mu, jnp.asarray(np.linalg.cholesky(covariance), jnp.float32))
    np.testing.assert_allclose(de.kl(q, p), de.kl(full, p), rtol=1e-4)
    none = LowRankNormal(q.mu, q.logvar, jnp.zeros((B, D, rank)))
    np.testing.assert_allclose(de.kl(none, p), de.kl_normal(q.mu, q.logvar, *p), rtol=1e-6)


def test_draws_have_their_covariance_and_bring_their_density():
    q, covariance = low_rank(2)
    keys = jax.random.split(jax.random.key(1), (20_000, B))
    z, log_q = jax.jit(q.sample_and_log_prob)(keys)
    np.testing.assert_allclose(jax.jit(q.log_prob)(z), log_q, rtol=1e-4, atol=1e-4)
    for b in range(B):
        white = np.linalg.solve(np.linalg.cholesky(covariance[b]), (z[:, b] - q.mu[b]).T)
        squares = (white**2).sum(0)
        assert stats.kstest(squares, stats.chi2(D).cdf).pvalue > 1e-3
        np.testing.assert_allclose(white @ white.T / len(z), np.eye(D), atol=0.05)


def test_gradients_are_those_of_finite_differences():
    with jax.enable_x64(True):
        q, _ = low_rank(2, dtype=np.float64)
        p = de.Normal(jnp.zeros(D, jnp.float64), jnp.zeros(D, jnp.float64))
        keys = jax.random.split(jax.random.key(2), B)
        z = jax.random.normal(jax.random.key(3), (B, D), jnp.float64)

        def values(q, z):
            drawn, log_q = q.sample_and_log_prob(keys)
            return q.log_prob(z), drawn, log_q, de.kl(q, p)

        check_grads(jax.jit(values), (q, z), order=1, atol=1e-6, rtol=1e-6, eps=1e-6)
