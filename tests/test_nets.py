import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import config, model
from vae_jax.nets import conv


@pytest.mark.parametrize(("k", "shape"), [(4, (3, 7, 7, 5)), (3, (2, 4, 6, 3)), (5, (1, 5, 3, 2))])
def test_up2_is_the_transposed_convolution_with_its_gradients(k, shape):
    z = jax.random.normal(jax.random.key(0), shape)
    w = jax.random.normal(jax.random.key(1), (k, k, 4, shape[-1]))
    g = jax.random.normal(jax.random.key(2), (shape[0], 2 * shape[1], 2 * shape[2], 4))

    def reference(z, w):
        return jax.lax.conv_transpose(
            z, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), transpose_kernel=True
        )

    out, back = jax.vjp(conv.up2, z, w)
    want, want_back = jax.vjp(reference, z, w)
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=1e-5)
    for a, b in zip(back(g), want_back(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_both_weight_gradients_are_the_same_sum():
    z = jax.random.normal(jax.random.key(0), (3, 7, 5, 5))
    w = jax.random.normal(jax.random.key(1), (4, 4, 2, 5))
    g = jax.random.normal(jax.random.key(2), (3, 14, 10, 2))
    np.testing.assert_allclose(conv._mirrored(z, w, g), conv._plain(z, w, g), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("net", ["mlp", "conv"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (9, 13, 3), (1, 5, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_image_size_goes_in_and_comes_out(net, shape, dtype):
    c = config.default()
    c.dtype, c.latent = dtype, 3
    c.encoder, c.decoder = config.call("encoder", net), config.call("decoder", net)
    m = model.build(c, shape=shape, levels=256, classes=0, binary=False)
    params = jax.eval_shape(m.init, jax.random.key(0))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    d = jax.eval_shape(lambda p, x: m.draw(p, x, jax.random.key(1)), params, x)
    assert (d.log_px.shape, d.kl.shape, d.z.shape) == ((4,), (4, 1), (4, 3))
    assert d.log_px.dtype == d.kl.dtype == jnp.float32
    out = jax.eval_shape(m.decode, params, d.z)
    assert out.shape == (4, *shape[:2], m.likelihood.outputs(shape[2]))


def test_fresh_decoder_output_has_unit_scale():
    """Initialisation keeps the scale of what goes through, in transposed convolutions too."""
    up = conv.UpConv(64, 4)
    z = jax.random.normal(jax.random.key(0), (16, 8, 8, 64))
    out = up.apply(up.init(jax.random.key(1), z), z)
    assert 0.8 < float(out[:, 2:-2, 2:-2].std()) < 1.2
