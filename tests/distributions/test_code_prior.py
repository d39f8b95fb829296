"""The autoregressive prior over codes: enumeration, chi-square, what it learns and trains."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from vae_jax import config, models
from vae_jax.config import UserError
from vae_jax.distributions.code_prior import OneHot
from vae_jax.nets.autoregressive import Autoregressive, OfTokens
from vae_jax.objectives import OBJECTIVES

CODEBOOK = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)), jnp.float32)


def moved(params, seed=1):
    """Parameters away from where they begin, the uniform distribution."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    leaves = [a + jax.random.normal(k, a.shape) for a, k in zip(leaves, keys, strict=True)]
    return jax.tree.unflatten(tree, leaves)


def prior(kind):
    """A prior of each kind of code, away from the uniform one."""
    module, inputs = {
        "one-hot": (Autoregressive(9, codes=3, hidden=(12,)), ()),
        "grid": (Autoregressive(4, grid=(4, 3), hidden=(9, 10)), ()),
        "codebook": (OfTokens(3, hidden=(8,)), (CODEBOOK,)),
    }[kind]

    @jax.jit
    def parameters(key):
        params = module.init(key, *inputs)
        return params, moved(params)

    fresh, params = parameters(jax.random.key(0))
    return module.apply(fresh, *inputs), module.apply(params, *inputs)


@pytest.mark.parametrize(("kind", "count"), [("one-hot", 27), ("grid", 144), ("codebook", 64)])
def test_it_sums_to_one_and_its_draws_have_its_probabilities(kind, count):
    uniform, p = prior(kind)
    z = p.enumerate()
    assert len(z) == count
    np.testing.assert_allclose(jax.jit(uniform.log_prob)(z), -np.log(count), rtol=1e-5)
    log_prob = jax.jit(p.log_prob)
    probability = np.exp(np.asarray(log_prob(z), np.float64))
    assert probability.sum() == pytest.approx(1, abs=1e-5)
    assert probability.max() > 3 * probability.mean(), "else it is not far from uniform"
    keys = jax.random.split(jax.random.key(2), (2, 10_000))
    draws, log_p = jax.jit(p.sample_and_log_prob)(keys)
    assert draws.shape == (2, 10_000, z.shape[-1])
    np.testing.assert_allclose(log_p, log_prob(draws), rtol=1e-5)
    same = np.asarray(draws).reshape(-1, 1, z.shape[-1]) == np.asarray(z)
    seen = same.all(-1).sum(0)
    assert seen.sum() == 20_000, "each draw is one of the codes"
    log_mu = log_prob(p.mu)
    assert (seen.argmax() == probability.argmax()) and log_mu >= np.log(probability.mean())
    common = probability > 5 / 20_000
    rest = [seen[~common].sum()] if (~common).any() else []
    mass = [probability[~common].sum()] if rest else []
    expected = np.append(probability[common], mass)
    observed = np.append(seen[common], rest)
    assert stats.chisquare(observed, expected / expected.sum() * 20_000).pvalue > 1e-3


def test_a_row_depends_on_the_rows_before_it_alone():
    _, p = prior("one-hot")

    def logits(rows):
        return p.net(p.params, rows)

    slope = jax.jit(jax.jacobian(logits))(jax.random.normal(jax.random.key(3), (3, 3)))
    depends = np.abs(slope).max((1, 3)) > 0
    np.testing.assert_array_equal(depends, np.tril(np.ones((3, 3), bool), -1))


def test_it_learns_what_a_product_of_marginals_cannot():
    """z_2 = z_1 and z_3 = z_1 + z_2 (mod 3): log 3 nats, where marginals need 3 log 3."""
    first = np.arange(90) % 3
    z = OneHot(3, 3).point(np.stack([first, first, 2 * first % 3], -1))
    module = Autoregressive(9, codes=3, hidden=(16,))
    optimiser = optax.adam(0.05)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, state = carry
            grads = jax.grad(lambda p: -module.apply(p).log_prob(z).mean())(params)
            updates, state = optimiser.update(grads, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), length=300)[0][0]

    params = train(module.init(jax.random.key(0)))
    nats = jax.jit(lambda p: -module.apply(p).log_prob(z).mean())(params)
    assert np.log(3) - 1e-4 < nats < np.log(3) + 0.05


