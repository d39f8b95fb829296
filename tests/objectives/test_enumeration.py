"""The objective that sums over all codes, against draws and against itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import config, models
from vae_jax.config import UserError
from vae_jax.distributions.categorical import Categorical
from vae_jax.objectives import OBJECTIVES

X = jax.random.uniform(jax.random.key(1), (4, 3, 3, 1)) > 0.5
BATCH = {"image": X.astype(jnp.float32)}


def built(posterior, prior, **options):
    c = config.default()
    c.latent = 6
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    c.posterior = config.call("posterior", posterior, **options)
    c.prior = config.call("prior", prior, **options)
    c.likelihood = config.call("likelihood", "bernoulli")
    m = models.build(c, shape=(3, 3, 1), levels=2, classes=0, binary=True)
    params = jax.jit(m.init)(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(9), len(leaves))
    moved = [a + 0.5 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return m, jax.tree.unflatten(tree, moved)


def test_draws_average_to_the_exact_bound_and_stay_below_the_evidence():
    m, params = built("categorical", "categorical", codes=3)
    keys = jax.random.split(jax.random.key(2), (20_000, 4))
    exact = jax.jit(lambda p: OBJECTIVES["enumerated"](m, p, BATCH, keys[0]))(params)
    draws = jax.jit(m.draw)(params, BATCH["image"], keys)
    np.testing.assert_allclose(exact.kl, draws.kl[0, :, 0], rtol=1e-4)
    error = draws.log_w.std(0) / np.sqrt(len(keys))
    assert (np.abs(draws.log_w.mean(0) - exact.elbo) < 4 * error).all()
    assert (exact.elbo < exact.extra["evidence"]).all()
    weights = np.exp(np.asarray(draws.log_w, np.float64))
    mean = weights.mean(0)
    error = weights.std(0) / np.sqrt(len(keys))
    assert (np.abs(mean - np.exp(exact.extra["evidence"])) < 4 * error).all()


def test_estimated_gradients_have_the_direction_of_the_exact_one_and_are_biased():
    """Of the decoder they are unbiased: it is linear in nothing, but its draws are exact."""
    m, params = built("categorical", "categorical", codes=3)
    keys = jax.random.split(jax.random.key(2), (500, 4))

    def exact(p):
        return OBJECTIVES["enumerated"](m, p, BATCH, keys[0]).loss.mean()

    def estimate(p, keys_B):
        return OBJECTIVES["elbo"](m, p, BATCH, keys_B).loss.mean()

    want = jax.jit(jax.grad(exact))(params)
    draws = jax.jit(jax.vmap(jax.grad(estimate), (None, 0)))(params, keys)

    def compare(part, layer):
        a = np.asarray(want[part][layer]["kernel"], np.float64).ravel()
        b = np.asarray(draws[part][layer]["kernel"], np.float64).reshape(len(keys), -1)
        error = b.std(0) / np.sqrt(len(keys))
        z = (b.mean(0) - a) / np.maximum(error, 1e-12)
        cosine = a @ b.mean(0) / np.linalg.norm(a) / np.linalg.norm(b.mean(0))
        return np.sqrt((z**2).mean()), cosine

    rms, cosine = compare("decoder", "out")
    assert rms < 1.5 and cosine > 0.99
    rms, cosine = compare("posterior", "logits")
    assert rms > 2, "straight-through is biased"
    assert cosine > 0.5


def test_the_evidence_of_a_grid_is_a_sum_and_bounds_its_code_length():
    m, params = built("fsq", "grid", grid=(3, 2))
    t = jax.jit(lambda p: OBJECTIVES["enumerated"](m, p, BATCH, jnp.zeros(4), bound="evidence"))(
        params
    )
    d = jax.jit(m.draw)(params, BATCH["image"], jax.random.split(jax.random.key(3), 4))
    np.testing.assert_allclose(t.elbo, d.log_w, rtol=1e-4)
    np.testing.assert_allclose(t.loss, -t.extra["evidence"])
    assert (t.elbo <= t.extra["evidence"]).all()


def test_too_many_codes_and_no_codes_are_one_line():
    m, params = built("categorical", "categorical", codes=6)
    with pytest.raises(UserError, match="bound=kl: want elbo or evidence"):
        OBJECTIVES["enumerated"](m, params, BATCH, None, bound="kl")
    c = config.default()
    m = models.build(c, shape=(3, 3, 1), levels=17, classes=0, binary=False)
    with pytest.raises(UserError, match="z is not a code; want"):
        OBJECTIVES["enumerated"](m, jax.jit(m.init)(jax.random.key(0)), BATCH, None)
    with pytest.raises(UserError, match="10000 codes; want at most 4096"):
        Categorical(jnp.zeros((4, 10))).enumerate()
