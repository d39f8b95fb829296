"""Objectives on models whose evidence, posterior and gradients are known in closed form.

Most tests stand on probabilistic PCA: p(z) = N(0, I), p(x|z) = N(Wz + b, s² I), so that log p(x) is a Gaussian's
and the posterior is a Gaussian with a full covariance. Statements about expectations are tested within 4 standard
errors of a mean over independent keys.
"""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from vae_jax import config, data, models
from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.evaluate import likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import rules as sharding
from vae_jax.objectives import OBJECTIVES, cross_entropy, sample_k
from vae_jax.objectives.aggregate import mmd
from vae_jax.objectives.evidence import kl_per_dimension, path_log_w

P, D, B, S2 = 5, 2, 3, 0.4
# Programs here are compiled once and run once: compiling is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
LN = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)  # nats in float32


def linear(pixels=P, latent=D, s2=S2):
    """Probabilistic PCA as a Model; q(z|x) = N(Ax + c, Σ), Σ full or diagonal, the same for every x."""
    matmul = functools.partial(jnp.matmul, precision="highest")

    def encode(params, x, y=None):
        mu = matmul(x.reshape(len(x), -1), params["encoder"]["a"]) + params["encoder"]["c"]
        q = params["posterior"]
        if "scale_tril" in q:
            return densities.FullNormal(
                mu, jnp.broadcast_to(jnp.tril(q["scale_tril"]), (*mu.shape, latent))
            )
        return densities.Normal(mu, jnp.broadcast_to(q["logvar"], mu.shape))

    def decode(params, z, y=None):
        return (matmul(z, params["decoder"]["w"].T) + params["decoder"]["b"]).reshape(
            -1, 1, pixels, 1
        )

    likelihood = densities.LIKELIHOODS["gaussian"](logvar=math.log(s2))
    return models.vae(
        models.Spec((1, pixels, 1), 0, latent, likelihood),
        models.Parts(
            None, encode, lambda params: densities.Normal(**params["prior"]), decode, None
        ),
    )


def posterior(w, s2=S2):
    """(A, Σ) of the true posterior N(Aᵀ(x − b), Σ)."""
    covariance = np.linalg.inv(np.eye(w.shape[1]) + w.T @ w / s2)
    return w @ covariance / s2, covariance


def float32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


def close(a, b, **kwargs):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        LN(x, y, **kwargs)


RNG = np.random.default_rng(0)
W, BIAS = RNG.normal(size=(P, D)), RNG.normal(size=P)
X = RNG.multivariate_normal(BIAS, W @ W.T + S2 * np.eye(P), size=B)
LOG_PX = stats.multivariate_normal(BIAS, W @ W.T + S2 * np.eye(P)).logpdf(X)
A, SIGMA = posterior(W)
MODEL = linear()
BATCH = {"image": jnp.asarray(X, jnp.float32).reshape(B, 1, P, 1), "n": 50}
GENERATIVE = {"prior": {"mu": np.zeros(D), "logvar": np.zeros(D)}, "decoder": {"w": W, "b": BIAS}}
TRUE = float32(
    {
        **GENERATIVE,
        "encoder": {"a": A, "c": -BIAS @ A},
        "posterior": {"scale_tril": np.linalg.cholesky(SIGMA)},
    }
)
# Another q: moved, half turned to the truth, with independent dimensions.
OTHER_A, OTHER_C, OTHER_LOGVAR = (
    0.8 * A,
    -0.8 * BIAS @ A + [0.3, -0.2],
    np.log(np.diag(SIGMA)) + [0.5, -0.3],
)
OTHER = float32(
    {**GENERATIVE, "encoder": {"a": OTHER_A, "c": OTHER_C}, "posterior": {"logvar": OTHER_LOGVAR}}
)


def loss(name, **kwargs):
    """(params, key) → mean loss over the batch."""
    return lambda params, key: OBJECTIVES[name](
        MODEL, params, BATCH, batch_keys(key), **kwargs
    ).loss.mean()


def terms_of(name, params, key, batch=BATCH, **kwargs):
    return jit(lambda p, b, k: OBJECTIVES[name](MODEL, p, b | {"n": BATCH["n"]}, k, **kwargs))(
        params, {k: v for k, v in batch.items() if k != "n"}, keys_of(batch, key)
    )


def batch_keys(key, n=B):
    """A key for each example of a batch."""
    return jax.random.split(key, n)


def keys_of(batch, key):
    return batch_keys(key, len(batch["image"]))


def keys(seed, n):
    return jax.random.split(jax.random.key(seed), n)


def bounds(name, params, seed, n, **kwargs):
    """−loss of n independent keys: n×B."""

    def one(key):
        return -OBJECTIVES[name](MODEL, params, BATCH, batch_keys(key), **kwargs).loss

    return np.asarray(jit(jax.vmap(one))(keys(seed, n)), np.float64)


def gradients(function, params, seed, n):
    """The gradients of n independent keys, each leaf n×…."""
    return jit(jax.vmap(jax.grad(function), (None, 0)))(params, keys(seed, n))


def mean_and_error(a):
    a = np.asarray(a, np.float64)
    return a.mean(0), a.std(0, ddof=1) / math.sqrt(len(a))


