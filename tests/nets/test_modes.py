"""Every mode of differentiation works through every net in the plain form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from vae_jax import nets, ops

SHAPE = (6, 5, 2)
BATCH = 3

ENCODERS = {
    "mlp": nets.MLPEncoder(widths=(6, 5), activation="tanh"),
    "conv": nets.ConvEncoder(widths=(4, 6, 5), strides=(2, 1, 2), kernel=3, dense=5),
    "residual": nets.ResidualEncoder(widths=(4, 6), depths=(1, 1), dense=5, squeeze=True),
    "vit": nets.ViTEncoder(patch=2, width=4, depth=1, heads=2),
}
DECODERS = {
    "mlp": nets.MLPDecoder(SHAPE, widths=(6, 5), activation="gated"),
    "conv": nets.ConvDecoder(SHAPE, dense=5, widths=(5, 4), kernel=3, activation="softplus"),
    "residual": nets.ResidualDecoder(SHAPE, widths=(6, 4), depths=(1, 1), dense=5, remat="full"),
    "vit": nets.ViTDecoder(SHAPE, patch=2, width=4, depth=1, heads=2),
}
HIERARCHIES = {
    "ladder": (
        nets.MLPEncoder(widths=(6, 5), pyramid=True),
        nets.Ladder(SHAPE, latents=(2, 3), width=4, inner=4),
    ),
    "vdvae": (
        nets.ResidualEncoder(widths=(4,), depths=(1,), pyramid=True),
        nets.VDVAE(SHAPE, widths=(4,), depths=(1,), channels=2),
    ),
    "vdvae, scan": (
        nets.ResidualEncoder(widths=(4,), depths=(1,), pyramid=True),
        nets.VDVAE(SHAPE, widths=(4,), depths=(2,), channels=2, scan=True),
    ),
}


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


def mean_and_kl(q, p, given):
    """A level's posterior mean, and a function of both distributions as its record."""
    return q.mu, jnp.sum((q.mu - p.mu) ** 2 * jnp.exp(-p.logvar) + q.logvar)


def check_modes(loss, params, x):
    """Forward mode agrees with reverse mode in both orders; ``loss`` sums over examples."""
    flat, unravel = ravel_pytree(params)
    flat = flat + 0.1 * normal(8, *flat.shape)  # layers that start at zero take part
    direction = normal(9, *flat.shape)

    def f(flat, x):
        return loss(unravel(flat), x)

    @jax.jit
    def modes(flat, x):
        gradient = jax.grad(f)
        forward = jax.jvp(lambda p: f(p, x), (flat,), (direction,))[1]
        product = jax.jvp(lambda p: gradient(p, x), (flat,), (direction,))[1]
        twice = jax.grad(lambda p: jnp.vdot(gradient(p, x), direction))(flat)
        rows = jax.vmap(gradient, (None, 0))(flat, x[:, None])
        return forward, gradient(flat, x), product, twice, rows

    forward, gradient, product, twice, rows = modes(flat, x)
    assert float(jnp.abs(gradient).max()) > 0
    scale = float(jnp.linalg.norm(gradient) * jnp.linalg.norm(direction))
    np.testing.assert_allclose(forward, jnp.vdot(gradient, direction), atol=1e-5 * scale)
    np.testing.assert_allclose(product, twice, rtol=1e-3, atol=1e-4 * float(jnp.abs(twice).max()))
    assert rows.shape == (BATCH, *flat.shape)
    largest = float(jnp.abs(gradient).max())
    np.testing.assert_allclose(rows.sum(0), gradient, rtol=1e-3, atol=1e-4 * largest)


def check_net(net, x):
    with ops.plain():
        params = jax.jit(net.init)(jax.random.key(0), x)
        out = jax.eval_shape(net.apply, params, x)
        weight = normal(7, *out.shape[1:])
        check_modes(lambda p, x: jnp.sum(jnp.sin(net.apply(p, x)) * weight), params, x)


def test_the_tables_are_covered():
    assert set(ENCODERS) == set(nets.ENCODERS)
    assert {*DECODERS, "ladder", "vdvae", "none"} == set(nets.DECODERS)


@pytest.mark.parametrize("name", ENCODERS)
def test_every_mode_works_through_an_encoder(name):
    check_net(ENCODERS[name], jax.nn.sigmoid(normal(1, BATCH, *SHAPE)))


@pytest.mark.parametrize("name", DECODERS)
def test_every_mode_works_through_a_decoder(name):
    check_net(DECODERS[name], normal(1, BATCH, 3))


@pytest.mark.parametrize("name", HIERARCHIES)
def test_every_mode_works_through_a_hierarchy(name):
    encoder, decoder = HIERARCHIES[name]
    given = [jnp.zeros(levels) for levels, _ in decoder.groups()]
    x = jax.nn.sigmoid(normal(1, BATCH, *SHAPE))

    def loss(params, x):
        features = encoder.apply(params["encoder"], x)
        out, records = decoder.apply(params["decoder"], features, mean_and_kl, given, len(x))
        return jnp.sum(jnp.sin(out)) + sum(jnp.sum(record) for record in records)

    with ops.plain():

        @jax.jit
        def init(key):
            encoder_key, decoder_key = jax.random.split(key)
            features, of_encoder = encoder.init_with_output(encoder_key, x)
            of_decoder = decoder.init(decoder_key, features, mean_and_kl, given, BATCH)
            return {"encoder": of_encoder, "decoder": of_decoder}

        params = init(jax.random.key(0))
        check_modes(loss, params, x)


@pytest.mark.parametrize("name", ["gaussian", "full"])
def test_every_mode_works_through_a_posterior(name):
    head = nets.POSTERIORS[name](3)

    def loss(params, h):
        leaves = jax.tree.leaves(head.apply(params, h))
        return sum(jnp.sum(jnp.sin(leaf)) for leaf in leaves)

    with ops.plain():
        h = normal(1, BATCH, 4)
        check_modes(loss, jax.jit(head.init)(jax.random.key(0), h), h)
