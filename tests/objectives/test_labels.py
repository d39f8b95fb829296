"""Objectives that learn from labels, on a built model."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax

from tests.objectives.built import LATENT, SHAPE, Y, built, images
from tests.objectives.linear import (
    BATCH,
    MODEL,
    OTHER,
    B,
    assert_nats,
    batch_keys,
    jit,
)
from vae_jax.config import UserError
from vae_jax.objectives import OBJECTIVES, cross_entropy, sample_k


def test_joint_with_a_labelled_prior_is_the_bound_on_both():
    """With gamma = 1 and p(y|z) by Bayes' rule: the bound on log p(x, y), draw by draw.

    log p(x|z) + log p(z|y) + log p(y) - log q(z|x).
    """
    m = built("gaussian", "labelled", classifier="bayes")
    params = jit(m.init)(jax.random.key(0))
    prior = params["prior"]
    prior["logvar"] = jnp.linspace(-1, 1, Y * LATENT).reshape(Y, LATENT)
    batch = images()
    keys_B = batch_keys(jax.random.key(1))

    @jit
    def run(params):
        d = sample_k(m, params, batch["image"], keys_B, 3)
        log_qz = m.log_posterior(params, batch["image"], d.z)
        return OBJECTIVES["joint"](m, params, batch, keys_B, samples=3), d, log_qz

    terms, d, log_qz = run(params)
    scale = np.exp(0.5 * prior["logvar"])
    columns = []
    for b, y in enumerate(batch["label"]):
        columns.append(stats.norm(prior["mu"][y], scale[y]).logpdf(d.z[:, b]).sum(-1))
    log_pz_KxB = np.stack(columns, axis=1)
    want_B = (d.log_px + log_pz_KxB - math.log(Y) - log_qz).mean(0)
    assert_nats(-terms.loss, want_B)
    assert_nats(terms.elbo, (d.log_px + m.prior(params).log_prob(d.z) - log_qz).mean(0))


def test_joint_adds_the_cross_entropy():
    logits = np.random.default_rng(0).normal(size=(4, Y)).astype(np.float32)
    label = np.array([0, 2, 1, 1])
    ce, hit = cross_entropy(jnp.asarray(logits), jnp.asarray(label))
    assert_nats(ce, -log_softmax(logits, axis=1)[np.arange(4), label])
    np.testing.assert_array_equal(hit, logits.argmax(1) == label)
    model = built("gaussian", "normal")
    key = jax.random.key(0)
    batch = {"image": jnp.ones((B, *SHAPE)), "label": jnp.arange(B)}

    @jit
    def run(key):
        params = model.init(key)
        elbo = OBJECTIVES["elbo"](model, params, batch, batch_keys(key))
        return elbo, OBJECTIVES["joint"](model, params, batch, batch_keys(key), gamma=4.0)

    elbo, t = run(key)
    assert_nats(t.loss, elbo.loss + 4 * t.extra["cross_entropy"])
    assert_nats(t.elbo, elbo.elbo)
    with pytest.raises(UserError, match=r"classifier\.name=mlp"):
        OBJECTIVES["supervised"](MODEL, OTHER, BATCH, batch_keys(key))