def agree(a, b):
    """Equal expectations, entry by entry, of leaves n×…; ``b`` may be exact (leaves of no sample axis)."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        mean, error = mean_and_error(x)
        other, error_2 = mean_and_error(y) if y.ndim == x.ndim else (np.asarray(y, np.float64), 0.0)
        np.testing.assert_array_less(
            np.abs(mean - other), 4 * np.sqrt(error**2 + error_2**2) + 1e-6
        )


# Values


def test_with_the_true_posterior_every_bound_is_the_evidence_of_every_example():
    """All weights w = p(x), so whatever mean of them is taken, one draw is enough."""
    of = {
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
        terms = {
            (n, i): OBJECTIVES[n](MODEL, TRUE, BATCH, batch_keys(key), **k)
            for n, many_ in of.items()
            for i, k in enumerate(many_)
        }
        return terms, MODEL.draw(TRUE, BATCH["image"], batch_keys(key))

    terms, draw = run(jax.random.key(1))
    LN(draw.log_w, LOG_PX)
    for name, t in terms.items():
        LN(-t.loss, LOG_PX, err_msg=str(name))
        if "iw" in t.extra:
            LN(t.extra["iw"], LOG_PX, err_msg=str(name))


def test_with_an_analytic_kl_the_elbo_is_the_evidence_only_in_expectation():
    values = bounds("elbo", TRUE, 2, 4000)
    mean, error = mean_and_error(values)
    assert (values.std(0) > 0.3).all()  # log p(x|z) − KL does vary with z
    assert (np.abs(mean - LOG_PX) < 4 * error).all() and (error < 0.03).all()


def kl_of_other():
    """KL(q ‖ p(z|x)) of each example, in numpy."""
    mu, precision = X @ OTHER_A + OTHER_C, np.linalg.inv(SIGMA)
    distance = mu - (X - BIAS) @ A
    variance = np.exp(OTHER_LOGVAR)
    quadratic = np.einsum("bi,ij,bj->b", distance, precision, distance)
    return 0.5 * (
        np.diag(precision) @ variance
        + quadratic
        - D
        + np.linalg.slogdet(SIGMA)[1]
        - OTHER_LOGVAR.sum()
    )


def test_bounds_rise_to_the_evidence():
    n = 4000
    stack = [
        ("elbo", {}),
        ("iwae", {"samples": 1}),
        ("iwae", {"samples": 2}),
        ("iwae", {"samples": 10}),
    ]
    values = [bounds(name, OTHER, i, n, **kwargs) for i, (name, kwargs) in enumerate(stack)]
    (elbo, e0), (iw1, e1), (iw2, e2), (iw10, e10) = (mean_and_error(v) for v in values)
    exact = LOG_PX - kl_of_other()
    assert (kl_of_other() > 0.15).all()  # another q
    assert (np.abs(elbo - exact) < 4 * e0).all() and (np.abs(iw1 - exact) < 4 * e1).all()
    assert (iw1 + 4 * np.hypot(e1, e2) < iw2).all()
    assert (iw2 + 4 * np.hypot(e2, e10) < iw10).all()
    assert (iw10 < LOG_PX + 4 * e10).all()
    weights = np.exp(
        bounds("iwae", OTHER, 9, n, samples=10) - LOG_PX
    )  # E (1/K) Σ w = p(x), whatever K is
    mean, error = mean_and_error(weights)
    assert (np.abs(mean - 1) < 4 * error).all()


def test_renyi_bounds_are_ordered_in_alpha_draw_by_draw():
    """A power mean does not fall with its order 1 − alpha; the largest weight is its limit."""
    alphas = jnp.array([1.0, 0.999, 0.9, 0.5, 0.0, -1.0, -5.0])

    def run(key):
        def value(name, **kwargs):
            return -OBJECTIVES[name](MODEL, OTHER, BATCH, batch_keys(key), samples=6, **kwargs).loss

        orders = jax.vmap(lambda alpha: value("renyi", alpha=alpha))(alphas)
        return (
            orders,
            value("vr_max"),
            sample_k(MODEL, OTHER, BATCH["image"], batch_keys(key), 6).log_w,
        )

    orders, largest, log_w = (np.asarray(a, np.float64) for a in jit(jax.vmap(run))(keys(0, 50)))
    rows = [*orders.swapaxes(0, 1), largest]
    assert all((high >= low - 2e-4).all() for low, high in itertools.pairwise(rows))
    assert (rows[-1] > rows[4] + 1e-3).all()  # vr_max > iwae
    LN(rows[3], 2 * np.log(np.exp(0.5 * log_w).mean(1)))
    LN(rows[0], log_w.mean(1))
    LN(rows[4], np.log(np.exp(log_w).mean(1)))
    LN(rows[1], rows[0], atol=3e-3)


def exact_tvo(params, edges):
    """Σ_j (β_j+1 − β_j) E_πβj[log w], each a Gaussian expectation: the bound's value, and by autodiff its gradient."""
    w, b, s2 = params["decoder"]["w"], params["decoder"]["b"], S2
    q, prior = params["posterior"], params["prior"]
    x = BATCH["image"].reshape(B, P)
    mu_q = x @ params["encoder"]["a"] + params["encoder"]["c"]
    precision_q = jnp.diag(jnp.exp(-q["logvar"]))
    precision_p = jnp.diag(jnp.exp(-prior["logvar"]))
    precision = precision_p + w.T @ w / s2
    eta = (x - b) @ w / s2 + precision_p @ prior["mu"]  # of p(x, z) as a function of z

    def expected(beta):
        cov = jnp.linalg.inv((1 - beta) * precision_q + beta * precision)
        mean = ((1 - beta) * mu_q @ precision_q + beta * eta) @ cov

        def normal(m, pr):  # E log N(z; m, pr⁻¹)
            squares = jnp.einsum("bi,ij,bj->b", mean - m, pr, mean - m) + jnp.trace(pr @ cov)
            return -0.5 * (squares - jnp.linalg.slogdet(pr)[1] + D * math.log(2 * math.pi))

        residual = x - b - mean @ w.T
        log_px = -0.5 * (
            (residual**2).sum(-1) + jnp.trace(w @ cov @ w.T)
        ) / s2 - 0.5 * P * math.log(2 * math.pi * s2)
        return log_px + normal(prior["mu"], precision_p) - normal(mu_q, precision_q)

    return sum((high - low) * expected(low) for low, high in itertools.pairwise(edges))


