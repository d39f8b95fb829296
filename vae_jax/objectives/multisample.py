"""Bounds from K importance samples. In each, ``elbo`` is the plain ELBO of the same draws and
``extra["iw"]`` the bound log (1/K) Σ w, whatever is being minimised.

The gradient is an estimator's choice, the value is not: ``estimator`` is

- ``pathwise``: the derivative of the bound as it stands;
- ``stl``: the score of q left out: biased for K > 1 (Roeder et al. 2017, arXiv:1703.09194);
- ``dreg``: doubly reparameterised: unbiased, and its signal-to-noise ratio does not fall with K
  (Tucker et al. 2019, arXiv:1810.04152, eq. 8).
"""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.models.core import Draw, Model, Params, scale_gradient
from vae_jax.objectives.evidence import path_log_w
from vae_jax.objectives.terms import Terms, bound, with_gradient_of

INFERENCE = ("encoder", "posterior")  # the parts of params that are q(z|x)


def log_mean_exp(log_w: jax.Array, axis: int = 0) -> jax.Array:
    """log (1/K) Σ_k w_k."""
    return jax.nn.logsumexp(log_w, axis=axis) - jnp.log(log_w.shape[axis])


def iw_bound(
    model: Model, params: Params, x: jax.Array, keys: jax.Array, samples: int, estimator: str
) -> tuple[jax.Array, Draw, jax.Array]:
    r"""(log (1/K) Σ_k w_k, the K draws, log w_k).

    The first has the estimator's gradient, the last the path gradient. With w̃ the normalised
    weights, taken as constants, and ∂z the gradient through the sample alone: pathwise and stl
    differentiate Σ w̃ log w; dreg multiplies ∂z by w̃ once more, so that the inference net gets
    Σ w̃² ∂log w/∂z · ∂z/∂φ and the generative net Σ w̃ ∂log p(x, z)/∂θ.
    """
    if estimator == "pathwise":
        d = model.draw(params, x, split_keys(keys, samples))
        return log_mean_exp(d.log_w), d, d.log_w
    if estimator not in ("stl", "dreg"):
        raise UserError(f"objective.estimator={estimator}: want pathwise, stl or dreg")
    d = model.draw(params, x, split_keys(keys, samples))
    weight_KxB = jax.lax.stop_gradient(jax.nn.softmax(d.log_w, axis=0))
    log_w = path_log_w(model, params, x, d.z)  # the same nets again: XLA computes them once
    scored = log_w
    if estimator == "dreg":
        scored = path_log_w(model, params, x, scale_gradient(d.z, weight_KxB[..., None]))
    surrogate = jnp.sum(weight_KxB * scored, axis=0)
    return with_gradient_of(log_mean_exp(d.log_w), surrogate), d, log_w


def iwae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    samples: int = 5,
    estimator: str = "pathwise",
) -> Terms:
    r"""The importance-weighted bound.

    .. math:: -\mathrm{loss} = \log \tfrac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k|x)},
              \quad z_k \sim q(z|x)

    Burda et al. 2016 (arXiv:1509.00519), eq. 8. K = 1 is the ELBO with a sampled KL.
    """
    iw, d, _ = iw_bound(model, params, batch["image"], keys, samples, estimator)
    return Terms(-iw, *bound(d), {"iw": iw})


def miwae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    groups: int = 8,
    samples: int = 8,
    estimator: str = "pathwise",
) -> Terms:
    r"""The mean of M independent K-sample bounds: a better signal for q than one of M·K samples.

    .. math:: -\mathrm{loss} = \tfrac1M \sum_{m=1}^M \log \tfrac1K \sum_{k=1}^K w_{mk}

    Rainforth et al. 2018 (arXiv:1802.04537), eq. 7 (MIWAE).
    """

    def of_group(keys: jax.Array) -> tuple[jax.Array, Draw, jax.Array]:
        return iw_bound(model, params, batch["image"], keys, samples, estimator)

    iw_MxB, d, _ = jax.vmap(of_group)(split_keys(keys, groups))
    d = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), d)  # M·K draws
    return Terms(-iw_MxB.mean(0), *bound(d), {"iw": log_mean_exp(d.log_w)})


def ciwae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 0.5,
    samples: int = 8,
    estimator: str = "pathwise",
) -> Terms:
    r"""A convex combination of the ELBO and the IWAE bound of the same draws.

    .. math:: -\mathrm{loss} = \beta\, \tfrac1K\sum_k \log w_k
              + (1 - \beta) \log \tfrac1K \sum_k w_k

    Rainforth et al. 2018 (arXiv:1802.04537), eq. 8 (CIWAE); their β.
    """
    iw, d, log_w = iw_bound(model, params, batch["image"], keys, samples, estimator)
    return Terms(-(beta * log_w.mean(0) + (1 - beta) * iw), *bound(d), {"iw": iw})


