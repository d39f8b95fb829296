"""Probabilistic PCA as a model, and statements about the expectations of its objectives.

p(z) = N(0, I), p(x|z) = N(Wz + b, s² I), so that log p(x) is a Gaussian's and the posterior is a
Gaussian with a full covariance. Statements about expectations are tested within 4 standard errors
of a mean over independent keys.
"""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from vae_jax import distributions as densities
from vae_jax import models
from vae_jax.objectives import OBJECTIVES, Terms

P = 5  # pixels
D = 2  # latent dimensions
B = 3  # batch
S2 = 0.4
# Programs here are compiled once and run once: compiling is the cost.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
# Nats in float32.
assert_nats = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5)


def linear(pixels: int = P, latent: int = D, s2: float = S2) -> models.Model:
    """Probabilistic PCA; q(z|x) = N(Ax + c, Σ), Σ full or diagonal, the same for every x."""
    matmul = functools.partial(jnp.matmul, precision="highest")

    def encode(params: Any, x: jax.Array, y: Any = None) -> Any:
        mu = matmul(x.reshape(len(x), -1), params["encoder"]["a"]) + params["encoder"]["c"]
        q = params["posterior"]
        if "scale_tril" in q:
            scale_tril = jnp.tril(q["scale_tril"])
            return densities.FullNormal(mu, jnp.broadcast_to(scale_tril, (*mu.shape, latent)))
        return densities.Normal(mu, jnp.broadcast_to(q["logvar"], mu.shape))

    def decode(params: Any, z: jax.Array, y: Any = None) -> jax.Array:
        x = matmul(z, params["decoder"]["w"].T) + params["decoder"]["b"]
        return x.reshape(-1, 1, pixels, 1)

    def prior(params: Any) -> densities.Normal:
        return densities.Normal(**params["prior"])

    likelihood = densities.LIKELIHOODS["gaussian"](logvar=math.log(s2))
    spec = models.Spec((1, pixels, 1), 0, latent, likelihood)
    return models.vae(spec, models.Parts(None, encode, prior, decode, None))


def float32(tree: Any) -> Any:
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), tree)


RNG = np.random.default_rng(0)
W = RNG.normal(size=(P, D))
BIAS = RNG.normal(size=P)
COVARIANCE = W @ W.T + S2 * np.eye(P)
X = RNG.multivariate_normal(BIAS, COVARIANCE, size=B)
LOG_PX = stats.multivariate_normal(BIAS, COVARIANCE).logpdf(X)
# The true posterior is N(Aᵀ(x − b), Σ).
SIGMA = np.linalg.inv(np.eye(D) + W.T @ W / S2)
A = W @ SIGMA / S2
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
OTHER_A = 0.8 * A
OTHER_C = -0.8 * BIAS @ A + [0.3, -0.2]
OTHER_LOGVAR = np.log(np.diag(SIGMA)) + [0.5, -0.3]
OTHER = float32(
    {
        **GENERATIVE,
        "encoder": {"a": OTHER_A, "c": OTHER_C},
        "posterior": {"logvar": OTHER_LOGVAR},
    }
)


