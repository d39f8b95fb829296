"""Planar and radial steps: they invert, their log-determinants are the Jacobian's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vae_jax import distributions as de
from vae_jax.distributions.flows import Flow, planar, radial

STEPS = pytest.mark.parametrize("step", [planar, radial])


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


def parameters(step, b, d, seed=0, scale=2.0, dtype=np.float32):
    """Those of a step for each of b examples."""
    vector = normal(3 * seed, b, d)
    if step is planar:
        arrays = (scale * vector, normal(3 * seed + 1, b, d), normal(3 * seed + 2, b))
    else:
        arrays = (vector, normal(3 * seed + 1, b), scale * normal(3 * seed + 2, b))
    return tuple(jnp.asarray(array, dtype) for array in arrays)


def flow_of(step, b, d, dtype=np.float32):
    """Three steps from a Gaussian."""
    params = tuple(parameters(step, b, d, seed, dtype=dtype) for seed in range(3))
    base = de.Normal(jnp.zeros((b, d), dtype), jnp.full((b, d), -0.5, dtype))
    return Flow(base, params, (step,) * 3)


@STEPS
@pytest.mark.parametrize("d", [1, 2, 5])
def test_a_step_inverts_and_its_log_det_is_the_jacobians(step, d):
    with jax.enable_x64(True):
        n = 40
        params = parameters(step, n, d, scale=6.0, dtype=np.float64)  # of both signs, at the bounds
        u = jnp.asarray(2 * normal(9, n, d))
        z, log_det = jax.jit(step)(params, u)
        back, log_det_back = jax.jit(lambda p, z: step(p, z, inverse=True))(params, z)
        np.testing.assert_allclose(back, u, atol=1e-9)
        np.testing.assert_allclose(log_det_back, -log_det, atol=1e-9)

        def one(inverse):
            return lambda params, x: step(params, x, inverse=inverse)[0]

        for inverse, x, want in ((False, u, log_det), (True, z, -log_det)):
            jacobian = jax.jit(jax.vmap(jax.jacobian(one(inverse), 1)))(params, x)
            sign, value = np.linalg.slogdet(jacobian)
            np.testing.assert_allclose(value, want, atol=1e-8)
            assert (sign == 1).all(), "invertible everywhere"


@STEPS
def test_the_bound_keeps_every_step_invertible(step):
    """Towards the bound nothing folds: along a line through the step the map only rises."""
    d = 2
    far = np.array([-1e4, -50.0, -3.0], np.float32)
    direction = jnp.array([1.0, 0.0])
    line = jnp.linspace(-4, 4, 2001)[:, None, None] * direction  # TxBxD with B = 3
    if step is planar:
        params = (far[:, None] * direction, jnp.ones((3, 1)) * direction, jnp.zeros(3))
    else:
        params = (jnp.zeros((3, d)), jnp.zeros(3), jnp.asarray(far))
    z, log_det = jax.jit(step)(params, jnp.broadcast_to(line, (2001, 3, d)))
    assert (np.diff(z[..., 0], axis=0) > 0).all()
    assert (np.asarray(log_det) > -3.001 * d).all()
    back, _ = jax.jit(lambda p, z: step(p, z, inverse=True))(params, z)
    np.testing.assert_allclose(back, jnp.broadcast_to(line, back.shape), atol=1e-4)


@STEPS
def test_a_flows_density_integrates_to_one_and_is_that_of_its_samples(step):
    flow = flow_of(step, 1, 2)
    x = np.arange(-14, 14, 0.08, dtype=np.float32)
    grid_GxD = np.stack(np.meshgrid(x, x, indexing="ij"), -1).reshape(-1, 2)
    log_p = jax.jit(flow.log_prob)(jnp.asarray(grid_GxD)[:, None])[:, 0]
    p = np.exp(np.asarray(log_p, np.float64)) * 0.08**2
    assert p.sum() == pytest.approx(1, abs=3e-3)
    keys = jax.random.split(jax.random.key(0), (40_000, 1))
    z, log_q = jax.jit(flow.sample_and_log_prob)(keys)
    np.testing.assert_allclose(jax.jit(flow.log_prob)(z), log_q, rtol=1e-3, atol=2e-3)
    z = np.asarray(z[:, 0], np.float64)
    for moment in (np.array, np.abs, np.sin):
        values = moment(z)
        error = values.std(0) / np.sqrt(len(values))
        difference = np.abs(values.mean(0) - p @ moment(grid_GxD))
        assert (difference < 4 * error + 5e-3).all()


@STEPS
def test_gradients_are_those_of_finite_differences(step):
    with jax.enable_x64(True):
        flow = flow_of(step, 2, 3, np.float64)
        z = jnp.asarray(normal(9, 2, 3))
        keys = jax.random.split(jax.random.key(1), 2)

        def values(flow, z):
            drawn, log_q = flow.sample_and_log_prob(keys)
            return flow.log_prob(z), drawn, log_q

        check_grads(jax.jit(values), (flow, z), order=1, atol=1e-5, rtol=1e-5, eps=1e-6)

        def log_prob_gradient(z):
            return jax.grad(lambda z: flow.log_prob(z).sum())(z)

        check_grads(jax.jit(log_prob_gradient), (z,), 1, ["rev"], atol=1e-4, rtol=1e-4, eps=1e-6)
