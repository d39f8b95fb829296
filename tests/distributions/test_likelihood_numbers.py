"""Likelihoods' numbers: types, extremes, gradients in every mode, sizes of arrays."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from tests.distributions.images import BINARY, KEY, UNIT, make
from vae_jax import distributions as de
from vae_jax import ops
from vae_jax.train import flops as count


@pytest.mark.parametrize("name", de.LIKELIHOODS)
def test_bfloat16_outputs_are_summed_in_float32(name):
    likelihood = make(name, 2 if name in BINARY else 256)
    rng = np.random.default_rng(0)
    out = jnp.asarray(rng.standard_normal((2, 16, 16, likelihood.outputs(3))), jnp.bfloat16)
    x = jnp.asarray(rng.integers(0, 2, (2, 16, 16, 3)), jnp.bfloat16)
    got = likelihood.log_prob(out, x)
    assert got.dtype == likelihood.mean(out).dtype == jnp.float32
    np.testing.assert_array_equal(got, likelihood.log_prob(out.astype(jnp.float32), np.float32(x)))


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_levels_come_back_from_float32_and_bfloat16_images(levels):
    k = np.arange(levels)
    out = jnp.asarray(np.eye(levels, dtype=np.float32) * 100).reshape(levels, 1, 1, levels)
    likelihood = make("categorical", levels)
    for dtype in (jnp.float32, jnp.bfloat16):
        x = jnp.asarray(k / (levels - 1), dtype).reshape(-1, 1, 1, 1)
        np.testing.assert_allclose(likelihood.log_prob(out, x), 0, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "c"), [*((name, 1) for name in de.LIKELIHOODS), ("discretized_mix_logistic", 3)]
)
def test_values_and_gradients_are_finite_at_extremes(name, c):
    """At each corner and in the middle of the colour scale, with extreme coefficients γ too."""
    likelihood = make(name, 2 if name in BINARY else 256)
    extremes = np.array([-200.0, -30.0, -12.0, 0.0, 0.5, 30.0, 200.0], np.float32)
    n = likelihood.outputs(c)
    rng = np.random.default_rng(0)
    out = np.concatenate([np.tile(extremes[:, None], (1, n)), rng.choice(extremes, (200, n))])
    out = out.reshape(-1, 1, 1, n)
    f = jax.jit(jax.value_and_grad(lambda out, x: likelihood.log_prob(out, x).sum()))
    for x in itertools.product((0.0, 1.0) if name in BINARY else (0.0, 1.0, 128 / 255), repeat=c):
        value, gradient = f(out, np.float32(x).reshape(1, 1, 1, c))
        assert np.isfinite(value) and np.isfinite(gradient).all()
    assert (likelihood.mean(out) >= 0).all() or name in UNIT
    assert (
        np.isfinite(likelihood.mean(out)).all() and np.isfinite(likelihood.sample(KEY, out)).all()
    )


@pytest.mark.parametrize("log_scale", [-30.0, -12.0, 12.0])
def test_logistic_gradients_are_finite_at_both_ends_and_any_scale(log_scale):
    gradient = jax.vmap(jax.grad(de.log_discretized_logistic, argnums=(1, 2)), (0, 0, None, None))
    k = np.repeat(np.float32([0, 1, 128, 254, 255]), 5)
    mu = np.tile(np.float32([-200, -1, 0.3, 1, 200]), 5)
    assert all(np.isfinite(g).all() for g in gradient(k, mu, log_scale, 256))


def differentiable(name):
    """(f, out): log p(x|z) of four pixels as a function of the decoder's output, in float64."""
    likelihood = make(name, 2 if name in BINARY else 17)
    out = np.random.default_rng(0).standard_normal((4, 1, 1, likelihood.outputs(3)))
    out[0] *= 0.1  # the continuous Bernoulli's series
    out[1] *= 8  # the smooth bounds
    values = [0, 1, 0, 1] if name in BINARY else [0, 1, 0.5, 1]
    x = np.tile(np.array(values).reshape(4, 1, 1, 1), 3)
    f = jax.jit(lambda out: likelihood.log_prob(out, x))
    assert f(out).dtype == jnp.float64
    return f, out


@pytest.mark.parametrize("name", de.LIKELIHOODS)
def test_gradients_are_those_of_finite_differences_in_float64(name):
    with jax.enable_x64(True):
        f, out = differentiable(name)
        check_grads(f, (out,), order=1, modes=["fwd", "rev"], atol=1e-5, rtol=1e-5, eps=1e-6)


@pytest.mark.parametrize("name", de.LIKELIHOODS)
def test_every_mode_works_through_the_plain_form(name):
    """Forward mode and Hessian-vector products by finite differences; gradients by example."""
    with jax.enable_x64(True), ops.plain():
        f, out = differentiable(name)
        jaxpr = str(jax.make_jaxpr(f)(out))
        assert "platform_index" not in jaxpr and "dot_general" not in jaxpr

        direction = np.random.default_rng(1).standard_normal(out.shape)
        gradient = jax.jit(jax.grad(lambda out: f(out).sum()))
        for function in (f, gradient):
            along = jax.jit(lambda out, g=function: jax.jvp(g, (out,), (direction,))[1])(out)
            plus = function(out + 1e-6 * direction)
            minus = function(out - 1e-6 * direction)
            difference = (plus - minus) / 2e-6
            np.testing.assert_allclose(along, difference, rtol=1e-5, atol=1e-5)

        log_prob = make(name, 2 if name in BINARY else 17).log_prob
        x = np.zeros((4, 1, 1, 3))
        rows = jax.jit(jax.vmap(jax.grad(log_prob)))(out, x)
        together = jax.jit(jax.grad(lambda out: log_prob(out, x).sum()))(out)
        np.testing.assert_allclose(rows, together, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", de.LIKELIHOODS)
def test_a_sample_axis_in_front_broadcasts(name):
    likelihood = make(name, 2 if name in BINARY else 17)
    out = np.random.default_rng(0).standard_normal((5, 2, 3, 2, likelihood.outputs(3)))
    out = out.astype(np.float32)
    x = np.random.default_rng(1).integers(0, 2, (2, 3, 2, 3)).astype(np.float32)
    want = jnp.stack([likelihood.log_prob(o, x) for o in out])
    assert want.shape == (5, 2)
    np.testing.assert_allclose(likelihood.log_prob(out, x), want, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(likelihood.log_prob, (0, None))(out, x), want, rtol=1e-5)


def test_the_mixture_has_no_array_larger_than_components_by_pixels_by_three_but_what_it_is_given():
    m, pixels = 10, 6 * 8 * 8
    likelihood = make("discretized_mix_logistic", 256, components=m)
    out = jnp.zeros((6, 8, 8, 10 * m))
    x = jnp.zeros((6, 8, 8, 3))
    todo = [jax.make_jaxpr(likelihood.log_prob)(out, x).jaxpr]
    sizes = []
    while todo:
        for equation in todo.pop().eqns:
            sizes += [v.aval.size for v in equation.outvars]
            todo += count.inner(equation)
    laid_out = [s for s in sizes if s == out.size]
    assert len(sizes) > 50 and max(s for s in sizes if s != out.size) <= 3 * m * pixels
    # The product with the identity and its transpose; the form of other platforms.
    assert 1 <= len(laid_out) <= 5
