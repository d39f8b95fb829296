"""Heads of low rank and of simple flows: what they begin as, and that a model learns with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import config, models, nets
from vae_jax.distributions import Normal
from vae_jax.objectives import OBJECTIVES

B, D = 6, 3
FIELDS = {"low_rank": {"rank": 2}, "planar": {"steps": 2}, "radial": {"steps": 2}}
NAMES = pytest.mark.parametrize("name", FIELDS)


def test_the_table_is_covered():
    assert set(nets.posteriors.POSTERIORS) == set(FIELDS)


@NAMES
def test_a_fresh_head_is_near_its_diagonal_gaussian(name):
    head = nets.POSTERIORS[name](D, **FIELDS[name])
    h = jax.random.normal(jax.random.key(0), (B, 4))
    q, _ = jax.jit(head.init_with_output)(jax.random.key(1), h)
    z = jax.random.normal(jax.random.key(2), (B, D))
    base = getattr(q, "base", q)
    gaussian = Normal(base.mu, base.logvar)
    tolerance = 0.5 if name == "low_rank" else 1e-4
    np.testing.assert_allclose(q.log_prob(z), gaussian.log_prob(z), atol=tolerance)
    np.testing.assert_allclose(q.mu, gaussian.mu, atol=1e-5)


@NAMES
def test_a_model_learns_every_number_of_its_head(name):
    """The gradients of DReG, which asks for a draw, its density and log q of a point."""
    c = config.default()
    c.latent = D
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    c.posterior = config.call("posterior", name, **FIELDS[name])
    c.likelihood = config.call("likelihood", "bernoulli")
    config.validate(c)
    model = models.build(c, shape=(4, 4, 1), levels=2, classes=0, binary=True)
    x = jax.random.bernoulli(jax.random.key(0), 0.4, (B, 4, 4, 1)).astype(jnp.float32)
    keys = jax.random.split(jax.random.key(1), B)

    @jax.jit
    @jax.grad
    def gradient(params):
        numbers = {"samples": 2, "estimator": "dreg"}
        return OBJECTIVES["iwae"](model, params, {"image": x}, keys, **numbers).loss.mean()

    params = jax.jit(model.init)(jax.random.key(2))
    noise = iter(jax.random.split(jax.random.key(3), 100))
    moved = jax.tree.map(lambda v: v + 0.2 * jax.random.normal(next(noise), v.shape), params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(moved)):
        assert np.isfinite(leaf).all(), path
        assert (np.asarray(leaf) != 0).any(), path
