"""Nets: shapes, scales of fresh nets, and their layers written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.special import expit, softmax

from vae_jax import config, models
from vae_jax.nets import ResidualEncoder, ViTDecoder, ViTEncoder, conv, mlp, vit
from vae_jax.nets.residual import Bottleneck, Residual, double, grids, halve, patches, unpatch


def test_rows_of_a_grid_are_rows_of_a_dense_layer():
    h = jax.random.normal(jax.random.key(0), (2, 3, 5, 4))
    ours = mlp.Dense(6)
    plain = nn.Dense(6)
    params = plain.init(jax.random.key(1), h)
    assert jax.tree.map(jnp.shape, ours.init(jax.random.key(1), h)) == jax.tree.map(
        jnp.shape, params
    )
    out, back = jax.vjp(ours.apply, params, h)
    expected, expected_back = jax.vjp(plain.apply, params, h)
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-6)
    ours_leaves = jax.tree.leaves(back(out))
    for a, b in zip(ours_leaves, jax.tree.leaves(expected_back(expected)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    products = [e for e in jax.make_jaxpr(back)(out).eqns if "dot_general" in str(e)]
    assert products and all(v.aval.ndim <= 2 for e in products for v in e.invars)


@pytest.mark.parametrize("net", ["mlp", "conv", "residual", "vit"])
@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (9, 13, 3), (1, 5, 2)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_image_size_goes_in_and_comes_out(net, shape, dtype):
    c = config.default()
    c.dtype, c.latent = dtype, 3
    c.encoder = config.call("encoder", net)
    c.decoder = config.call("decoder", net)
    m = models.build(c, shape=shape, levels=256, classes=0, binary=False)
    params = jax.eval_shape(m.init, jax.random.key(0))
    assert {p.dtype for p in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    x = jax.ShapeDtypeStruct((4, *shape), jnp.float32)
    d = jax.eval_shape(lambda p, x: m.draw(p, x, jax.random.split(jax.random.key(1), 4)), params, x)
    assert (d.log_px.shape, d.kl.shape, d.z.shape) == ((4,), (4, 1), (4, 3))
    assert d.log_px.dtype == d.kl.dtype == jnp.float32
    out = jax.eval_shape(m.decode, params, d.z)
    assert out.shape == (4, *shape[:2], m.likelihood.outputs(shape[2]))


def test_fresh_decoder_output_has_unit_scale():
    """Initialisation keeps the scale of what goes through, in transposed convolutions too."""
    up = conv.UpConv(64, 4)
    z = jax.random.normal(jax.random.key(0), (16, 8, 8, 64))
    out = jax.jit(lambda key, z: up.apply(up.init(key, z), z))(jax.random.key(1), z)
    assert 0.8 < float(out[:, 2:-2, 2:-2].std()) < 1.2


def test_patches_of_any_size_come_back_and_grids_halve_and_double():
    x = jax.random.normal(jax.random.key(0), (2, 9, 14, 3))
    cells = patches(x, 4)
    assert cells.shape == (2, 3, 4, 48)
    np.testing.assert_array_equal(cells[0, 1, 2].reshape(4, 4, 3), x[0, 4:8, 8:12])
    np.testing.assert_array_equal(unpatch(cells, (9, 14, 3), 4), x)
    assert grids((28, 28, 1), 2, 4) == [(14, 14), (7, 7), (4, 4), (2, 2)]
    h = jnp.arange(3.0)[None, :, None, None]  # rows 0, 1 and, alone in its block, 2
    np.testing.assert_allclose(halve(h).ravel(), [0.5, 2])
    np.testing.assert_allclose(double(halve(h), (3, 1)).ravel(), [0.5, 0.5, 2])


def test_squeeze_and_excitation_written_out():
    h = jax.random.normal(jax.random.key(0), (2, 3, 5, 32))
    net = Residual(4, "silu", 1.0, squeeze=True)
    fresh = jax.jit(net.init)(jax.random.key(1), h)["params"]
    assert fresh["squeeze"]["kernel"].shape == (32, 2)
    u = np.asarray(jax.jit(Bottleneck(32, 4).apply)({"params": fresh["inner"]}, h), np.float64)
    half_open = fresh | {"excite": jax.tree.map(lambda a: 5 - 4 * a, fresh["excite"])}
    for params in (fresh, half_open):
        first, second = (jax.tree.map(np.float64, params[n]) for n in ("squeeze", "excite"))
        hidden = np.maximum(u.mean((1, 2)) @ first["kernel"] + first["bias"], 0)
        gate = expit(hidden @ second["kernel"] + second["bias"])[:, None, None]
        assert gate.min() > 0.9 or params is not fresh
        out = jax.jit(net.apply)({"params": params}, h)
        np.testing.assert_allclose(out, h + gate * u, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "first", "last"),
    [
        (
            ResidualEncoder(widths=(32,), depths=(12,), activation="relu", pyramid=True),
            "Conv_0",
            "block_0_11",
        ),
        (ViTEncoder(width=32, depth=8), "embed", "block_7"),
    ],
)
def test_a_fresh_stack_of_many_blocks_has_the_scale_of_one(net, first, last):
    """Within a factor of two of its input's variance; branches at their usual scale exceed it."""
    x = (1 + jax.random.normal(jax.random.key(0), (8, 12, 12, 3))) / 2  # the net sees N(0, 1)

    def first_or_last(module, _):
        return module.name in (first, last)

    @jax.jit
    def outputs(key):
        params = net.init(key, x)
        return net.apply(params, x, capture_intermediates=first_or_last)[1]["intermediates"]

    tensors = outputs(jax.random.key(1))
    before, after = (float(tensors[name]["__call__"][0].var()) for name in (first, last))
    assert 1 < after / before < 2


