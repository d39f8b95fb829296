"""The VQ-VAE: its codes, its prior, its loss written out, and a codebook that does not collapse."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax import config, models
from vae_jax import distributions as de
from vae_jax.config import UserError
from vae_jax.distributions.codebook import CodebookPrior, VectorQuantised
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.vq import unused_distance

RNG = np.random.default_rng(0)
CODEBOOK = jnp.asarray(RNG.normal(size=(5, 2)), jnp.float32)
FEATURES = jnp.asarray(RNG.normal(size=(7, 6)), jnp.float32)  # three tokens each


def by_hand(features, codebook):
    """(codes NxD, indices NxP) by a loop over tokens."""
    codes = []
    places = []
    for row in np.asarray(features, np.float64).reshape(len(features), -1, codebook.shape[1]):
        index = [((token - codebook) ** 2).sum(1).argmin() for token in row]
        places.append(index)
        codes.append(codebook[index].ravel())
    return np.array(codes), np.array(places)


def test_codes_are_the_nearest_and_the_gradient_goes_straight_through():
    q = VectorQuantised(FEATURES, CODEBOOK)
    codes, places = by_hand(FEATURES, np.asarray(CODEBOOK))
    np.testing.assert_array_equal(q.indices(FEATURES), places)
    np.testing.assert_allclose(q.mu, codes, rtol=1e-6)
    np.testing.assert_array_equal(q.indices(q.mu), places)

    def value(features, codebook):
        return jnp.sum(VectorQuantised(features, codebook).mu * jnp.arange(6.0))

    to_features, to_codebook = jax.grad(value, (0, 1))(FEATURES, CODEBOOK)
    np.testing.assert_allclose(to_features, np.tile(np.arange(6.0), (7, 1)))
    assert not np.asarray(to_codebook).any(), "the decoder does not move the codebook"


def test_the_prior_sums_to_one_and_draws_its_codes():
    logits = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
    p = CodebookPrior(logits, CODEBOOK)
    points = p.enumerate()
    assert np.exp(np.asarray(p.log_prob(points), np.float64)).sum() == pytest.approx(1, abs=1e-5)
    z = jax.jit(p.sample)(jax.random.split(jax.random.key(0), 8000))
    index = np.asarray(VectorQuantised(z, CODEBOOK).indices(z))
    for token in range(3):
        expected = np.asarray(jax.nn.softmax(logits[token]), np.float64)
        count = np.bincount(index[:, token], minlength=5)
        assert stats.chisquare(count, expected / expected.sum() * 8000).pvalue > 1e-3
    q = VectorQuantised(FEATURES, CODEBOOK)
    np.testing.assert_allclose(de.kl(q, p), -p.log_prob(q.mu), rtol=1e-6)
    assert np.exp(q.log_prob(points[:, None])).sum(0) == pytest.approx(np.ones(7))


def quantising(**fields):
    c = config.default()
    c.latent = 6
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    c.model = config.call("model", "vq", codes=5, width=2)
    c.objective = config.call("objective", "vq")
    for field, value in fields.items():
        config.set_field(c, field, value)
    return models.build(c, shape=(4, 4, 1), levels=17, classes=0, binary=False)


def test_the_loss_is_its_equation():
    m = quantising()
    params = jax.jit(m.init)(jax.random.key(0))
    batch = {"image": jax.random.uniform(jax.random.key(1), (6, 4, 4, 1))}
    keys = jax.random.split(jax.random.key(2), 6)
    options = {"beta": 0.5, "codebook": 2.0, "revive": 0.3}
    t = jax.jit(lambda p: OBJECTIVES["vq"](m, p, batch, keys, **options))(params)
    q = m.encode(params, batch["image"])
    vectors = np.asarray(params["codebook"]["vectors"], np.float64)
    features = np.asarray(q.features, np.float64)
    codes, places = by_hand(features, vectors)
    square = ((features - codes) ** 2).sum(1)
    log_px = np.asarray(m.likelihood.log_prob(m.decode(params, q.mu), batch["image"]))
    tokens = features.reshape(-1, 2)
    error = ((tokens - codes.reshape(-1, 2)) ** 2).sum(1)
    free = sorted(set(range(5)) - set(places.ravel().tolist()))
    worst = tokens[np.argsort(-error)[: len(free)]]
    unused = ((worst - vectors[free]) ** 2).sum()
    assert free, "else the last term is not seen"
    want = 3 * np.log(5) - log_px + 2.5 * square + 0.3 * unused
    np.testing.assert_allclose(t.loss, want, rtol=1e-4)
    np.testing.assert_allclose(t.elbo, log_px - 3 * np.log(5), rtol=1e-4)
    masked = batch | {"mask": jnp.arange(6) < 6}
    again = OBJECTIVES["vq"](m, params, masked, keys, **options)
    np.testing.assert_allclose(again.loss, t.loss, rtol=1e-5)
    grads = jax.jit(jax.grad(lambda p: OBJECTIVES["vq"](m, p, batch, keys).loss.mean()))(params)
    for part in ("encoder", "posterior", "decoder", "codebook"):
        assert max(np.abs(g).max() for g in jax.tree.leaves(grads[part])) > 0, part


def test_padding_takes_no_code():
    q = VectorQuantised(FEATURES, CODEBOOK)
    few = unused_distance(VectorQuantised(FEATURES[:1], CODEBOOK), jnp.ones(1, bool))
    np.testing.assert_allclose(unused_distance(q, jnp.arange(7) < 1), few, rtol=1e-5)


@pytest.mark.parametrize(("revive", "used"), [(0.0, 1), (0.5, 8)])
def test_a_codebook_far_from_the_features_comes_to_be_used(revive, used):
    """Eight clusters on a circle, eight codes of which one is near; the others never move alone."""
    angle = np.arange(64) % 8 * np.pi / 4
    features = jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], 1), jnp.float32)
    away = np.stack([10 + np.arange(8.0), np.zeros(8)], 1)
    away[0] = 0

    @jax.jit
    def step(codebook):
        def loss(codebook):
            q = VectorQuantised(features, codebook)
            return q.distances()[0].mean() + revive * unused_distance(q, jnp.ones(64, bool))

        return codebook - 0.1 * jax.grad(loss)(codebook)

    codebook = jnp.asarray(away, jnp.float32)
    for _ in range(300):
        codebook = step(codebook)
    index = VectorQuantised(features, codebook).indices(features)
    assert len(np.unique(index)) == used


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("latent", 7, "latent=7: want a multiple of model.width=2, such as 8"),
        ("objective.name", "elbo", "objective.name=elbo: trains no codebook; want vq"),
        ("prior.name", "mixture", "model.name=vq: has a posterior and a prior of its own"),
    ],
)
def test_what_does_not_fit_is_one_line(field, value, message):
    with pytest.raises(UserError, match=re.escape(message)):
        quantising(**{field: value})


def test_the_loss_of_a_model_without_a_codebook_is_one_line():
    c = config.default()
    m = models.build(c, shape=(4, 4, 1), levels=17, classes=0, binary=False)
    x = jnp.zeros((2, 4, 4, 1))
    with pytest.raises(UserError, match="the model has no codebook; want"):
        OBJECTIVES["vq"](m, jax.jit(m.init)(jax.random.key(0)), {"image": x}, None)
