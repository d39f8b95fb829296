"""Wrapped normals on the Poincaré ball against quadrature, distances and the flat limit."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax import config, models
from vae_jax.config import UserError
from vae_jax.distributions import hyperbolic
from vae_jax.distributions.hyperbolic import WrappedNormal

MU = jnp.array([0.3, -0.2])
LOGVAR = jnp.array([-0.5, 0.4])


def distance(x, y, c):
    """arcosh(1 + 2c ‖x − y‖² / ((1 − c‖x‖²)(1 − c‖y‖²))) / √c, in float64."""
    x = np.asarray(x, np.float64)
    y = np.asarray(y, np.float64)
    below = (1 - c * (x**2).sum(-1)) * (1 - c * (y**2).sum(-1))
    return np.arccosh(1 + 2 * c * ((x - y) ** 2).sum(-1) / below) / np.sqrt(c)


@pytest.mark.parametrize("c", [0.5, 1.5])
def test_the_density_integrates_to_one(c):
    """Over the disk in polar coordinates around 0, with the ball's volume element."""
    radius, weight = np.polynomial.legendre.leggauss(400)
    share = (radius + 1) / 2
    reach = (1 - (1 - share) ** 3) / np.sqrt(c)  # denser near the edge
    slope = 3 * (1 - share) ** 2 / np.sqrt(c) * weight / 2
    angle = np.arange(200) * 2 * np.pi / 200
    z = reach[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], -1)
    log_p = jax.jit(WrappedNormal(MU, LOGVAR, c).log_prob)(jnp.asarray(z, jnp.float32))
    volume = (2 / (1 - c * reach**2)) ** 2 * reach * slope * 2 * np.pi / 200
    total = (np.exp(np.asarray(log_p, np.float64)) * volume[:, None]).sum()
    assert total == pytest.approx(1, abs=2e-3)


def test_draws_lie_at_the_length_of_their_noise():
    """d(μ, z)² / σ² is chi-square with D degrees of freedom where σ is one number."""
    p = WrappedNormal(MU, jnp.full(2, -0.7), 1.2)
    keys = jax.random.split(jax.random.key(0), (4000, 3))
    z, log_p = jax.jit(p.sample_and_log_prob)(keys)
    assert z.shape == (4000, 3, 2)
    square = distance(z.reshape(-1, 2), MU, 1.2) ** 2 / np.exp(-0.7)
    assert stats.kstest(square, stats.chi2(2).cdf).pvalue > 1e-3
    np.testing.assert_allclose(p.log_prob(z), log_p, rtol=1e-3, atol=1e-3)


def test_exp_and_log_are_inverse_and_addition_cancels():
    v = jax.random.normal(jax.random.key(1), (100, 5))
    z = hyperbolic.exp_origin(v, 0.8)
    np.testing.assert_allclose(hyperbolic.log_origin(z, 0.8), v, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(distance(z, np.zeros(5), 0.8), np.linalg.norm(v, axis=1), rtol=1e-4)
    x = hyperbolic.exp_origin(jax.random.normal(jax.random.key(2), (100, 5)), 0.8)
    back = hyperbolic.add(-x, hyperbolic.add(x, z, 0.8), 0.8)
    np.testing.assert_allclose(back, z, atol=1e-4)


def test_without_curvature_it_is_the_normal_of_half_the_scale():
    """c → 0: z = μ + v / 2, and a unit of volume is 2^D dz."""
    c = 1e-5
    z = jnp.array([[0.5, 0.1], [-0.4, -0.9]])
    flat = stats.norm.logpdf(z, MU, np.exp(0.5 * LOGVAR) / 2).sum(1) - 2 * np.log(2)
    np.testing.assert_allclose(WrappedNormal(MU, LOGVAR, c).log_prob(z), flat, atol=1e-3)


def test_the_logarithm_of_the_volume_has_no_jump():
    length = jnp.array([0.0, 1e-3, 0.0999, 0.1001, 1.0, 40.0])
    x = np.asarray(length[1:], np.float64)
    want = np.append(0, np.log(np.sinh(x) / x))
    np.testing.assert_allclose(hyperbolic.log_volume(length, 1.0), want, rtol=1e-4, atol=1e-6)
    slope = jax.vmap(jax.grad(lambda r: hyperbolic.log_volume(r, 1.0)))(length)
    np.testing.assert_allclose(slope[1:], 1 / np.tanh(x) - 1 / x, rtol=1e-3, atol=1e-5)


def built(**prior):
    c = config.default()
    c.latent = 3
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    c.posterior = config.call("posterior", "wrapped_normal", curvature=0.7)
    c.prior = config.call("prior", "ball", **prior)
    return models.build(c, shape=(4, 4, 1), levels=17, classes=0, binary=False)


def test_a_model_on_the_ball_has_finite_gradients_and_one_curvature():
    m = built(curvature=0.7)
    params = jax.jit(m.init)(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (5, 4, 4, 1))
    keys = jax.random.split(jax.random.key(2), (3, 5))

    def loss(params):
        d = m.draw(params, x, keys)
        return -d.log_w.mean(), d.z

    grads, z = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert (0.7 * (np.asarray(z) ** 2).sum(-1) < 1).all()
    with pytest.raises(UserError, match=r"lives on ball\(1.0\) z"):
        built()