def piwae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    groups: int = 8,
    samples: int = 8,
) -> Terms:
    r"""Partial IWAE: the generative net learns from IWAE with M·K samples, q from MIWAE(M, K).

    .. math:: \partial_\theta \log \tfrac{1}{MK} \sum_{mk} w_{mk}, \qquad
              \partial_\phi\, \tfrac1M \sum_m \log \tfrac1K \sum_k w_{mk}

    Rainforth et al. 2018 (arXiv:1802.04537), eq. 9 and 10 (PIWAE). The loss's value is the IWAE
    bound's.
    """
    generative = dict(params)
    inference = dict(params)
    for part, values in params.items():
        constant = generative if part in INFERENCE else inference
        constant[part] = jax.lax.stop_gradient(values)
    theta = model.draw(generative, batch["image"], split_keys(keys, groups * samples))
    phi = model.draw(inference, batch["image"], split_keys(keys, groups * samples))
    iw = log_mean_exp(theta.log_w)
    grouped = log_mean_exp(phi.log_w.reshape(groups, samples, -1), axis=1).mean(0)
    return Terms(-with_gradient_of(iw, iw + grouped), *bound(theta), {"iw": iw})


def renyi(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    alpha: float = 0.5,
    samples: int = 8,
) -> Terms:
    r"""The variational Rényi bound.

    .. math:: -\mathrm{loss} = \tfrac{1}{1-\alpha} \log \tfrac1K \sum_k w_k^{1-\alpha}

    alpha = 0 is IWAE; alpha → 1 the ELBO, which is used within 1e-3 of it, where the quotient would
    lose its digits. Li & Turner 2016 (arXiv:1602.02311), eq. 6 and 13.
    """
    d = model.draw(params, batch["image"], split_keys(keys, samples))
    value, log_px, kl = bound(d)
    order = 1 - jnp.asarray(alpha, jnp.float32)
    near = jnp.abs(order) < 1e-3
    safe = jnp.where(near, 1.0, order)
    vr = jnp.where(near, d.log_w.mean(0), log_mean_exp(safe * d.log_w) / safe)
    return Terms(-vr, value, log_px, kl, {"iw": log_mean_exp(d.log_w)})


def vr_max(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    samples: int = 8,
) -> Terms:
    r"""The Rényi bound at alpha → −∞: only the largest weight counts; −loss = max_k log w_k.

    Li & Turner 2016 (arXiv:1602.02311), section 4.2. Not a lower bound on log p(x).
    """
    d = model.draw(params, batch["image"], split_keys(keys, samples))
    return Terms(-d.log_w.max(0), *bound(d), {"iw": log_mean_exp(d.log_w)})


def tvo(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    samples: int = 10,
    partitions: int = 5,
    beta1: float = 0.025,
) -> Terms:
    r"""The thermodynamic variational objective, a left Riemann sum (a lower bound on log p(x)).

    .. math:: -\mathrm{loss} = \sum_{j} (\beta_{j+1} - \beta_j)\, E_{\pi_{\beta_j}}[\log w], \quad
              \pi_\beta \propto q^{1-\beta} p(x, z)^\beta, \quad 0 = \beta_0 < \dots < \beta_J = 1

    Expectations by self-normalised weights w^β of K ≥ 2 shared draws; β_1 = ``beta1``, the rest
    spaced evenly in log. The gradient is the covariance form, which does not need reparameterised
    draws: ∂E[f] = E[∂f] + Cov(∂ log π̃_β, f) with log π̃_β = log q + β log w; the covariance of a
    sample divides by K − 1, which leaves β = 0 without a bias.

    Masrani et al. 2019 (arXiv:1907.00031), eq. 9, 11 and 12. J = 1 is the ELBO.
    """
    if samples < 2:
        wanted = "want at least 2, the gradient is a covariance over samples"
        raise UserError(f"objective.samples={samples}: {wanted}")
    x = batch["image"]
    d = model.draw(params, x, split_keys(keys, samples))
    z = jax.lax.stop_gradient(d.z)
    log_q = model.log_posterior(params, x, z)
    log_w = model.log_joint(params, x, z) - log_q
    inner = jnp.zeros(0)
    if partitions > 1:
        inner = jnp.geomspace(beta1, 1.0, partitions)[:-1]
    edges_J1 = jnp.concatenate([jnp.zeros(1), inner, jnp.ones(1)])
    log_w_1xKxB = log_w[None]
    beta_Jx1x1 = edges_J1[:-1, None, None]
    weight_JxKxB = jax.lax.stop_gradient(jax.nn.softmax(beta_Jx1x1 * log_w_1xKxB, axis=1))
    mean_JxB = jnp.sum(weight_JxKxB * log_w_1xKxB, axis=1)
    centred_JxKxB = jax.lax.stop_gradient(log_w_1xKxB - mean_JxB[:, None])
    log_pi_JxKxB = log_q[None] + beta_Jx1x1 * log_w_1xKxB
    product_JxKxB = weight_JxKxB * centred_JxKxB * log_pi_JxKxB
    covariance_JxB = samples / (samples - 1) * jnp.sum(product_JxKxB, axis=1)
    width_Jx1 = jnp.diff(edges_J1)[:, None]
    value = jnp.sum(width_Jx1 * mean_JxB, axis=0)
    surrogate = jnp.sum(width_Jx1 * (mean_JxB + covariance_JxB), axis=0)
    return Terms(-with_gradient_of(value, surrogate), *bound(d), {"iw": log_mean_exp(d.log_w)})
