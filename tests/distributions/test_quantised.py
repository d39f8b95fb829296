"""Finite scalar quantisation: its points, its codes, its gradient and its prior."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax import config, models
from vae_jax import distributions as de
from vae_jax.config import UserError
from vae_jax.distributions import quantised
from vae_jax.distributions.quantised import GridPrior, Quantised

GRID = (4, 3)  # an even and an odd number of values


def test_the_points_are_those_of_the_paper():
    """Two values to both sides of 0 for L = 4, without the upper one; −1, 0, 1 for L = 3."""
    h = jnp.stack([jnp.linspace(-8, 8, 2001)] * 2, -1)
    z = np.asarray(quantised.quantise(h, GRID))
    np.testing.assert_allclose(np.unique(z[:, 0]), [-1, -0.5, 0, 0.5])
    np.testing.assert_allclose(np.unique(z[:, 1]), [-1, 0, 1])
    np.testing.assert_allclose(quantised.quantise(jnp.zeros((1, 2)), GRID), [[0, 0]])


def test_the_gradient_is_that_of_the_bound():
    """radius (1 − tanh²) / ⌊L/2⌋ for odd L, whatever the rounding does."""
    h = jnp.array([[0.1, 0.4]])
    grad = jax.grad(lambda h: quantised.quantise(h, GRID)[0, 1])(h)
    want = 1.001 * (1 - np.tanh(0.4) ** 2)
    np.testing.assert_allclose(grad, [[0, want]], rtol=1e-5)


def test_codes_are_numbered_without_gaps():
    prior = GridPrior(jnp.zeros((4, 4)), GRID)  # two tokens
    z = prior.enumerate()
    assert z.shape == (144, 4)
    codes = np.asarray(quantised.token_index(z, GRID))
    assert codes.shape == (144, 2)
    assert len(np.unique(codes @ [12, 1])) == 144
    np.testing.assert_array_equal(np.bincount(codes[:, 0]), np.full(12, 12))
    np.testing.assert_allclose(quantised.from_index(quantised.to_index(z, GRID), GRID), z)


def test_the_prior_sums_to_one_and_its_draws_have_its_probabilities():
    prior = GridPrior(jnp.array([[0.5, -1.0, 0.2, 0.0], [1.0, 0.0, -2.0, 9.0]]), GRID)
    points = prior.enumerate()
    p = np.exp(np.asarray(prior.log_prob(points), np.float64))
    assert p.sum() == pytest.approx(1, abs=1e-6)
    z = jax.jit(prior.sample)(jax.random.split(jax.random.key(0), (4000, 5)))
    seen = np.bincount(np.asarray(quantised.token_index(z, GRID)).ravel(), minlength=12)
    order = np.asarray(quantised.token_index(points, GRID))[:, 0]
    assert stats.chisquare(seen[order], p / p.sum() * seen.sum()).pvalue > 1e-3


def test_the_divergence_is_the_code_length():
    """log 12 nats a token under the uniform prior; q is a point mass."""
    q = Quantised(quantised.quantise(jnp.array([[0.3, -0.9, 2.0, 0.0]]), GRID), GRID)
    np.testing.assert_allclose(de.kl(q, GridPrior(jnp.zeros((4, 4)), GRID)), 2 * np.log(12), 1e-6)
    points = GridPrior(jnp.zeros((4, 4)), GRID).enumerate()
    assert np.exp(q.log_prob(points[:, None])).sum() == 1


def test_a_model_of_grids_learns_its_prior_and_its_encoder():
    c = config.default()
    c.latent = 4
    c.posterior = config.call("posterior", "fsq", grid=GRID)
    c.prior = config.call("prior", "grid", grid=GRID, learn=True)
    m = models.build(c, shape=(4, 4, 1), levels=17, classes=0, binary=False)
    params = jax.jit(m.init)(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))
    keys = jax.random.split(jax.random.key(2), (3, 5))
    d = jax.jit(m.draw)(params, x, keys)
    np.testing.assert_array_equal(d.z[0], d.z[1])
    np.testing.assert_allclose(d.log_w, d.log_px - d.kl[..., 0], rtol=1e-5)
    grads = jax.jit(jax.grad(lambda p: -m.draw(p, x, keys).log_w.mean()))(params)
    for part in ("encoder", "posterior", "prior", "decoder"):
        assert max(np.abs(g).max() for g in jax.tree.leaves(grads[part])) > 0, part
    c.latent = 5
    m = models.build(c, shape=(4, 4, 1), levels=17, classes=0, binary=False)
    with pytest.raises(UserError, match="latent=5: want a multiple of the 2 dimensions"):
        jax.jit(m.init)(jax.random.key(0))
