"""The ELBO, free bits, capacity and GECO, where the evidence is known in closed form."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from tests.objectives.linear import (
    BATCH,
    LOG_PX,
    MODEL,
    OTHER,
    TRUE,
    B,
    D,
    assert_close,
    assert_nats,
    batch_keys,
    bounds,
    float32,
    jit,
    keys,
    linear,
    loss,
    mean_and_error,
    terms_of,
)
from vae_jax import models
from vae_jax.config import UserError
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.evidence import kl_per_dimension


def test_with_an_analytic_kl_the_elbo_is_the_evidence_only_in_expectation():
    values = bounds("elbo", TRUE, 2, 4000)
    mean, error = mean_and_error(values)
    assert (values.std(0) > 0.3).all()  # log p(x|z) − KL does vary with z
    assert (np.abs(mean - LOG_PX) < 4 * error).all() and (error < 0.03).all()


def test_a_group_below_the_free_bits_gets_no_gradient_from_its_kl():
    """Dimension 1 has next to no rate, dimension 0 much.

    Their KL gradients are those of beta = 0 and of beta = 1.
    """
    params = jax.tree.map(lambda a: a, OTHER)
    params["encoder"] = {
        "a": OTHER["encoder"]["a"].at[:, 1].multiply(0.01),
        "c": jnp.array([0.3, 0.02]),
    }
    params["posterior"] = {"logvar": jnp.array([-1.0, -0.1])}
    key = jax.random.key(0)

    def grad(params, key, name, **kwargs):
        g = jax.grad(loss(name, **kwargs))(params, key)
        return {"a": g["encoder"]["a"], "c": g["encoder"]["c"], "logvar": g["posterior"]["logvar"]}

    @jit
    def run(params, key):
        at = functools.partial(grad, params, key)
        kl_BxD = kl_per_dimension(MODEL.encode(params, BATCH["image"]), MODEL.prior(params))
        return kl_BxD, at("free_bits", nats=0.5), at("elbo", beta=0.0), at("elbo")

    kl_BxD, free, none, whole = run(params, key)
    assert kl_BxD[:, 0].mean() > 0.5 > 10 * kl_BxD[:, 1].mean()
    for name in free:
        assert_nats(free[name][..., 0], whole[name][..., 0])
        assert_nats(free[name][..., 1], none[name][..., 1])
        assert np.abs(whole[name][..., 1] - none[name][..., 1]).max() > 1e-4
    terms = terms_of("free_bits", params, key, nats=0.5)
    assert_nats(terms.loss, kl_BxD[:, 0] + 0.5 - terms.log_px)
    assert_nats(terms.elbo, terms.log_px - kl_BxD.sum(-1))
    level = terms_of("free_bits", params, key, nats=100.0, per="level")
    assert_nats(level.loss, 100 - terms.log_px)
    # The mean over the real examples decides: a masked one whose rate is huge does not count.
    far = {"image": BATCH["image"].at[0].add(1e6), "mask": jnp.arange(B) > 0}
    masked = terms_of("free_bits", params, key, far, nats=0.5)
    assert_nats(masked.loss[1:], terms.loss[1:])
    with pytest.raises(UserError, match=r"per=pixel"):
        OBJECTIVES["free_bits"](MODEL, params, BATCH, batch_keys(key), per="pixel")
    with pytest.raises(UserError, match="per=level"):
        OBJECTIVES["free_bits"](MODEL, TRUE, BATCH, batch_keys(key))


def test_capacity_and_geco():
    key = jax.random.key(0)
    elbo = terms_of("elbo", OTHER, key)
    capacity = terms_of("capacity", OTHER, key, capacity=2.0, gamma=30.0)
    assert_nats(capacity.loss, 30 * np.abs(elbo.kl - 2) - elbo.log_px)
    assert_nats(capacity.elbo, elbo.elbo)
    assert OBJECTIVES["geco"].init(key, MODEL) == {"log_multiplier": 0}
    params = {**OTHER, "objective": {"log_multiplier": jnp.float32(0.3)}}

    def nets(p):
        t = OBJECTIVES["elbo"](MODEL, p, BATCH, batch_keys(key))
        return t.kl.mean() - math.exp(0.3) * t.log_px.mean()

    want = jit(jax.grad(nets))(OTHER)
    for target, sign in ((0.0, -1), (100.0, 1)):  # violated: descent raises λ; met: it lowers it
        terms = terms_of("geco", params, key, target=target)
        assert_nats(terms.loss, elbo.kl + math.exp(0.3) * (-elbo.log_px - target))
        grad = jit(jax.grad(loss("geco", target=target)))(params, key)
        multiplier = grad.pop("objective")["log_multiplier"]
        assert_nats(multiplier, math.exp(0.3) * (elbo.log_px + target).mean())
        assert np.sign(multiplier) == sign
        assert_close(grad, want, atol=1e-4)


def test_scale_gradient_keeps_every_bit():
    sizes = 10.0 ** np.linspace(-37, 37, 1000)
    z = jnp.asarray(np.random.default_rng(0).normal(size=1000) * sizes, jnp.float32)

    @jit
    def run(z, scale):
        value, back = jax.vjp(lambda z: models.scale_gradient(z, scale), z)
        return value, back(jnp.ones_like(z))[0]

    for scale in (0.0, 0.3, 1.0):
        value, gradient = run(z, scale)
        np.testing.assert_array_equal(value, z)
        np.testing.assert_allclose(gradient, scale, rtol=1e-6)


def test_draws_and_densities_pass_the_gradients_that_they_say():
    x = BATCH["image"]
    keys_B = batch_keys(jax.random.key(0))
    stop = jax.lax.stop_gradient

    def latent(params):
        return MODEL.draw(params, x, keys_B).z

    def g(function):
        grad = jit(jax.grad(lambda p: jnp.sum(function(p))))(OTHER)
        flat = {}
        for name, tree in grad.items():
            flat[name] = jnp.concatenate([jnp.ravel(a) for a in jax.tree.leaves(tree)])
        return flat

    zero = g(lambda p: MODEL.log_joint(p, x, stop(latent(p))))
    assert (zero["encoder"] == 0).all() and (zero["posterior"] == 0).all()
    assert (np.abs(zero["decoder"]) > 0).any()
    plain = g(lambda p: MODEL.log_joint(p, x, latent(p)))
    assert np.abs(plain["encoder"]).max() > 0.1
    quarter = g(lambda p: MODEL.log_joint(p, x, models.scale_gradient(latent(p), 0.25)))
    assert_close(quarter["encoder"], 0.25 * plain["encoder"])
    assert_close(quarter["decoder"], plain["decoder"])
    # Through log q: z alone (the path), its parameters alone (the score), and both.
    path = g(lambda p: MODEL.log_posterior(stop(p), x, latent(p)))
    score = g(lambda p: MODEL.log_posterior(p, x, stop(latent(p))))
    both = g(lambda p: MODEL.log_posterior(p, x, latent(p)))
    assert_close(jax.tree.map(jnp.add, path, score), both, atol=1e-4)
    d = jit(MODEL.draw)(OTHER, x, keys_B)
    log_w = jit(lambda z: MODEL.log_joint(OTHER, x, z) - MODEL.log_posterior(OTHER, x, z))(d.z)
    assert_nats(log_w, d.log_w)


def test_a_trained_linear_vae_is_the_maximum_likelihood_pca():
    """With s² at its optimum, the ELBO's maximum is the ML evidence, even with a diagonal q.

    Tipping & Bishop 1999, eq. 8 and 15: s² is the mean of the eigenvalues left out. Lucas et al.
    2019 (arXiv:1911.02469), Theorem 1: the linear VAE has this global optimum and no worse local
    one.
    """
    pixels = 6
    n = 100
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(pixels, D)) * [1.0, 0.5]
    x = rng.normal(size=(n, D)) @ mixing.T
    x = x + 0.5 * rng.normal(size=(n, pixels)) + rng.normal(size=pixels)
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    s2 = eigenvalues[D:].mean()
    log_det = np.log(eigenvalues[:D]).sum() + (pixels - D) * math.log(s2)
    evidence = -0.5 * (pixels * math.log(2 * math.pi) + log_det + pixels)
    model = linear(pixels, D, s2)
    batch = {"image": jnp.asarray(x, jnp.float32).reshape(n, 1, pixels, 1)}
    fixed = float32({"prior": {"mu": np.zeros(D), "logvar": np.zeros(D)}})
    start = float32(
        {
            "encoder": {"a": 0.1 * rng.normal(size=(pixels, D)), "c": np.zeros(D)},
            "posterior": {"logvar": np.zeros(D)},
            "decoder": {"w": 0.1 * rng.normal(size=(pixels, D)), "b": np.zeros(pixels)},
        }
    )
    tx = optax.adam(optax.cosine_decay_schedule(0.03, 3000))

    def step(carry, key):
        params, opt = carry

        def f(p):
            return OBJECTIVES["elbo"](model, p | fixed, batch, batch_keys(key, n)).loss.mean()

        updates, opt = tx.update(jax.grad(f)(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    (params, _), _ = jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys(0, 3000)))(start)
    # The trained ELBO without noise: E log p(x|z) of a Gaussian q in closed form.
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    w = p["decoder"]["w"]
    mu = x @ p["encoder"]["a"] + p["encoder"]["c"]
    variance = np.exp(p["posterior"]["logvar"])
    error = ((x - mu @ w.T - p["decoder"]["b"]) ** 2).sum(-1) + (w**2).sum(0) @ variance
    log_px = -0.5 * (pixels * math.log(2 * math.pi * s2) + error / s2)
    kl = 0.5 * (mu**2 + variance - 1 - p["posterior"]["logvar"]).sum(-1)
    elbo = (log_px - kl).mean()
    assert evidence - 0.01 < elbo < evidence + 1e-5
    # The columns of W span the leading eigenvectors' plane, with lengths sqrt(λ − s²).
    np.testing.assert_allclose(np.sort((w**2).sum(0))[::-1], eigenvalues[:D] - s2, rtol=0.05)
