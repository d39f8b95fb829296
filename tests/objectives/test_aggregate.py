"""Losses on the aggregate posterior: against numpy, and masked rows are in no statistic."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from tests.objectives.linear import (
    BATCH,
    MODEL,
    OTHER,
    OTHER_A,
    OTHER_C,
    OTHER_LOGVAR,
    TRUE,
    B,
    D,
    P,
    X,
    assert_close,
    assert_nats,
    batch_keys,
    jit,
    keys,
    mean_and_error,
    terms_of,
)
from vae_jax.config import UserError
from vae_jax.objectives import OBJECTIVES, sample_k
from vae_jax.objectives.aggregate import mmd


def test_the_parts_of_the_total_correlation_decomposition():
    key = jax.random.key(5)
    n = BATCH["n"]
    d = jit(lambda: sample_k(MODEL, OTHER, BATCH["image"], batch_keys(key), 1))()
    z = np.asarray(d.z[0], np.float64)
    terms = terms_of("beta_tcvae", OTHER, key, alpha=2.0, beta=3.0, gamma=5.0)
    mi = terms.extra["mi"]
    tc = terms.extra["tc"]
    dimension_kl = terms.extra["dimension_kl"]
    assert_nats(mi + tc + dimension_kl, (d.log_px - d.log_w)[0], atol=5e-5)
    assert_nats(terms.loss, 2 * mi + 3 * tc + 5 * dimension_kl - terms.log_px)
    mu = X @ OTHER_A + OTHER_C
    each = stats.norm(mu[None], np.exp(OTHER_LOGVAR / 2)).pdf(z[:, None])  # B(z) × B(x) × D
    log_qz = np.log(each.prod(-1).sum(1) / (n * B))
    log_product = np.log(each.sum(1) / (n * B)).sum(-1)
    assert_nats(mi, np.log(np.diagonal(each.prod(-1))) - log_qz, atol=5e-5)
    assert_nats(tc, log_qz - log_product, atol=5e-5)
    assert_nats(dimension_kl, log_product - stats.norm.logpdf(z).sum(-1), atol=5e-5)
    neutral = terms_of("beta_tcvae", OTHER, key, alpha=1.0, beta=1.0, gamma=1.0)
    assert_nats(-neutral.loss, d.log_w[0], atol=5e-5)
    with pytest.raises(UserError, match=r"posterior\.name=gaussian"):
        OBJECTIVES["beta_tcvae"](MODEL, TRUE, BATCH, batch_keys(key))


def test_factor_vae_keeps_its_two_games_apart():
    key = jax.random.key(6)
    objective = OBJECTIVES["factor_vae"]
    params = {**OTHER, "objective": jit(lambda key: objective.init(key, MODEL))(jax.random.key(1))}
    terms = terms_of("factor_vae", params, key, gamma=7.0)
    assert_nats(terms.loss, terms.kl - terms.log_px + 7 * terms.extra["tc"])

    def terms_at(p):
        return objective(MODEL, p, BATCH, batch_keys(key), gamma=7.0)

    whole = jit(jax.grad(lambda p: terms_at(p).loss.mean()))(params)
    own = jit(jax.grad(lambda p: terms_at(p).extra["discriminator"].mean()))(params)
    assert_close(whole["objective"], own["objective"])
    assert max(np.abs(g).max() for g in jax.tree.leaves(whole["objective"])) > 1e-3
    for name in OTHER:  # the discriminator's own loss moves nothing else
        for gradient in jax.tree.leaves(own[name]):
            assert (np.asarray(gradient) == 0).all()

    def vae(p):
        """The discriminator is a constant."""
        t = terms_at({**p, "objective": params["objective"]})
        return (t.kl - t.log_px + 7 * t.extra["tc"]).mean()

    assert_close({k: whole[k] for k in OTHER}, jit(jax.grad(vae))(OTHER))
    # A constant net has log D − log(1 − D) = 2, and the cross-entropy of both labels.
    constant = jax.tree.map(jnp.zeros_like, params["objective"])
    constant["out"]["bias"] = jnp.array([2.5, 0.5])
    terms = terms_of("factor_vae", {**OTHER, "objective": constant}, key)
    assert_nats(terms.extra["tc"], 2.0)
    cross_entropies = np.log1p(np.exp([-2, 2]))
    assert_nats(terms.extra["discriminator"], cross_entropies.mean())


def test_the_discriminator_learns_the_sign_of_the_total_correlation():
    """z with two equal dimensions: the trained log D − log(1 − D) is positive on it."""
    objective = OBJECTIVES["factor_vae"]
    n = 64
    x = np.random.default_rng(1).normal(size=(n, 1, P, 1))
    batch = {"image": jnp.asarray(x, jnp.float32)}
    params = {
        **OTHER,
        "encoder": {"a": jnp.ones((P, D)), "c": jnp.zeros(D)},
        "posterior": {"logvar": jnp.full(D, -6.0)},
    }
    params["objective"] = jit(lambda key: objective.init(key, MODEL))(jax.random.key(1))
    tx = optax.adam(3e-3)

    def step(carry, key):
        net, opt = carry

        def f(net):
            t = objective(MODEL, {**params, "objective": net}, batch, batch_keys(key, n))
            return t.loss.mean(), t.extra["tc"].mean()

        g, tc = jax.grad(f, has_aux=True)(net)
        updates, opt = tx.update(g, opt)
        return (optax.apply_updates(net, updates), opt), tc

    net = params["objective"]
    _, tc = jit(lambda net: jax.lax.scan(step, (net, tx.init(net)), keys(0, 40)))(net)
    assert tc[-10:].mean() > 0.5


def test_dip_vae_is_numpys_covariance():
    key = jax.random.key(0)
    covariance = np.cov((X @ OTHER_A + OTHER_C).T, bias=True)
    covariances = {1: covariance, 2: covariance + np.diag(np.exp(OTHER_LOGVAR))}
    for kind, c in covariances.items():
        terms = terms_of("dip_vae", OTHER, key, kind=kind, off_diagonal=3.0, diagonal=5.0)
        want = 3 * 2 * c[0, 1] ** 2 + 5 * ((np.diag(c) - 1) ** 2).sum()
        assert_nats(terms.extra["penalty"], want)
        assert_nats(terms.loss, want - terms.elbo)
    with pytest.raises(UserError, match=r"kind=3"):
        OBJECTIVES["dip_vae"](MODEL, OTHER, BATCH, batch_keys(key), kind=3)


def test_mmd_is_the_double_loop_and_unbiased():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(7, 3))
    b = rng.normal(size=(7, 3)) + 0.5

    def k(u, v):
        return math.exp(-((u - v) ** 2).sum() / 6)

    within = 0.0
    for s in (a, b):
        within += sum(k(u, v) for u, v in itertools.permutations(s, 2)) / 42
    across = sum(k(u, v) for u, v in itertools.product(a, b)) / 49
    assert_nats(mmd(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)), within - 2 * across)
    repeats = jnp.asarray(rng.normal(size=(2, 4000, 6, 3)), jnp.float32)
    mean, error = mean_and_error(jit(jax.vmap(mmd))(*repeats))
    # The biased estimate would be 2 (1 − E k) / 6 = 0.16.
    assert abs(mean) < 4 * error and error < 0.004
    key = jax.random.key(0)
    terms = terms_of("info_vae", OTHER, key, alpha=0.25, weight=10.0)
    assert_nats(terms.loss, 0.75 * terms.kl - terms.log_px + 9.25 * terms.extra["mmd"])


@pytest.mark.parametrize("name", ["beta_tcvae", "factor_vae", "dip_vae", "info_vae"])
def test_rows_that_fill_a_batch_up_are_in_no_statistic(name):
    """Of twenty rows, fourteen are real; other rows in the place of the six change no value."""
    mask = jnp.arange(20) < 14
    objective = OBJECTIVES[name]
    params = dict(OTHER)
    images = jnp.asarray(np.random.default_rng(4).normal(size=(20, 1, P, 1)), jnp.float32)
    if hasattr(objective, "init"):
        params["objective"] = jit(lambda key: objective.init(key, MODEL))(jax.random.key(1))

    keys_B = batch_keys(jax.random.key(3), 20)

    @jit
    def values(fill):
        image = jnp.where(mask[:, None, None, None], images, fill)
        t = objective(MODEL, params, {"image": image, "n": 50, "mask": mask}, keys_B)
        return jnp.stack([t.loss, *t.extra.values()])[:, :14]

    assert_nats(values(0.0), values(1.0))
