"""A flow and a second VAE fitted to codes, against densities that are known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from vae_jax.tools import code_density

WIDTH = 0.2
STEPS = {"realnvp": 500, "two_stage": 1500}


def curve(n: int, seed: int) -> np.ndarray:
    """Points near a parabola, far from a Gaussian; the second axis is ten times as long."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=n)
    return np.stack([a + 1, 10 * (a**2 + WIDTH * rng.normal(size=n))], -1)


def curve_log_prob(z_Nx2: np.ndarray) -> np.ndarray:
    a = z_Nx2[:, 0] - 1
    of_b = scipy.stats.norm.logpdf(z_Nx2[:, 1], 10 * a**2, 10 * WIDTH)
    return scipy.stats.norm.logpdf(a) + of_b


@pytest.fixture(scope="module", params=list(STEPS))
def fitted(request: pytest.FixtureRequest):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(code_density, "STEPS", STEPS[request.param])
        yield request.param, code_density.fit(request.param, curve(5000, 0), 1, seed=0)


def test_a_curve_is_fitted_nearly_as_well_as_it_can_be(fitted):
    """Within 0.4 nats of the true density, which no density exceeds; a Gaussian is 2 below."""
    name, density = fitted
    z = curve(2000, 1)
    truth = curve_log_prob(z).mean()
    gaussian = scipy.stats.multivariate_normal(z.mean(0), np.cov(z.T)).logpdf(z).mean()
    assert gaussian < truth - 1.8
    error = curve_log_prob(z).std() / math.sqrt(len(z))
    got = code_density.mean_log_prob(density, z)
    assert truth - 0.4 < got < truth + 3 * error, name


def test_its_draws_are_near_the_curve(fitted):
    _, density = fitted
    z = np.asarray(jax.jit(density.sample)(jax.random.split(jax.random.key(1), 4000)))
    assert z.shape == (4000, 2)
    a = z[:, 0] - 1
    assert a.mean() == pytest.approx(0, abs=0.1) and a.std() == pytest.approx(1, abs=0.1)
    away = np.abs(z[:, 1] / 10 - a**2)
    assert (away < 4 * WIDTH).mean() > 0.9


def test_the_density_integrates_to_one(fitted):
    """exp of the second VAE's bound is an unbiased estimate of p, and as noisy as its 50 draws."""
    name, density = fitted
    x, y = np.linspace(-4, 6, 150), np.linspace(-20, 180, 400)
    grid = np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
    log_prob = jax.jit(density.log_prob)
    parts = [log_prob(jnp.asarray(part)) for part in np.split(grid, 60)]
    total = np.exp(np.concatenate(parts)).sum() * (x[1] - x[0]) * (y[1] - y[0])
    assert total == pytest.approx(1, abs={"realnvp": 0.02, "two_stage": 0.2}[name])


def test_a_dimension_that_never_moves_has_a_density():
    rng = np.random.default_rng(0)
    z = np.concatenate([rng.normal(size=(500, 2)), np.full((500, 1), 4.0)], 1)
    u, mean, sd = code_density.standardise(z)
    assert np.isfinite(np.asarray(u)).all() and (np.asarray(sd) > 0).all()
    np.testing.assert_allclose(np.asarray(mean + sd * u), z, atol=1e-5)