TVO_EDGES = (0.0, 0.1, math.sqrt(0.1), 1.0)  # partitions=3, beta1=0.1


def test_tvo_is_its_integral_and_lies_between_the_elbo_and_the_evidence():
    want = np.asarray(jit(exact_tvo, static_argnums=1)(OTHER, TVO_EDGES))
    LN(
        jit(exact_tvo, static_argnums=1)(OTHER, (0.0, 1.0)), LOG_PX - kl_of_other(), atol=1e-4
    )  # the oracle itself
    mean, error = mean_and_error(
        bounds("tvo", OTHER, 3, 100, samples=1000, partitions=3, beta1=0.1)
    )
    assert (
        np.abs(mean - want) < 4 * error + 1e-3
    ).all()  # self-normalised weights: a bias of order 1/K
    assert (LOG_PX - kl_of_other() + 0.05 < mean).all() and (mean < LOG_PX - 0.01).all()


def test_identities():
    x, key, k = BATCH["image"], jax.random.key(4), 6

    @jit
    def run(key):
        def f(name, keys=batch_keys(key), **kwargs):  # noqa: B008
            return OBJECTIVES[name](MODEL, OTHER, BATCH, keys, **kwargs)

        first = densities.split_keys(batch_keys(key), 1)[0]
        return {
            "log_w": sample_k(MODEL, OTHER, x, batch_keys(key), k).log_w,
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
            "iwae_first": f("iwae", keys=first, samples=k),
            "ciwae0": f("ciwae", samples=k, beta=0.0),
            "ciwae1": f("ciwae", samples=k, beta=1.0),
            "tvo1": f("tvo", samples=k, partitions=1),
            "piwae": f("piwae", groups=2, samples=k // 2),
        }

    t = run(key)
    log_w = np.asarray(t.pop("log_w"), np.float64)
    iw = np.log(np.exp(log_w).mean(0))
    LN(t["elbo"].loss, -t["elbo"].elbo)
    LN(t["beta4"].loss, t["elbo"].loss + 3 * t["elbo"].kl)
    LN(t["beta4"].elbo, t["elbo"].elbo)  # the bound is reported whatever the loss is
    for same in ("beta", "free", "free_level"):
        LN(t[same].loss, t["elbo"].loss, err_msg=same)
    for same in ("iwae", "stl", "dreg", "renyi0", "ciwae0", "piwae"):
        LN(-t[same].loss, iw, err_msg=same)
        LN(t[same].extra["iw"], iw, err_msg=same)
    for same in ("renyi1", "ciwae1", "tvo1"):
        LN(-t[same].loss, log_w.mean(0), err_msg=same)
    LN(t["miwae"].loss, t["iwae_first"].loss)
    exact_kl = 0.5 * ((X @ OTHER_A + OTHER_C) ** 2 + np.exp(OTHER_LOGVAR) - 1 - OTHER_LOGVAR).sum(
        -1
    )
    LN(t["elbo"].kl, exact_kl)


def test_a_group_below_the_free_bits_gets_no_gradient_from_its_kl():
    """Dimension 1 has next to no rate, dimension 0 has much: their KL gradients are beta = 0's and beta = 1's."""
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
        LN(free[name][..., 0], whole[name][..., 0])
        LN(free[name][..., 1], none[name][..., 1])
        assert np.abs(whole[name][..., 1] - none[name][..., 1]).max() > 1e-4
    terms = terms_of("free_bits", params, key, nats=0.5)
    LN(terms.loss, kl_BxD[:, 0] + 0.5 - terms.log_px)
    LN(terms.elbo, terms.log_px - kl_BxD.sum(-1))
    level = terms_of("free_bits", params, key, nats=100.0, per="level")
    LN(level.loss, 100 - terms.log_px)
    # The decision is the mean over the real examples: one whose rate is huge does not count when it is masked.
    far = {"image": BATCH["image"].at[0].add(1e6), "mask": jnp.arange(B) > 0}
    masked = terms_of("free_bits", params, key, far, nats=0.5)
    LN(masked.loss[1:], terms.loss[1:])
    with pytest.raises(UserError, match=r"per=pixel"):
        OBJECTIVES["free_bits"](MODEL, params, BATCH, batch_keys(key), per="pixel")
    with pytest.raises(UserError, match="per=level"):
        OBJECTIVES["free_bits"](MODEL, TRUE, BATCH, batch_keys(key))


def test_capacity_and_geco():
    key = jax.random.key(0)
    elbo = terms_of("elbo", OTHER, key)
    held = terms_of("capacity", OTHER, key, capacity=2.0, gamma=30.0)
    LN(held.loss, 30 * np.abs(elbo.kl - 2) - elbo.log_px)
    LN(held.elbo, elbo.elbo)
    assert OBJECTIVES["geco"].init(key, MODEL) == {"log_multiplier": 0}
    params = {**OTHER, "objective": {"log_multiplier": jnp.float32(0.3)}}
    for target, sign in ((0.0, -1), (100.0, 1)):  # violated: descent raises λ; met: it lowers it
        terms = terms_of("geco", params, key, target=target)
        LN(terms.loss, elbo.kl + math.exp(0.3) * (-elbo.log_px - target))
        grad = jit(jax.grad(loss("geco", target=target)))(params, key)
        LN(grad["objective"]["log_multiplier"], -math.exp(0.3) * (-elbo.log_px - target).mean())
        assert np.sign(grad["objective"]["log_multiplier"]) == sign

        def nets(p):
            t = OBJECTIVES["elbo"](MODEL, p, BATCH, batch_keys(key))
            return t.kl.mean() - math.exp(0.3) * t.log_px.mean()

        close({k: grad[k] for k in OTHER}, jit(jax.grad(nets))(OTHER), atol=1e-4)


# Objectives on the aggregate posterior


def test_the_parts_of_the_total_correlation_decomposition():
    key, n = jax.random.key(5), BATCH["n"]
    d = jit(lambda: sample_k(MODEL, OTHER, BATCH["image"], batch_keys(key), 1))()
    z = np.asarray(d.z[0], np.float64)
    terms = terms_of("beta_tcvae", OTHER, key, alpha=2.0, beta=3.0, gamma=5.0)
    mi, tc, dimension_kl = (np.asarray(terms.extra[k]) for k in ("mi", "tc", "dimension_kl"))
    LN(mi + tc + dimension_kl, (d.log_px - d.log_w)[0], atol=5e-5)
    LN(terms.loss, 2 * mi + 3 * tc + 5 * dimension_kl - terms.log_px)
    mu, scale = X @ OTHER_A + OTHER_C, np.exp(OTHER_LOGVAR / 2)
    each = stats.norm(mu[None], scale).pdf(z[:, None])  # B(z) × B(x) × D
    log_qz, log_product = (
        np.log(each.prod(-1).sum(1) / (n * B)),
        np.log(each.sum(1) / (n * B)).sum(-1),
    )
    LN(mi, np.log(np.diagonal(each.prod(-1))) - log_qz, atol=5e-5)
    LN(tc, log_qz - log_product, atol=5e-5)
    LN(dimension_kl, log_product - stats.norm.logpdf(z).sum(-1), atol=5e-5)
    neutral = terms_of("beta_tcvae", OTHER, key, alpha=1.0, beta=1.0, gamma=1.0)
    LN(-neutral.loss, d.log_w[0], atol=5e-5)
    with pytest.raises(UserError, match=r"posterior\.name=gaussian"):
        OBJECTIVES["beta_tcvae"](MODEL, TRUE, BATCH, batch_keys(key))


def test_factor_vae_keeps_its_two_games_apart():
    key = jax.random.key(6)
    objective = OBJECTIVES["factor_vae"]
    params = {**OTHER, "objective": jit(lambda key: objective.init(key, MODEL))(jax.random.key(1))}
    terms = terms_of("factor_vae", params, key, gamma=7.0)
    LN(terms.loss, terms.kl - terms.log_px + 7 * terms.extra["tc"])

    def part(name):
        return lambda p: getattr(objective(MODEL, p, BATCH, batch_keys(key), gamma=7.0), name)

    whole = jit(jax.grad(lambda p: part("loss")(p).mean()))(params)
    own = jit(jax.grad(lambda p: part("extra")(p)["discriminator"].mean()))(params)
    close(whole["objective"], own["objective"])
    assert max(np.abs(g).max() for g in jax.tree.leaves(whole["objective"])) > 1e-3
    for name in OTHER:  # the discriminator's own loss moves nothing else
        assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(own[name]))

    def vae(p):  # the discriminator a constant
        t = objective(
            MODEL, {**p, "objective": params["objective"]}, BATCH, batch_keys(key), gamma=7.0
        )
        return (t.kl - t.log_px + 7 * t.extra["tc"]).mean()

    close({k: whole[k] for k in OTHER}, jit(jax.grad(vae))(OTHER))
    # Half of it is right: a constant net has log D − log(1 − D) = 2 and a cross-entropy of both labels.
    constant = jax.tree.map(jnp.zeros_like, params["objective"])
    constant["out"]["bias"] = jnp.array([2.5, 0.5])
    terms = terms_of("factor_vae", {**OTHER, "objective": constant}, key)
    LN(terms.extra["tc"], 2.0)
    LN(terms.extra["discriminator"], 0.5 * (math.log1p(math.exp(-2)) + math.log1p(math.exp(2))))


