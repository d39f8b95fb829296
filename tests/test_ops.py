"""The forms for CPU are the same sums as the plain ones, and a switch takes the plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import ops
from vae_jax.config import UserError


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(("k", "shape"), [(4, (3, 7, 7, 5)), (3, (2, 4, 6, 3)), (5, (1, 5, 3, 2))])
def test_up2_is_the_transposed_convolution_with_its_gradients(k, shape):
    z, w = normal(0, *shape), normal(1, k, k, 4, shape[-1])
    g = normal(2, shape[0], 2 * shape[1], 2 * shape[2], 4)

    def reference(z, w):
        dimensions = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_transpose(
            z, w, (2, 2), "SAME", dimension_numbers=dimensions, transpose_kernel=True
        )

    out, back = jax.vjp(ops.up2, z, w)
    expected, expected_back = jax.vjp(reference, z, w)
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    for a, b in zip(back(g), expected_back(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_both_kernel_gradients_of_up2_are_the_same_sum():
    z, w, g = normal(0, 3, 7, 5, 5), normal(1, 4, 4, 2, 5), normal(2, 3, 14, 10, 2)
    mirrored = ops._up2_kernel_gradient_mirrored(z, w, g)
    np.testing.assert_allclose(mirrored, ops._up2_kernel_gradient(z, w, g), rtol=1e-4, atol=1e-4)


CASES = {
    "up2": (ops.up2, normal(0, 2, 3, 5, 17), normal(1, 3, 3, 16, 17)),
    "down2": (ops.down2, normal(2, 2, 6, 10, 16), normal(3, 4, 4, 16, 17)),
    "same": (ops.same, normal(4, 2, 5, 3, 4), normal(5, 3, 3, 4, 5)),
    "add_bias": (ops.add_bias, normal(6, 2, 3, 5, 7), normal(7, 7)),
    "product": (ops.product, normal(8, 3, 5), normal(9, 5, 7)),
    "sum_pixels": (ops.sum_pixels, normal(10, 2, 3, 4, 5)),
    "channels_first": (ops.channels_first, normal(11, 2, 3, 4, 5)),
    "softplus": (ops.softplus, 10 * normal(12, 40)),
}
REVERSE_ONLY = ("up2", "down2", "same", "add_bias", "product")


@pytest.mark.parametrize("k", [2, 3, 4, 5])
def test_phases_are_the_transposed_convolution(k):
    z, w = normal(0, 2, 3, 5, 17), normal(1, k, k, 16, 17)
    np.testing.assert_allclose(ops._phases(z, w), ops._plain_up2(z, w), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_both_forms_have_the_same_values_and_gradients(name):
    operation, *args = CASES[name]
    out, back = jax.vjp(operation, *args)
    with ops.plain():
        plain_out, plain_back = jax.vjp(operation, *args)
    np.testing.assert_allclose(out, plain_out, rtol=1e-5, atol=1e-5)
    g = normal(20, *out.shape)
    for a, b in zip(back(g), plain_back(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_forward_mode_is_the_reverse_mode_in_the_plain_form(name):
    operation, *args = CASES[name]
    directions = [normal(30 + i, *a.shape) for i, a in enumerate(args)]
    with ops.plain():
        out, tangent = jax.jvp(operation, args, directions)
        g = normal(20, *out.shape)
        gradients = jax.vjp(operation, *args)[1](g)
    along = sum(jnp.vdot(a, b) for a, b in zip(gradients, directions, strict=True))
    np.testing.assert_allclose(jnp.vdot(g, tangent), along, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", REVERSE_ONLY)
def test_forward_mode_without_the_switch_is_one_line_that_names_it(name):
    operation, *args = CASES[name]
    with pytest.raises(UserError, match=rf"ops\.{name}: .*VAE_JAX_PLAIN_OPS=1") as error:
        jax.jvp(operation, args, args)
    assert "\n" not in str(error.value)


def test_the_switch_is_part_of_the_key_of_jits_cache():
    operation, *args = CASES["up2"]
    jitted = jax.jit(operation)
    jitted(*args)  # now traced in the form for CPU
    with ops.plain():
        jax.jvp(jitted, args, args)
    assert "custom_vjp" in str(jax.make_jaxpr(jitted)(*args))


def test_the_environment_switches_too(monkeypatch):
    operation, *args = CASES["down2"]
    monkeypatch.setenv(ops.VARIABLE, "1")
    jax.jvp(operation, args, args)
    assert "custom_vjp" not in str(jax.make_jaxpr(operation)(*args))
    monkeypatch.setenv(ops.VARIABLE, "yes")
    with pytest.raises(UserError, match="VAE_JAX_PLAIN_OPS=yes: want 0 or 1"):
        operation(*args)


def test_a_large_image_is_contiguous_to_the_last_bit():
    extremes = jnp.array([3e38, 1e-37] * 8)
    x = normal(0, 16, 64, 64, 16).at[0, 0, 0].set(extremes)
    assert x.size >= 2**20 and "dot_general" in str(jax.make_jaxpr(ops._contiguous)(x))
    np.testing.assert_array_equal(jax.jit(ops._contiguous)(x), x)