def assert_close(a: Any, b: Any, **tolerances: float) -> None:
    """Equal leaves, in nats."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert_nats(x, y, **tolerances)


def batch_keys(key: jax.Array, n: int = B) -> jax.Array:
    """A key for each example of a batch."""
    return jax.random.split(key, n)


def keys(seed: int, n: int) -> jax.Array:
    return jax.random.split(jax.random.key(seed), n)


def loss(name: str, **numbers: Any) -> Callable[[Any, jax.Array], jax.Array]:
    """(params, key) → mean loss over the batch."""

    def mean(params: Any, key: jax.Array) -> jax.Array:
        return OBJECTIVES[name](MODEL, params, BATCH, batch_keys(key), **numbers).loss.mean()

    return mean


def terms_of(name: str, params: Any, key: jax.Array, batch: dict = BATCH, **numbers: Any) -> Terms:
    """The terms of one draw; n is that of ``BATCH``."""
    arrays = {k: v for k, v in batch.items() if k != "n"}

    @jit
    def run(params: Any, arrays: dict, keys_B: jax.Array) -> Terms:
        batch = arrays | {"n": BATCH["n"]}
        return OBJECTIVES[name](MODEL, params, batch, keys_B, **numbers)

    return run(params, arrays, batch_keys(key, len(batch["image"])))


def bounds(name: str, params: Any, seed: int, n: int, **numbers: Any) -> np.ndarray:
    """−loss of n independent keys: n×B."""

    def one(key: jax.Array) -> jax.Array:
        return -OBJECTIVES[name](MODEL, params, BATCH, batch_keys(key), **numbers).loss

    return np.asarray(jit(jax.vmap(one))(keys(seed, n)), np.float64)


def gradients(function: Callable, params: Any, seed: int, n: int) -> Any:
    """The gradients of n independent keys, each leaf n×…."""
    return jit(jax.vmap(jax.grad(function), (None, 0)))(params, keys(seed, n))


def mean_and_error(a: Any) -> tuple[np.ndarray, np.ndarray]:
    a = np.asarray(a, np.float64)
    return a.mean(0), a.std(0, ddof=1) / math.sqrt(len(a))


def assert_equal_means(a: Any, b: Any) -> None:
    """Equal expectations, entry by entry, of leaves n×…; ``b`` may be exact, without the axis n."""
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        mean, error = mean_and_error(x)
        other = np.asarray(y, np.float64)
        other_error = 0.0
        if y.ndim == x.ndim:
            other, other_error = mean_and_error(y)
        limit = 4 * np.sqrt(error**2 + other_error**2) + 1e-6
        np.testing.assert_array_less(np.abs(mean - other), limit)


def kl_of_other() -> np.ndarray:
    """KL(q ‖ p(z|x)) of each example for ``OTHER``, in numpy."""
    precision = np.linalg.inv(SIGMA)
    distance = X @ OTHER_A + OTHER_C - (X - BIAS) @ A
    quadratic = np.einsum("bi,ij,bj->b", distance, precision, distance)
    trace = np.diag(precision) @ np.exp(OTHER_LOGVAR)
    log_dets = np.linalg.slogdet(SIGMA)[1] - OTHER_LOGVAR.sum()
    return 0.5 * (trace + quadratic - D + log_dets)


TVO_EDGES = (0.0, 0.1, math.sqrt(0.1), 1.0)  # partitions=3, beta1=0.1


def exact_tvo(params: Any, edges: Sequence[float]) -> jax.Array:
    """Σ_j (β_j+1 − β_j) E_πβj[log w], each a Gaussian expectation.

    It is the bound's value, and by autodiff its gradient.
    """
    w = params["decoder"]["w"]
    b = params["decoder"]["b"]
    q = params["posterior"]
    prior = params["prior"]
    x = BATCH["image"].reshape(B, P)
    mu_q = x @ params["encoder"]["a"] + params["encoder"]["c"]
    precision_q = jnp.diag(jnp.exp(-q["logvar"]))
    precision_p = jnp.diag(jnp.exp(-prior["logvar"]))
    precision = precision_p + w.T @ w / S2
    eta = (x - b) @ w / S2 + precision_p @ prior["mu"]  # of p(x, z) as a function of z

    def expected_log_w(beta: float) -> jax.Array:
        cov = jnp.linalg.inv((1 - beta) * precision_q + beta * precision)
        mean = ((1 - beta) * mu_q @ precision_q + beta * eta) @ cov

        def log_normal(m: jax.Array, pr: jax.Array) -> jax.Array:
            """E log N(z; m, pr⁻¹)."""
            squares = jnp.einsum("bi,ij,bj->b", mean - m, pr, mean - m) + jnp.trace(pr @ cov)
            return -0.5 * (squares - jnp.linalg.slogdet(pr)[1] + D * math.log(2 * math.pi))

        residual = x - b - mean @ w.T
        squares = (residual**2).sum(-1) + jnp.trace(w @ cov @ w.T)
        log_px = -0.5 * squares / S2 - 0.5 * P * math.log(2 * math.pi * S2)
        return log_px + log_normal(prior["mu"], precision_p) - log_normal(mu_q, precision_q)

    return sum((high - low) * expected_log_w(low) for low, high in itertools.pairwise(edges))