def test_the_discriminator_learns_the_sign_of_the_total_correlation():
    """z with two equal dimensions: the trained log D − log(1 − D) is positive on it."""
    objective, n = OBJECTIVES["factor_vae"], 64
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
            t = objective(MODEL, {**params, "objective": net}, batch, keys_of(batch, key))
            return t.loss.mean(), t.extra["tc"].mean()

        g, tc = jax.grad(f, has_aux=True)(net)
        updates, opt = tx.update(g, opt)
        return (optax.apply_updates(net, updates), opt), tc

    net = params["objective"]
    _, tc = jit(lambda net: jax.lax.scan(step, (net, tx.init(net)), keys(0, 40)))(net)
    assert tc[-10:].mean() > 0.5


def test_dip_vae_is_numpys_covariance():
    mu, variance = X @ OTHER_A + OTHER_C, np.exp(OTHER_LOGVAR)
    for kind in (1, 2):
        terms = terms_of(
            "dip_vae", OTHER, jax.random.key(0), kind=kind, off_diagonal=3.0, diagonal=5.0
        )
        c = np.cov(mu.T, bias=True) + (np.diag(variance) if kind == 2 else 0)
        want = 3 * 2 * c[0, 1] ** 2 + 5 * ((np.diag(c) - 1) ** 2).sum()
        LN(terms.extra["penalty"], want)
        LN(terms.loss, want - terms.elbo)
    with pytest.raises(UserError, match=r"kind=3"):
        OBJECTIVES["dip_vae"](MODEL, OTHER, BATCH, batch_keys(jax.random.key(0)), kind=3)


