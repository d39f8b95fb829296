"""Densities on the sphere against quadrature, scipy's Bessel functions, closed forms and finite
differences.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, special, stats

from vae_jax import config, models
from vae_jax import distributions as de
from vae_jax.config import UserError
from vae_jax.distributions import sphere

KAPPA = np.array([1e-3, 0.1, 1.0, 5.0, 20.0, 100.0, 1000.0])
DIMENSIONS = pytest.mark.parametrize("d", [3, 4, 11, 41])


def cosine_density(d, kappa):
    """The unnormalised density of w = μᵀz and its integral, in float64."""

    def density(w):
        return np.exp(kappa * (w - 1)) * (1 - w**2) ** ((d - 3) / 2)

    return density, integrate.quad(density, -1, 1, points=[1 - min(1.9, 20 / kappa)])[0]


def mean_cosine(d, kappa):
    return special.ive(d / 2, kappa) / special.ive(d / 2 - 1, kappa)


@DIMENSIONS
def test_bessel_functions_are_scipys(d):
    v = d / 2 - 1
    value = jax.jit(lambda k: sphere.log_scaled_bessel(v, k))(jnp.float32(KAPPA))
    np.testing.assert_allclose(value, np.log(special.ive(v, KAPPA)), rtol=1e-5, atol=1e-5)
    ratio = jax.jit(lambda k: sphere.bessel_ratios(v, k, 1)[0])(jnp.float32(KAPPA))
    np.testing.assert_allclose(ratio, mean_cosine(d, KAPPA), rtol=1e-6)
    slope = jax.jit(jax.vmap(jax.grad(lambda k: sphere.log_scaled_bessel(v, k))))(
        jnp.float32(KAPPA)
    )
    np.testing.assert_allclose(slope, v / KAPPA + mean_cosine(d, KAPPA) - 1, rtol=1e-4, atol=1e-6)


@DIMENSIONS
@pytest.mark.parametrize("kappa", [0.1, 3.0, 50.0])
def test_the_density_integrates_to_one(d, kappa):
    """∫ vMF over the sphere is the area of S^{D-2} times an integral over the cosine."""
    mu = np.zeros(d, np.float32)
    mu[0] = 1
    q = de.VonMisesFisher(jnp.asarray(mu), jnp.float32(kappa))

    nodes, weights = np.polynomial.legendre.leggauss(200)
    z = np.zeros((200, d), np.float32)
    z[:, 0] = nodes
    z[:, 1] = np.sqrt(1 - nodes**2)
    density = np.exp(np.asarray(jax.jit(q.log_prob)(z), np.float64)) * (1 - nodes**2) ** (
        (d - 3) / 2
    )
    assert abs(weights @ density * np.exp(sphere.log_area(d - 1)) - 1) < 1e-3


@pytest.mark.parametrize("kappa", [0.5, 4.0, 40.0])
def test_on_the_ordinary_sphere_the_density_is_its_closed_form(kappa):
    """D = 3: log C = log κ − log(4π sinh κ)."""
    mu = jnp.array([0.0, 0.6, 0.8])
    z = jnp.array([[1.0, 0.0, 0.0], [0.0, 0.6, 0.8], [0.0, -0.6, -0.8]])
    want = np.log(kappa) - np.log(4 * np.pi * np.sinh(kappa)) + kappa * np.array([0, 1, -1])
    np.testing.assert_allclose(
        jax.jit(de.VonMisesFisher(mu, jnp.float32(kappa)).log_prob)(z), want, rtol=1e-5, atol=1e-5
    )
    theirs = stats.vonmises_fisher(np.asarray(mu, np.float64) / np.linalg.norm(mu), kappa).logpdf(
        np.asarray(z, float)
    )
    np.testing.assert_allclose(want, theirs, rtol=1e-5)


@DIMENSIONS
@pytest.mark.parametrize("kappa", [0.1, 3.0, 50.0])
def test_the_kl_is_the_integral(d, kappa):
    density, norm = cosine_density(d, kappa)
    uniform, uniform_norm = cosine_density(d, 1e-12)

    def integrand(w):
        p = density(w) / norm
        return p * (np.log(p) - np.log(uniform(w) / uniform_norm)) if p > 1e-300 else 0.0

    want = integrate.quad(integrand, -1, 1, points=[1 - min(1.9, 20 / kappa)])[0]
    mu = jnp.zeros((2, d)).at[:, 0].set(1.0)
    q, p = de.VonMisesFisher(mu, jnp.full(2, kappa)), de.UniformSphere(mu[0])
    np.testing.assert_allclose(jax.jit(de.kl)(q, p), want, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(("d", "kappa"), [(3, 2.0), (4, 0.5), (11, 30.0), (11, 300.0)])
def test_samples_have_the_density_and_their_gradient_is_that_of_its_mean(d, kappa):
    """Kolmogorov-Smirnov of the cosine; E[dw/dκ] = dA/dκ = 1 − A² − (D − 1) A / κ within 4 standard
    errors.
    """
    n = 20_000
    keys = jax.random.split(jax.random.key(0), n)
    mu = jnp.full(d, d**-0.5)

    def cosine(kappa):
        z = de.VonMisesFisher(mu, kappa).sample(keys)
        return z @ mu, jnp.sum(z**2, axis=-1)

    (w, square), (slope, _) = jax.jit(lambda k: jax.jvp(cosine, (k,), (jnp.ones(()),)))(
        jnp.float32(kappa)
    )
    np.testing.assert_allclose(square, 1, atol=1e-5)
    density, norm = cosine_density(d, kappa)
    grid = np.linspace(-1, 1, 200_001)
    cdf = integrate.cumulative_trapezoid(density(grid) / norm, grid, initial=0)
    assert stats.kstest(np.asarray(w, np.float64), lambda x: np.interp(x, grid, cdf)).pvalue > 1e-3
    mean = mean_cosine(d, kappa)
    want = 1 - mean**2 - (d - 1) * mean / kappa
    assert abs(np.mean(slope) - want) < 4 * np.std(slope) / np.sqrt(n)


@pytest.mark.parametrize("d", [3, 4, 11])
def test_the_gradient_of_one_sample_is_that_of_its_quantile(d):
    """Finite differences of the inverse of F, by root finding in float64."""
    from scipy.optimize import brentq

    def cdf(w, kappa):
        density, norm = cosine_density(d, kappa)
        return integrate.quad(density, -1, w, epsabs=1e-13, epsrel=1e-12)[0] / norm

    kappa, step = 4.0, 1e-3
    slope_of = jax.jit(lambda w, k: sphere.cosine_slope(d, w, k))
    for w in (-0.6, 0.2, 0.7, 0.97):
        level = cdf(w, kappa)

        def quantile(k, level=level):
            return brentq(lambda x: cdf(x, k) - level, -1, 1, xtol=1e-12)

        moved = [quantile(kappa - step), quantile(kappa + step)]
        got = slope_of(jnp.float32([w]), jnp.float32([kappa]))
        np.testing.assert_allclose(got, (moved[1] - moved[0]) / (2 * step), rtol=2e-3)


def test_uniform_samples_have_no_direction():
    p = de.UniformSphere(jnp.zeros(5).at[0].set(1.0))
    z, log_p = p.sample_and_log_prob(jax.random.split(jax.random.key(1), (50, 400)))
    assert z.shape == (50, 400, 5)
    np.testing.assert_allclose(log_p, -np.log(8 * np.pi**2 / 3), rtol=1e-6)
    z = np.asarray(z, np.float64).reshape(-1, 5)
    assert np.abs(z.mean(0)).max() < 4 / np.sqrt(5 * len(z))
    np.testing.assert_allclose(z.T @ z / len(z), np.eye(5) / 5, atol=0.01)


def spherical(prior="sphere"):
    c = config.default()
    c.latent = 4
    c.posterior, c.prior = config.call("posterior", "von_mises_fisher"), config.call("prior", prior)
    return c


def test_a_model_on_the_sphere_has_an_analytic_kl_and_finite_gradients():
    m = models.build(spherical(), shape=(4, 4, 1), levels=17, classes=0, binary=False)
    params = jax.jit(m.init)(jax.random.key(0))
    x = jax.random.uniform(jax.random.key(1), (6, 4, 4, 1))
    keys = jax.random.split(jax.random.key(2), (3, 6))
    d = jax.jit(m.draw)(params, x, keys)
    assert d.z.shape == (3, 6, 4) and d.kl.shape == (3, 6, 1)
    np.testing.assert_array_equal(d.kl[0], d.kl[1])  # analytic: the same for every draw
    grads = jax.jit(jax.grad(lambda p: -m.draw(p, x, keys).log_w.mean()))(params)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert np.abs(grads["posterior"]["concentration"]["kernel"]).max() > 0


@pytest.mark.parametrize(
    ("posterior", "prior"), [("von_mises_fisher", "normal"), ("gaussian", "sphere")]
)
def test_a_posterior_and_a_prior_on_different_spaces_are_one_line(posterior, prior):
    c = spherical(prior)
    c.posterior = config.call("posterior", posterior)
    with pytest.raises(UserError, match=r"prior.name=.*lives on"):
        models.build(c, shape=(4, 4, 1), levels=17, classes=0, binary=False)
