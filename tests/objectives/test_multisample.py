"""Bounds of K samples: their values, their order, and the gradients of their estimators."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.linear import (
    BATCH,
    LOG_PX,
    MODEL,
    OTHER,
    OTHER_A,
    OTHER_C,
    OTHER_LOGVAR,
    TRUE,
    TVO_EDGES,
    B,
    X,
    assert_close,
    assert_equal_means,
    assert_nats,
    batch_keys,
    bounds,
    exact_tvo,
    gradients,
    jit,
    keys,
    kl_of_other,
    loss,
    mean_and_error,
)
from vae_jax import distributions as densities
from vae_jax.objectives import OBJECTIVES, sample_k


def test_with_the_true_posterior_every_bound_is_the_evidence_of_every_example():
    """All weights w = p(x), so whatever mean of them is taken, one draw is enough."""
    numbers_of = {
        "iwae": [{"samples": 1}, {"samples": 5}, {"estimator": "stl"}, {"estimator": "dreg"}],
        "miwae": [{"groups": 2, "samples": 3}, {"groups": 2, "samples": 3, "estimator": "dreg"}],
        "ciwae": [{"samples": 3}],
        "piwae": [{"groups": 2, "samples": 3}],
        "renyi": [{"alpha": a, "samples": 3} for a in (-1.0, 0.0, 0.5, 1.0, 2.0)],
        "vr_max": [{"samples": 3}],
        "tvo": [{"samples": 3}, {"samples": 3, "partitions": 1}],
        "elbo": [{"stl": True}],  # the KL is the sampled one
    }

    @jit
    def run(key):
        terms = {}
        for name, cases in numbers_of.items():
            for numbers in cases:
                title = f"{name} {numbers}"
                terms[title] = OBJECTIVES[name](MODEL, TRUE, BATCH, batch_keys(key), **numbers)
        return terms, MODEL.draw(TRUE, BATCH["image"], batch_keys(key))

    terms, draw = run(jax.random.key(1))
    assert_nats(draw.log_w, LOG_PX)
    for title, t in terms.items():
        assert_nats(-t.loss, LOG_PX, err_msg=title)
        if "iw" in t.extra:
            assert_nats(t.extra["iw"], LOG_PX, err_msg=title)


def test_bounds_rise_to_the_evidence():
    n = 4000
    elbo, e0 = mean_and_error(bounds("elbo", OTHER, 0, n))
    iw1, e1 = mean_and_error(bounds("iwae", OTHER, 1, n, samples=1))
    iw2, e2 = mean_and_error(bounds("iwae", OTHER, 2, n, samples=2))
    iw10, e10 = mean_and_error(bounds("iwae", OTHER, 3, n, samples=10))
    exact = LOG_PX - kl_of_other()
    assert (kl_of_other() > 0.15).all()  # another q
    assert (np.abs(elbo - exact) < 4 * e0).all() and (np.abs(iw1 - exact) < 4 * e1).all()
    assert (iw1 + 4 * np.hypot(e1, e2) < iw2).all()
    assert (iw2 + 4 * np.hypot(e2, e10) < iw10).all()
    assert (iw10 < LOG_PX + 4 * e10).all()
    # E (1/K) Σ w = p(x), whatever K is.
    mean, error = mean_and_error(np.exp(bounds("iwae", OTHER, 9, n, samples=10) - LOG_PX))
    assert (np.abs(mean - 1) < 4 * error).all()


def test_renyi_bounds_are_ordered_in_alpha_draw_by_draw():
    """A power mean does not fall with its order 1 − alpha; the largest weight is its limit."""
    alphas = jnp.array([1.0, 0.999, 0.9, 0.5, 0.0, -1.0, -5.0])

    def run(key):
        def value(name, **numbers):
            t = OBJECTIVES[name](MODEL, OTHER, BATCH, batch_keys(key), samples=6, **numbers)
            return -t.loss

        orders = jax.vmap(lambda alpha: value("renyi", alpha=alpha))(alphas)
        log_w = sample_k(MODEL, OTHER, BATCH["image"], batch_keys(key), 6).log_w
        return orders, value("vr_max"), log_w

    values = jax.tree.map(np.float64, jit(jax.vmap(run))(keys(0, 50)))
    orders, largest, log_w = values
    rows = [*orders.swapaxes(0, 1), largest]
    for low, high in itertools.pairwise(rows):
        assert (high >= low - 2e-4).all()
    assert (rows[-1] > rows[4] + 1e-3).all()  # vr_max > iwae
    assert_nats(rows[3], 2 * np.log(np.exp(0.5 * log_w).mean(1)))
    assert_nats(rows[0], log_w.mean(1))
    assert_nats(rows[4], np.log(np.exp(log_w).mean(1)))
    assert_nats(rows[1], rows[0], atol=3e-3)


def test_tvo_is_its_integral_and_lies_between_the_elbo_and_the_evidence():
    exact = jit(exact_tvo, static_argnums=1)
    want = np.asarray(exact(OTHER, TVO_EDGES))
    # The oracle itself.
    assert_nats(exact(OTHER, (0.0, 1.0)), LOG_PX - kl_of_other(), atol=1e-4)
    values = bounds("tvo", OTHER, 3, 100, samples=1000, partitions=3, beta1=0.1)
    mean, error = mean_and_error(values)
    # Self-normalised weights have a bias of order 1/K.
    assert (np.abs(mean - want) < 4 * error + 1e-3).all()
    assert (LOG_PX - kl_of_other() + 0.05 < mean).all() and (mean < LOG_PX - 0.01).all()


def test_identities():
    k = 6

    @jit
    def run(key):
        keys_B = batch_keys(key)

        def f(name, **numbers):
            return OBJECTIVES[name](MODEL, OTHER, BATCH, keys_B, **numbers)

        first = densities.split_keys(keys_B, 1)[0]
        return {
            "log_w": sample_k(MODEL, OTHER, BATCH["image"], keys_B, k).log_w,
            "elbo": f("elbo", samples=k),
            "beta": f("elbo", samples=k, beta=1.0),
            "beta4": f("elbo", samples=k, beta=4.0),
            "free": f("free_bits", samples=k, nats=0.0),
            "free_level": f("free_bits", samples=k, nats=0.0, per="level"),
            "iwae": f("iwae", samples=k),
            "stl": f("iwae", samples=k, estimator="stl"),
            "dreg": f("iwae", samples=k, estimator="dreg"),
            "renyi0": f("renyi", samples=k, alpha=0.0),
            "renyi1": f("renyi", samples=k, alpha=1.0),
            "miwae": f("miwae", groups=1, samples=k),
            "iwae_first": OBJECTIVES["iwae"](MODEL, OTHER, BATCH, first, samples=k),
            "ciwae0": f("ciwae", samples=k, beta=0.0),
            "ciwae1": f("ciwae", samples=k, beta=1.0),
            "tvo1": f("tvo", samples=k, partitions=1),
            "piwae": f("piwae", groups=2, samples=k // 2),
        }

    t = run(jax.random.key(4))
    log_w = np.asarray(t.pop("log_w"), np.float64)
    iw = np.log(np.exp(log_w).mean(0))
    assert_nats(t["elbo"].loss, -t["elbo"].elbo)
    assert_nats(t["beta4"].loss, t["elbo"].loss + 3 * t["elbo"].kl)
    assert_nats(t["beta4"].elbo, t["elbo"].elbo)  # the bound is reported whatever the loss is
    for same in ("beta", "free", "free_level"):
        assert_nats(t[same].loss, t["elbo"].loss, err_msg=same)
    for same in ("iwae", "stl", "dreg", "renyi0", "ciwae0", "piwae"):
        assert_nats(-t[same].loss, iw, err_msg=same)
        assert_nats(t[same].extra["iw"], iw, err_msg=same)
    for same in ("renyi1", "ciwae1", "tvo1"):
        assert_nats(-t[same].loss, log_w.mean(0), err_msg=same)
    assert_nats(t["miwae"].loss, t["iwae_first"].loss)
    mu = X @ OTHER_A + OTHER_C
    exact_kl_BxD = 0.5 * (mu**2 + np.exp(OTHER_LOGVAR) - 1 - OTHER_LOGVAR)
    assert_nats(t["elbo"].kl, exact_kl_BxD.sum(-1))


@pytest.mark.parametrize(
    ("name", "numbers"),
    [("elbo", {"stl": True}), ("iwae", {"estimator": "stl"}), ("iwae", {"estimator": "dreg"})],
)
def test_at_the_optimum_path_gradients_have_no_variance(name, numbers):
    path = gradients(loss(name, **numbers), TRUE, 0, 100)
    plain = gradients(loss(name), TRUE, 0, 100)
    for part in ("encoder", "posterior"):
        for a in jax.tree.leaves(path[part]):
            assert np.abs(a).max() < 1e-4

        spreads = [np.asarray(a).std(0).max() for a in jax.tree.leaves(plain[part])]
        assert max(spreads) > 0.05


def test_unbiased_estimators_have_the_same_expectation():
    n = 20_000

    def of(name, seed, n=n, **numbers):
        return gradients(loss(name, **numbers), OTHER, seed, n)

    elbo = of("elbo", 0)
    assert_equal_means(elbo, jit(jax.grad(lambda p: -exact_tvo(p, (0.0, 1.0)).mean()))(OTHER))
    assert_equal_means(of("elbo", 1, stl=True), elbo)
    assert_equal_means(of("iwae", 2, n // 2, samples=1, estimator="stl"), elbo)
    pathwise = of("iwae", 3, samples=5)
    assert_equal_means(of("iwae", 4, samples=5, estimator="dreg"), pathwise)
    with pytest.raises(AssertionError):  # known to be biased for K > 1: the test can tell
        assert_equal_means(of("iwae", 5, samples=5, estimator="stl"), pathwise)
    miwae = of("miwae", 6, n // 2, groups=2, samples=5, estimator="dreg")
    assert_equal_means(miwae, pathwise)
    half = jax.tree.map(lambda a, b: 0.5 * (a + b), elbo, pathwise)
    assert_equal_means(of("ciwae", 7, beta=0.5, samples=5, estimator="dreg"), half)


def test_piwae_has_the_gradients_of_iwae_and_of_miwae():
    m = 3
    k = 4
    key = jax.random.key(0)

    def miwae(params):
        """Of the same draws."""
        d = sample_k(MODEL, params, BATCH["image"], batch_keys(key), m * k)
        log_w_MxKxB = d.log_w.reshape(m, k, B)
        return -(jax.nn.logsumexp(log_w_MxKxB, axis=1) - math.log(k)).mean()

    grad = jit(jax.grad(loss("piwae", groups=m, samples=k)))(OTHER, key)
    theta = jit(jax.grad(loss("iwae", samples=m * k)))(OTHER, key)
    phi = jit(jax.grad(miwae))(OTHER)
    for part in ("decoder", "prior"):
        assert_close(grad[part], theta[part])
    for part in ("encoder", "posterior"):
        assert_close(grad[part], phi[part])
        gaps = jax.tree.map(lambda a, b: np.abs(a - b).max(), theta[part], phi[part])
        assert max(jax.tree.leaves(gaps)) > 1e-2


@pytest.mark.parametrize(
    ("edges", "samples", "n"), [((0.0, 1.0), 3, 20_000), (TVO_EDGES, 400, 400)]
)
def test_tvos_covariance_gradient_is_that_of_its_bound(edges, samples, n):
    """J = 1 is unbiased with few samples; the rest have a bias of order 1/K."""
    exact = jit(jax.grad(lambda p: -exact_tvo(p, edges).mean()))(OTHER)
    got = gradients(loss("tvo", samples=samples, partitions=len(edges) - 1, beta1=0.1), OTHER, 0, n)
    assert_equal_means(got, exact)