def test_mmd_is_the_double_loop_and_unbiased():
    rng = np.random.default_rng(2)
    a, b = rng.normal(size=(7, 3)), rng.normal(size=(7, 3)) + 0.5

    def k(u, v):
        return math.exp(-((u - v) ** 2).sum() / 6)

    within = sum(k(s[i], s[j]) for s in (a, b) for i in range(7) for j in range(7) if i != j) / 42
    across = sum(k(u, v) for u in a for v in b) / 49
    LN(mmd(jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)), within - 2 * across)
    repeats = jnp.asarray(rng.normal(size=(2, 4000, 6, 3)), jnp.float32)
    mean, error = mean_and_error(jit(jax.vmap(mmd))(*repeats))
    assert (
        abs(mean) < 4 * error and error < 0.004
    )  # the biased estimate would be 2 (1 − E k) / 6 = 0.16
    key = jax.random.key(0)
    terms = terms_of("info_vae", OTHER, key, alpha=0.25, weight=10.0)
    LN(terms.loss, 0.75 * terms.kl - terms.log_px + 9.25 * terms.extra["mmd"])


@pytest.mark.parametrize("name", ["beta_tcvae", "factor_vae", "dip_vae", "info_vae"])
def test_rows_that_fill_a_batch_up_are_in_no_statistic(name):
    """Twenty rows, fourteen of which are real: other rows in the place of the six change nothing of the fourteen."""
    mask, objective, params = jnp.arange(20) < 14, OBJECTIVES[name], dict(OTHER)
    drawn = jnp.asarray(np.random.default_rng(4).normal(size=(20, 1, P, 1)), jnp.float32)
    if hasattr(objective, "init"):
        params["objective"] = jit(lambda key: objective.init(key, MODEL))(jax.random.key(1))

    def figures(fill):
        image = jnp.where(mask[:, None, None, None], drawn, fill)
        t = jit(
            lambda: objective(
                MODEL,
                params,
                {"image": image, "n": 50, "mask": mask},
                batch_keys(jax.random.key(3), len(image)),
            )
        )()
        return jnp.stack([t.loss, *t.extra.values()])[:, :14]

    LN(figures(0.0), figures(1.0))


# Gradients


def test_scale_gradient_keeps_every_bit():
    z = jnp.asarray(
        np.random.default_rng(0).normal(size=1000) * 10.0 ** np.linspace(-37, 37, 1000), jnp.float32
    )

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
    close(quarter["encoder"], 0.25 * plain["encoder"])
    close(quarter["decoder"], plain["decoder"])
    # Through log q: z alone (the path), its parameters alone (the score), and both.
    path = g(lambda p: MODEL.log_posterior(stop(p), x, latent(p)))
    score = g(lambda p: MODEL.log_posterior(p, x, stop(latent(p))))
    both = g(lambda p: MODEL.log_posterior(p, x, latent(p)))
    close(jax.tree.map(jnp.add, path, score), both, atol=1e-4)
    d = jit(MODEL.draw)(OTHER, x, keys_B)
    log_w = jit(lambda z: MODEL.log_joint(OTHER, x, z) - MODEL.log_posterior(OTHER, x, z))(d.z)
    LN(log_w, d.log_w)


@pytest.mark.parametrize("name", ["elbo", "iwae", "dreg"])
def test_at_the_optimum_path_gradients_have_no_variance(name):
    stl = {"elbo": {"stl": True}, "iwae": {"estimator": "stl"}, "dreg": {"estimator": "dreg"}}[name]
    name = "elbo" if name == "elbo" else "iwae"
    path, plain = (gradients(loss(name, **k), TRUE, 0, 100) for k in (stl, {}))
    for part in ("encoder", "posterior"):
        for a in jax.tree.leaves(path[part]):
            assert np.abs(a).max() < 1e-4

    def spread(part):
        return max(np.asarray(a).std(0).max() for a in jax.tree.leaves(plain[part]))

    assert spread("encoder") > 0.05 and spread("posterior") > 0.05