def built(posterior, prior_fields, **fields):
    c = config.default()
    c.latent = 6
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    c.decoder = config.call("decoder", "mlp", widths=(8,))
    c.likelihood = config.call("likelihood", "bernoulli")
    c.posterior = posterior
    c.prior = config.call("prior", "autoregressive", **({"hidden": (12,)} | prior_fields))
    for field, value in fields.items():
        c[field] = value
    config.validate(c)
    return models.build(c, shape=(3, 3, 1), levels=2, classes=0, binary=True)


CATEGORICAL = config.call("posterior", "categorical", codes=3)
FSQ = config.call("posterior", "fsq", grid=(4, 3))
VQ = {
    "model": config.call("model", "vq", codes=4, width=2),
    "objective": config.call("objective", "vq"),
}
MODELS = {
    "categorical": (CATEGORICAL, {"codes": 3}, {}),
    "fsq": (FSQ, {"grid": (4, 3)}, {}),
    "vq": (config.call("posterior", "gaussian"), {}, VQ),
}
X = (jax.random.uniform(jax.random.key(1), (4, 3, 3, 1)) > 0.5).astype(jnp.float32)


@pytest.mark.parametrize("name", MODELS)
def test_a_model_has_its_exact_bound_and_trains_what_it_can(name):
    """The encoder has a gradient of log p(z) where z is one-hot, and none where it is rounded."""
    posterior, prior_fields, fields = MODELS[name]
    m = built(posterior, prior_fields, **fields)
    keys = jax.random.split(jax.random.key(2), (3, 4))
    loss = OBJECTIVES["vq" if name == "vq" else "elbo"]

    def cost(params):
        d = m.draw(params, X, keys)
        log_pz = m.prior(params).log_prob(d.z)
        whole = d.log_px + log_pz - m.log_posterior(params, X, d.z)
        return -log_pz.sum(), (d.log_w, whole)

    @jax.jit
    def everything(key):
        params = moved(m.init(key))
        grads, weights = jax.grad(cost, has_aux=True)(params)
        terms = loss(m, params, {"image": X}, keys[0])
        return grads, weights, terms, m.sample(params, keys[0])

    grads, (log_w, whole), terms, z = everything(jax.random.key(0))
    np.testing.assert_allclose(log_w, whole, rtol=1e-4, atol=1e-4)
    largest = {p: max(np.abs(g).max() for g in jax.tree.leaves(grads[p])) for p in grads}
    assert largest["prior"] > 0
    assert (largest["encoder"] > 0) == (name == "categorical")
    np.testing.assert_allclose(terms.elbo, terms.log_px - terms.kl, rtol=1e-5)
    assert z.shape == (4, 6)


def test_the_bound_of_a_categorical_model_is_below_the_enumerated_evidence():
    m = built(CATEGORICAL, {"codes": 3}, objective=config.call("objective", "enumerated"))
    params = jax.jit(lambda key: moved(m.init(key)))(jax.random.key(0))
    keys = jax.random.split(jax.random.key(2), (20_000, 4))
    exact = jax.jit(lambda p: OBJECTIVES["enumerated"](m, p, {"image": X}, keys[0]))(params)
    draws = jax.jit(m.draw)(params, X, keys)
    error = draws.log_w.std(0) / np.sqrt(len(keys))
    assert (np.abs(draws.log_w.mean(0) - exact.elbo) < 4 * error).all()
    assert (exact.elbo < exact.extra["evidence"]).all()


@pytest.mark.parametrize(
    ("posterior", "prior_fields", "message"),
    [
        (FSQ, {}, "prior.name=autoregressive: lives on one-hot(10) z, posterior.name=fsq on grid"),
        (CATEGORICAL, {"codes": 3, "hidden": ()}, "prior.hidden=(): want widths > 0"),
        (config.call("posterior", "gaussian"), {"codes": 3}, "lives on one-hot(3) z"),
    ],
)
def test_what_does_not_fit_is_one_line(posterior, prior_fields, message):
    with pytest.raises(UserError, match=re.escape(message)):
        jax.jit(built(posterior, prior_fields).init)(jax.random.key(0))