def test_attention_is_the_softmax_of_products_written_out_in_float64():
    b, n, f, heads = 2, 5, 6, 3
    h = jax.random.normal(jax.random.key(0), (b, n, f))
    net = vit.Attention(heads)
    params = jax.jit(net.init)(jax.random.key(1), h)
    mask = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0]], bool)
    w = {k: np.asarray(v["kernel"], np.float64) for k, v in params["params"].items()}
    qkv = np.asarray(h, np.float64) @ w["qkv"]
    q, k, v = np.moveaxis(qkv.reshape(b, n, 3, heads, f // heads), 2, 0)
    scores = np.einsum("bqhd,bkhd->bhqk", q, k) / np.sqrt(f // heads)
    scores = np.where(mask[:, None, None], scores, -np.inf)
    heads_out = np.einsum("bhqk,bkhd->bqhd", softmax(scores, -1), v)
    expected = heads_out.reshape(b, n, f) @ w["out"]
    np.testing.assert_allclose(jax.jit(net.apply)(params, h, mask), expected, rtol=1e-4, atol=1e-5)


def tiny_vit():
    net = ViTEncoder(patch=2, width=8, depth=2, heads=2)
    x = jax.random.uniform(jax.random.key(0), (2, 4, 6, 1))
    return jax.jit(net.apply), x, jax.jit(net.init)(jax.random.key(1), x)


def test_patches_in_another_order_with_their_positions_are_the_same_image():
    apply, x, params = tiny_vit()
    order = np.array([4, 0, 3, 5, 1, 2])
    moved_cells = patches(x, 2).reshape(2, 6, 4)[:, order].reshape(2, 2, 3, 4)
    moved = unpatch(moved_cells, (4, 6, 1), 2)
    positions = params["params"]["positions"][order]
    turned = {"params": params["params"] | {"positions": positions}}
    np.testing.assert_allclose(apply(turned, moved), apply(params, x), rtol=1e-4, atol=1e-5)
    assert (
        np.abs(apply(params, moved) - apply(params, x)).max() > 1e-4
    )  # without them it is another


def test_masked_patches_have_no_influence():
    apply, x, params = tiny_vit()
    mask = np.array([[1, 0, 1, 1, 1, 0], [0, 1, 1, 1, 1, 1]], bool)

    def squares(x):
        return (apply(params, x, mask_BxN=mask) ** 2).sum()

    gradient = jax.jit(jax.grad(squares))(x)
    influence = np.abs(patches(gradient, 2)).sum(-1).reshape(2, 6)
    np.testing.assert_array_equal(influence > 0, mask)


def test_the_vit_decoder_tells_patches_apart_by_their_positions():
    net = ViTDecoder(shape=(4, 4, 1), patch=2, width=8, depth=1, heads=2)
    z = jnp.ones((1, 3))
    params = jax.jit(net.init)(jax.random.key(0), z)
    apply = jax.jit(net.apply)
    out = patches(apply(params, z), 2)[0].reshape(4, 4)
    assert np.abs(out - out[0]).max() > 1e-4
    params["params"]["positions"] = jnp.zeros_like(params["params"]["positions"])
    alike = patches(apply(params, z), 2)[0].reshape(4, 4)
    np.testing.assert_allclose(alike, np.broadcast_to(alike[0], alike.shape), atol=1e-6)