def test_unbiased_estimators_have_the_same_expectation():
    n = 20_000
    elbo = gradients(loss("elbo"), OTHER, 0, n)
    agree(elbo, jit(jax.grad(lambda p: -exact_tvo(p, (0.0, 1.0)).mean()))(OTHER))
    agree(gradients(loss("elbo", stl=True), OTHER, 1, n), elbo)
    agree(gradients(loss("iwae", samples=1, estimator="stl"), OTHER, 2, n // 2), elbo)
    pathwise = gradients(loss("iwae", samples=5), OTHER, 3, n)
    agree(gradients(loss("iwae", samples=5, estimator="dreg"), OTHER, 4, n), pathwise)
    with pytest.raises(AssertionError):  # known to be biased for K > 1: the test can tell
        agree(gradients(loss("iwae", samples=5, estimator="stl"), OTHER, 5, n), pathwise)
    agree(
        gradients(loss("miwae", groups=2, samples=5, estimator="dreg"), OTHER, 6, n // 2), pathwise
    )
    half = jax.tree.map(lambda a, b: 0.5 * (a + b), elbo, pathwise)
    agree(gradients(loss("ciwae", beta=0.5, samples=5, estimator="dreg"), OTHER, 7, n), half)


def test_piwae_has_the_gradients_of_iwae_and_of_miwae():
    m, k, key = 3, 4, jax.random.key(0)

    def miwae(params):  # of the same draws
        log_w = sample_k(MODEL, params, BATCH["image"], batch_keys(key), m * k).log_w.reshape(
            m, k, B
        )
        return -(jax.nn.logsumexp(log_w, axis=1) - math.log(k)).mean()

    grad = jit(jax.grad(loss("piwae", groups=m, samples=k)))(OTHER, key)
    theta, phi = jit(jax.grad(loss("iwae", samples=m * k)))(OTHER, key), jit(jax.grad(miwae))(OTHER)
    for part in ("decoder", "prior"):
        close(grad[part], theta[part])
    for part in ("encoder", "posterior"):
        close(grad[part], phi[part])
        assert any(
            np.abs(a - b).max() > 1e-2
            for a, b in zip(*map(jax.tree.leaves, (theta[part], phi[part])), strict=True)
        )


@pytest.mark.parametrize(
    ("edges", "samples", "n"), [((0.0, 1.0), 3, 20_000), (TVO_EDGES, 400, 400)]
)
def test_tvos_covariance_gradient_is_that_of_its_bound(edges, samples, n):
    """J = 1 is unbiased with few samples; self-normalised weights leave a bias of order 1/K to the rest."""
    exact = jit(jax.grad(lambda p: -exact_tvo(p, edges).mean()))(OTHER)
    got = gradients(loss("tvo", samples=samples, partitions=len(edges) - 1, beta1=0.1), OTHER, 0, n)
    agree(got, exact)


# Evaluation


@pytest.mark.parametrize("chunk", [1, 7, 50, 64])
def test_streaming_log_weights_is_the_direct_sum(chunk):
    log_w = np.random.default_rng(0).normal(-90, 8, size=(4, 64)).astype(np.float32)
    log_w[0, 5], log_w[1] = -np.inf, -500
    carry = (jnp.full(4, -jnp.inf),) * 2
    for start in range(0, 64, chunk):
        carry = likelihood.add_log_weights(carry, jnp.asarray(log_w[:, start : start + chunk]))
    from scipy.special import logsumexp

    np.testing.assert_allclose(carry[0], logsumexp(log_w.astype(np.float64), axis=1), rtol=1e-6)
    np.testing.assert_allclose(carry[1], logsumexp(2 * log_w.astype(np.float64), axis=1), rtol=1e-6)


def test_log_likelihood_does_not_depend_on_batches_chunks_or_devices():
    c = config.default()
    c.latent = 3
    c.encoder, c.decoder = (
        config.call("encoder", "mlp", widths=(8,)),
        config.call("decoder", "mlp", widths=(8,)),
    )
    dataset = data.load(c.data)
    split = data.Split(dataset.test.image[:21], dataset.test.label[:21])
    model = models.build_for(c, dataset)
    params, key, k = jit(model.init)(jax.random.key(0)), jax.random.key(1), 7

    def run(batch, chunk, devices):
        c.eval.batch = batch
        mesh = sharding.make_mesh(c.mesh, jax.devices()[:devices])
        subject = Subject(c, model, params, dataset, mesh)
        return likelihood.log_likelihood(subject, split, key, k=k, chunk=chunk)

    whole = run(21, 7, 1)
    assert {name: len(v) for name, v in whole.items()} == dict.fromkeys(
        ("log_px", "kl", "iw", "elbo", "ess"), 21
    )
    assert (whole["iw"] > whole["log_px"] - 100).all() and (whole["ess"] >= 1 - 1e-3).all()
    assert (whole["ess"] <= k + 1e-3).all() and len(np.unique(whole["iw"])) > 15
    for batch, chunk, devices in ((8, 7, 8), (8, 3, 1)):
        other = run(batch, chunk, devices)
        for name in ("iw", "ess", "elbo", "log_px", "kl"):
            np.testing.assert_allclose(
                other[name], whole[name], rtol=2e-5, atol=1e-3 if name == "ess" else 0
            )
    # The direct sum over the same draws, in float64.
    x = jnp.asarray(split.image[:2], jnp.float32) / (dataset.levels - 1)
    log_w = jit(lambda p: likelihood.draws(model, p, x, jnp.arange(2), key, 0, k).log_w)(params)
    log_w = np.asarray(log_w, np.float64)
    np.testing.assert_allclose(
        whole["iw"][:2], np.log(np.exp(log_w - log_w.max()).mean(1)) + log_w.max(), rtol=2e-5
    )


# Training


def test_a_trained_linear_vae_is_the_maximum_likelihood_pca():
    """With s² at its optimum, the ELBO's maximum is the ML evidence: nothing is lost to a diagonal q.

    Tipping & Bishop 1999, eq. 8 and 15: s² is the mean of the eigenvalues left out. Lucas et al. 2019
    (arXiv:1911.02469), Theorem 1: the linear VAE has this global optimum and no worse local one.
    """
    pixels, n = 6, 100
    rng = np.random.default_rng(3)
    mixing = rng.normal(size=(pixels, D)) * [1.0, 0.5]
    x = (
        rng.normal(size=(n, D)) @ mixing.T
        + 0.5 * rng.normal(size=(n, pixels))
        + rng.normal(size=pixels)
    )
    eigenvalues = np.linalg.eigvalsh(np.cov(x.T, bias=True))[::-1]
    s2 = eigenvalues[D:].mean()
    log_det = np.log(eigenvalues[:D]).sum() + (pixels - D) * math.log(s2)
    evidence = -0.5 * (pixels * math.log(2 * math.pi) + log_det + pixels)
    model, batch = (
        linear(pixels, D, s2),
        {"image": jnp.asarray(x, jnp.float32).reshape(n, 1, pixels, 1)},
    )
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
            return OBJECTIVES["elbo"](model, p | fixed, batch, keys_of(batch, key)).loss.mean()

        updates, opt = tx.update(jax.grad(f)(params), opt)
        return (optax.apply_updates(params, updates), opt), None

    (params, _), _ = jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys(0, 3000)))(start)
    # The trained ELBO without noise: E log p(x|z) of a Gaussian q in closed form.
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
    w, mu = p["decoder"]["w"], x @ p["encoder"]["a"] + p["encoder"]["c"]
    variance = np.exp(p["posterior"]["logvar"])
    error = ((x - mu @ w.T - p["decoder"]["b"]) ** 2).sum(-1) + (w**2).sum(0) @ variance
    log_px = -0.5 * (pixels * math.log(2 * math.pi * s2) + error / s2)
    kl = 0.5 * (mu**2 + variance - 1 - p["posterior"]["logvar"]).sum(-1)
    elbo = (log_px - kl).mean()
    assert evidence - 0.01 < elbo < evidence + 1e-5
    # The columns of W span the leading eigenvectors' plane, with lengths sqrt(λ − s²).
    np.testing.assert_allclose(np.sort((w**2).sum(0))[::-1], eigenvalues[:D] - s2, rtol=0.05)


# Every objective on a built model

LATENT, SHAPE, Y = 5, (4, 4, 1), 3
UNCONDITIONAL = {
    name for name, f in OBJECTIVES.items() if not hasattr(f, "needs")
}  # test_semi: others


def built(posterior, prior):
    c = config.default()
    c.latent, c.data.binarize = LATENT, "static"
    c.encoder, c.decoder = (
        config.call("encoder", "mlp", widths=(8,)),
        config.call("decoder", "mlp", widths=(8,)),
    )
    c.classifier, c.likelihood = (
        config.call("classifier", "mlp"),
        config.call("likelihood", "bernoulli"),
    )
    small = {"iaf": {"hidden": (6,), "context": 4}, "realnvp": {"hidden": (6,), "steps": 2}}
    few = {name: {"components": 4} for name in ("mixture", "vamp")}
    c.posterior = config.call("posterior", posterior, **small.get(posterior, {}))
    c.prior = config.call("prior", prior, **(small | few).get(prior, {}))
    config.validate(c)
    return models.build(c, shape=SHAPE, levels=17, classes=Y, binary=True)


def objectives(posterior, prior):
    """{name: keyword arguments} of those that this posterior and prior allow."""
    few = {k: {"groups": 2, "samples": 2} for k in ("miwae", "piwae")}
    few |= {k: {"samples": 2} for k in ("iwae", "ciwae", "renyi", "vr_max", "tvo")}
    if (posterior, prior) != ("gaussian", "normal"):
        few["free_bits"] = {"per": "level"}
    diagonal = () if posterior == "gaussian" else ("beta_tcvae", "dip_vae")
    return {name: few.get(name, {}) for name in UNCONDITIONAL if name not in diagonal}


def chosen(posterior, prior):
    """{title: (params, batch, key) → Terms} of every objective and estimator."""
    calls = {name: (name, kwargs) for name, kwargs in objectives(posterior, prior).items()}
    calls |= {f"iwae {e}": ("iwae", {"samples": 2, "estimator": e}) for e in ("stl", "dreg")}
    calls["elbo stl"] = ("elbo", {"stl": True})
    return calls


def with_own(params, name, key, model):
    own = getattr(OBJECTIVES[name], "init", None)
    return params | ({"objective": own(key, model)} if own else {})


def images():
    x = np.random.default_rng(0).random((B, *SHAPE)) < 0.5
    return {"image": jnp.asarray(x, jnp.float32), "label": jnp.arange(B) % Y, "n": 10}


COMBINATIONS = [
    (q, p) for q in ("gaussian", "full", "iaf") for p in ("normal", "mixture", "vamp", "realnvp")
]
REAL = [
    ("gaussian", "normal", None),  # all of them
    ("gaussian", "vamp", ("free_bits", "iwae dreg")),
    pytest.param("iaf", "realnvp", ("elbo stl", "tvo"), marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("posterior", "prior"), COMBINATIONS)
def test_every_objective_with_every_posterior_and_prior(posterior, prior):
    if prior == "vamp" and posterior != "gaussian":
        with pytest.raises(UserError, match="VampPrior"):
            built(posterior, prior)
        return
    model, batch = built(posterior, prior), images()

    def run(key, name, kwargs):
        return OBJECTIVES[name](
            model, with_own(model.init(key), name, key, model), batch, keys_of(batch, key), **kwargs
        )

    for title, (name, kwargs) in chosen(posterior, prior).items():
        t = jax.eval_shape(functools.partial(run, name=name, kwargs=kwargs), jax.random.key(0))
        assert (t.elbo is None) == (name == "supervised")
        for figure in jax.tree.leaves(t):
            assert (figure.shape, figure.dtype) == ((B,), jnp.float32), title
    for name in UNCONDITIONAL - set(objectives(posterior, prior)):
        with pytest.raises(UserError, match=r"posterior\.name=gaussian"):
            jax.eval_shape(functools.partial(run, name=name, kwargs={}), jax.random.key(0))


@pytest.mark.parametrize(("posterior", "prior", "titles"), REAL)
def test_every_objective_has_finite_gradients(posterior, prior, titles):
    model, batch = built(posterior, prior), images()
    calls = {t: c for t, c in chosen(posterior, prior).items() if titles is None or t in titles}

    @jit
    def run(key):
        params = model.init(key)
        leaves, tree = jax.tree.flatten(
            params
        )  # fresh flows are the identity: move away from there
        keys = jax.random.split(key, len(leaves))
        noise = [0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
        params = jax.tree.unflatten(tree, [a + e for a, e in zip(leaves, noise, strict=True)])
        d = model.draw(params, batch["image"], keys_of(batch, key))
        log_w = [d.log_w, path_log_w(model, params, batch["image"], d.z)]
        out = {}
        for title, (name, kwargs) in calls.items():

            def f(p, name=name, kwargs=kwargs):
                t = OBJECTIVES[name](model, p, batch, keys_of(batch, key), **kwargs)
                return t.loss.mean(), t

            out[title] = jax.grad(f, has_aux=True)(with_own(params, name, key, model))
        return out, log_w

    out, log_w = run(jax.random.key(5))
    LN(log_w[1], log_w[0], atol=1e-4)  # log q of a flow by its inverse is that of the forward pass
    nets = {"encoder", "posterior", "decoder"} | ({"prior"} if prior != "normal" else set())
    learned = {"supervised": {"encoder", "posterior", "classifier"}, "joint": nets | {"classifier"}}
    learned |= dict.fromkeys(("factor_vae", "geco"), nets | {"objective"})
    for title, (grads, t) in out.items():
        assert all(np.isfinite(a).all() for a in jax.tree.leaves((t, grads))), title
        moved = {
            part
            for part in grads
            if any((np.asarray(a) != 0).any() for a in jax.tree.leaves(grads[part]))
        }
        assert moved == learned.get(title, nets), title


def test_joint_with_a_labelled_prior_is_the_bound_on_both():
    """gamma = 1 and p(y|z) by Bayes' rule: log p(x|z) + log p(z|y) + log p(y) - log q(z|x), draw by draw."""
    c = config.default()
    c.latent, c.data.binarize = LATENT, "static"
    c.encoder, c.decoder = (
        config.call("encoder", "mlp", widths=(8,)),
        config.call("decoder", "mlp", widths=(8,)),
    )
    c.prior, c.classifier = config.call("prior", "labelled"), config.call("classifier", "bayes")
    c.likelihood = config.call("likelihood", "bernoulli")
    m = models.build(c, shape=SHAPE, levels=17, classes=Y, binary=True)
    params, batch, key = jit(m.init)(jax.random.key(0)), images(), jax.random.key(1)
    params["prior"]["logvar"] = jnp.linspace(-1, 1, Y * LATENT).reshape(Y, LATENT)
    terms = jit(lambda p: OBJECTIVES["joint"](m, p, batch, keys_of(batch, key), samples=3))(params)
    d, prior = (
        jit(lambda p: sample_k(m, p, batch["image"], keys_of(batch, key), 3))(params),
        params["prior"],
    )
    at = [stats.norm(prior["mu"][y], np.exp(0.5 * prior["logvar"][y])) for y in batch["label"]]
    log_pz_KxB = np.stack([at[b].logpdf(d.z[:, b]).sum(-1) for b in range(B)], axis=1)
    log_qz = jit(lambda p, z: m.log_posterior(p, batch["image"], z))(params, d.z)
    want_B = (d.log_px + log_pz_KxB - math.log(Y) - log_qz).mean(0)
    LN(-terms.loss, want_B)
    LN(terms.elbo, (d.log_px + m.prior(params).log_prob(d.z) - log_qz).mean(0))


def test_joint_adds_the_cross_entropy():
    logits, label = (
        np.random.default_rng(0).normal(size=(4, Y)).astype(np.float32),
        np.array([0, 2, 1, 1]),
    )
    ce, hit = cross_entropy(jnp.asarray(logits), jnp.asarray(label))
    LN(ce, -np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(4), label])
    np.testing.assert_array_equal(hit, logits.argmax(1) == label)
    model, key = built("gaussian", "normal"), jax.random.key(0)
    batch = {"image": jnp.ones((B, *SHAPE)), "label": jnp.arange(B)}

    @jit
    def run(key):
        params = model.init(key)

        def run(name, **kwargs):
            return OBJECTIVES[name](model, params, batch, keys_of(batch, key), **kwargs)

        return run("elbo"), run("joint", gamma=4.0)

    elbo, t = run(key)
    LN(t.loss, elbo.loss + 4 * t.extra["cross_entropy"])
    LN(t.elbo, elbo.elbo)
    with pytest.raises(UserError, match=r"classifier\.name=mlp"):
        OBJECTIVES["supervised"](MODEL, OTHER, BATCH, batch_keys(key))
