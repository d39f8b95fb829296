"""Two linear-Gaussian levels, whose evidence and posteriors are known exactly."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from vae_jax import distributions as densities
from vae_jax import models
from vae_jax.models.hierarchy import LevelParts
from vae_jax.objectives import OBJECTIVES, sample_k

jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
dot = functools.partial(jnp.matmul, precision="highest")

# z1 ~ N(0, I₂), z2 = V z1 + N(0, t² I₃), x = W z2 + b + N(0, s² I₅): every joint of them is a
# Gaussian.
RNG = np.random.default_rng(0)
V, W, BIAS, T2, S2, B = (
    RNG.normal(size=(3, 2)),
    RNG.normal(size=(5, 3)),
    RNG.normal(size=5),
    0.6,
    0.4,
    4,
)
COV_Z2 = V @ V.T + T2 * np.eye(3)
COV_X = W @ COV_Z2 @ W.T + S2 * np.eye(5)
X = RNG.multivariate_normal(BIAS, COV_X, size=B)
LOG_PX = stats.multivariate_normal(BIAS, COV_X).logpdf(X)
IMAGE = jnp.asarray(X, jnp.float32).reshape(B, 1, 5, 1)


def exact():
    """The parameters of the true q(z1|x) = N(A x + c, L Lᵀ) and q(z2|z1, x) = N(E x + F z1 + g, M
    Mᵀ).
    """
    a = (W @ V).T @ np.linalg.inv(COV_X)
    cov1 = np.eye(2) - a @ W @ V
    cov2 = np.linalg.inv(np.eye(3) / T2 + W.T @ W / S2)
    e, f = cov2 @ W.T / S2, cov2 @ V / T2
    return {"a": a, "c": -a @ BIAS, "l": np.linalg.cholesky(cov1)} | {
        "e": e,
        "f": f,
        "g": -e @ BIAS,
        "m": np.linalg.cholesky(cov2),
    }


def top_down(params, x, choose, given, rows, y=None):
    q, p = params["encoder"], params["decoder"]

    def full(mu, tril):
        return densities.FullNormal(mu, jnp.broadcast_to(jnp.tril(tril), (*mu.shape, mu.shape[-1])))

    p1 = densities.Normal(jnp.zeros((rows, 2)), jnp.zeros((rows, 2)))
    q1 = None if x is None else full(dot(x, q["a"].T) + q["c"], q["l"])
    z1, first = choose(q1, p1, jax.tree.map(lambda a: a[0], given[0]))
    mu2 = dot(z1, p["v"].T)
    p2 = densities.Normal(mu2, jnp.full(mu2.shape, math.log(T2)))
    q2 = None if x is None else full(dot(x, q["e"].T) + dot(z1, q["f"].T) + q["g"], q["m"])
    z2, second = choose(q2, p2, jax.tree.map(lambda a: a[0], given[1]))
    out = (dot(z2, p["w"].T) + p["b"]).reshape(rows, 1, 5, 1)
    return out, [jax.tree.map(lambda a: a[None], record) for record in (first, second)]


LINEAR = models.hierarchy(
    models.Spec(
        (1, 5, 1), 0, 5, densities.LIKELIHOODS["gaussian"](logvar=math.log(S2)), ((1, 2), (1, 3))
    ),
    LevelParts(None, lambda params, x: x.reshape(len(x), -1), top_down, None),
)


def float32(tree):
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


TRUE = float32({"encoder": exact(), "decoder": {"v": V, "w": W, "b": BIAS}})
OTHER = jax.tree.map(lambda a: a, TRUE)
OTHER["encoder"] = {k: 1.3 * v if k in "lm" else 0.9 * v for k, v in TRUE["encoder"].items()}


def batch_keys(seed, n=B):
    return jax.random.split(jax.random.key(seed), n)


def test_with_the_exact_posterior_every_draw_is_the_evidence():
    d = jit(lambda p, k: sample_k(LINEAR, p, IMAGE, k, 3))(TRUE, batch_keys(0))
    assert d.kl.shape == (3, B, 2) and d.z.shape == (3, B, 5)
    assert d.extra["log_pz"].shape == d.extra["log_qz"].shape == (3, B, 2)
    np.testing.assert_allclose(d.log_w, np.broadcast_to(LOG_PX, (3, B)), rtol=1e-4, atol=2e-4)
    q, p = jit(lambda p, z: [f.log_prob(z) for f in (LINEAR.encode(p, IMAGE), LINEAR.prior(p))])(
        TRUE, d.z[0]
    )
    np.testing.assert_allclose(q, d.extra["log_qz"][0].sum(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(p, d.extra["log_pz"][0].sum(-1), rtol=1e-4, atol=1e-4)


def test_the_bound_rises_to_the_evidence_and_the_levels_kl_is_log_q_minus_log_p_in_expectation():
    """Each level's analytic KL, given the levels above, against log q − log p of the same draws: 4
    standard errors.
    """
    d = jit(lambda p, k: sample_k(LINEAR, p, IMAGE, k, 4000))(OTHER, batch_keys(1))
    log_w = np.asarray(d.log_w, np.float64)
    bounds = [np.mean(np.log(np.exp(log_w.reshape(-1, k, B)).mean(1))) for k in (1, 10, 4000)]
    assert bounds[0] < bounds[1] - 0.05 < bounds[2] - 0.05
    np.testing.assert_allclose(bounds[2], LOG_PX.mean(), atol=0.02)
    gap = np.asarray(d.kl - (d.extra["log_qz"] - d.extra["log_pz"]), np.float64)
    assert (np.abs(gap.mean(0)) < 4 * gap.std(0, ddof=1) / math.sqrt(len(gap))).all()
    assert gap.std() > 0.1  # the two are not the same number


@pytest.mark.parametrize(
    ("name", "kwargs"), [("elbo", {"stl": True}), ("iwae", {"samples": 3, "estimator": "dreg"})]
)
def test_at_the_exact_posterior_the_path_gradient_has_no_noise(name, kwargs):
    """log w does not depend on z there, so q's gradient is zero draw by draw, unlike the plain one."""

    def gradient(params, key, **kwargs):
        def loss(q):
            return OBJECTIVES[name](
                LINEAR, params | {"encoder": q}, {"image": IMAGE}, key, **kwargs
            ).loss.mean()

        return jnp.concatenate(
            [jnp.ravel(g) for g in jax.tree.leaves(jax.grad(loss)(params["encoder"]))]
        )

    quiet = jit(functools.partial(gradient, **kwargs))(TRUE, batch_keys(0))
    loud = jit(functools.partial(gradient, samples=3))(TRUE, batch_keys(0))
    assert np.abs(quiet).max() < 2e-3 < 0.1 < np.abs(loud).max()


def test_dreg_and_the_pathwise_gradient_agree_in_expectation():
    def gradient(key, estimator):
        def loss(p):
            return OBJECTIVES["iwae"](
                LINEAR, p, {"image": IMAGE}, key, samples=4, estimator=estimator
            ).loss.mean()

        return jnp.concatenate([jnp.ravel(g) for g in jax.tree.leaves(jax.grad(loss)(OTHER))])

    keys = jax.random.split(jax.random.key(3), (2000, B))
    a, b = (
        np.asarray(jit(jax.vmap(functools.partial(gradient, estimator=e)))(keys))
        for e in ("pathwise", "dreg")
    )
    difference = a - b
    assert (np.abs(difference.mean(0)) < 5 * difference.std(0) / math.sqrt(len(keys)) + 1e-5).all()
