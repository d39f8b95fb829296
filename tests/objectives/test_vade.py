"""VaDE's bound against quadrature over z and a written-out sum over clusters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.objectives.built import built, images
from vae_jax import config, models
from vae_jax import distributions as de
from vae_jax.config import UserError
from vae_jax.distributions import MixtureOfNormals
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.vade import log_assignments

vade = OBJECTIVES["vade"]
SHAPE = (3, 3, 1)
X = (jax.random.uniform(jax.random.key(1), (4, *SHAPE)) > 0.5).astype(jnp.float32)
KEYS = jax.random.split(jax.random.key(2), 4)
PRIOR = {
    "logits": jnp.array([0.5, -0.5, 0.0]),
    "mu": jnp.array([[-1.0], [0.5], [2.0]]),
    "logvar": jnp.array([[0.2], [-0.7], [-1.5]]),
}


def clustered():
    """A model of one latent dimension and three clusters, and its parameters."""
    c = config.default()
    c.latent = 1
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    c.prior = config.call("prior", "mixture", components=3)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "vade")
    m = models.build(c, shape=SHAPE, levels=2, classes=0, binary=True)
    return m, jax.jit(m.init)(jax.random.key(0)) | {"prior": PRIOR}


def scipy_prior():
    """(π_3, the three components)."""
    pi = np.exp(np.asarray(PRIOR["logits"], np.float64))
    mu = np.asarray(PRIOR["mu"], np.float64)[:, 0]
    scale = np.exp(0.5 * np.asarray(PRIOR["logvar"], np.float64)[:, 0])
    return pi / pi.sum(), [stats.norm(*pair) for pair in zip(mu, scale, strict=True)]


def assignments_by_hand(z_N):
    """p(c|z), Nx3, by Bayes' rule."""
    pi, parts = scipy_prior()
    joint = np.stack([p * part.pdf(z_N) for p, part in zip(pi, parts, strict=True)], -1)
    return joint / joint.sum(-1, keepdims=True)


def test_assignments_are_bayes_rule():
    z = jnp.linspace(-4, 4, 9)[:, None]
    got = np.exp(log_assignments(MixtureOfNormals(**PRIOR), z))
    np.testing.assert_allclose(got, assignments_by_hand(np.asarray(z)[:, 0]), rtol=1e-4)


@pytest.mark.parametrize("samples", [1, 3])
def test_the_bound_is_the_sum_over_clusters_and_the_integral_over_z(samples):
    """KL(q(z) q(c) ‖ p(z, c)) = Σ_c γ_c ∫ q(z) log (q(z) γ_c / (π_c p(z|c))) dz."""
    m, params = clustered()
    t = jax.jit(lambda p: vade(m, p, {"image": X}, KEYS, samples=samples))(params)
    q = m.encode(params, X)
    z_KxB = q.sample(de.split_keys(KEYS, samples))
    draws = jax.jit(m.draw)(params, X, de.split_keys(KEYS, samples))
    np.testing.assert_allclose(t.log_px, draws.log_px.mean(0), rtol=1e-5)
    pi, parts = scipy_prior()
    below = []
    for b in range(4):
        gamma = assignments_by_hand(np.asarray(z_KxB, np.float64)[:, b, 0]).mean(0)
        scale = float(jnp.exp(0.5 * q.logvar[b, 0]))
        own = stats.norm(float(q.mu[b, 0]), scale)
        grid = own.mean() + scale * np.linspace(-9, 9, 20_001)
        weight = own.pdf(grid) * (grid[1] - grid[0])
        kl = 0.0
        density = 0.0
        for g, p, part in zip(gamma, pi, parts, strict=True):
            ratio = own.logpdf(grid) + np.log(g) - np.log(p) - part.logpdf(grid)
            kl += g * (weight * ratio).sum()
            density = density + p * part.pdf(grid)
        assert t.kl[b] == pytest.approx(kl, rel=1e-3)
        below.append((weight * (own.logpdf(grid) - np.log(density))).sum())
    assert (np.asarray(t.kl) > np.array(below)).all(), "it is below the bound of the mixture"
    np.testing.assert_allclose(t.elbo, t.log_px - t.kl, rtol=1e-5)
    np.testing.assert_allclose(t.loss, -t.elbo, rtol=1e-5)


def test_every_part_learns():
    m, params = clustered()
    grads = jax.jit(jax.grad(lambda p: vade(m, p, {"image": X}, KEYS).loss.mean()))(params)
    for part in ("encoder", "posterior", "decoder", "prior"):
        for leaf in jax.tree.leaves(grads[part]):
            assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0, part


@pytest.mark.parametrize("pair", [("gaussian", "normal"), ("full", "mixture")])
def test_without_clusters_is_one_line(pair):
    m = built(*pair)
    params = jax.jit(m.init)(jax.random.key(0))
    with pytest.raises(UserError, match=r"want posterior\.name=gaussian and prior\.name=mixture"):
        vade(m, params, images(), KEYS[:3])
