"""Losses on the aggregate posterior q(z) = E_x q(z|x): they need the whole batch in their equation.

A penalty on the batch is one number; it is added to every example's loss, so the mean over the
batch adds it once. In jit's global view the statistics are those of the batch; shard by shard
(``config.compile`` = shard_map or pmap, bfloat16 nets, fsdp) and in microbatches they are those of
the examples that one device sees at a time. Rows that only fill up a last batch of validation,
where ``batch["mask"]`` is false, are in none of them.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from vae_jax import distributions as densities
from vae_jax import nets
from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.models.core import Model, Params
from vae_jax.objectives.terms import Terms, bound


def beta_tcvae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    alpha: float = 1.0,
    beta: float = 6.0,
    gamma: float = 1.0,
) -> Terms:
    r"""The KL in three parts, each with its weight.

    .. math:: E\,KL = \underbrace{I(x; z)}_{\alpha}
              + \underbrace{KL(q(z) ‖ \textstyle\prod_d q(z_d))}_{\beta}
              + \underbrace{\textstyle\sum_d KL(q(z_d) ‖ p(z_d))}_{\gamma}

    log q(z) by minibatch-weighted sampling: log (1/(N B)) Σ_b q(z|x_b), N the size of the training
    set. The parts telescope: their sum is log q(z|x) − log p(z) of the sample, whatever the
    estimate of q(z).

    Chen et al. 2018 (arXiv:1802.04942), eq. 2, 4 and appendix C.1.
    """
    q, p = _diagonal(model, params, batch)
    d = model.draw(params, batch["image"], split_keys(keys, 1))
    value, log_px, kl = bound(d)
    z_BxD = d.z[0]
    real_B = _real(batch, kl)
    log_nb = jnp.log(batch["n"] * real_B.sum())
    each_BxBxD = _log_normal_each(z_BxD[:, None], q.mu[None], q.logvar[None])
    log_qz = jax.nn.logsumexp(each_BxBxD.sum(-1), axis=1, b=real_B) - log_nb
    log_qz_product = (jax.nn.logsumexp(each_BxBxD, axis=1, b=real_B[:, None]) - log_nb).sum(-1)
    parts = {
        "mi": q.log_prob(z_BxD) - log_qz,
        "tc": log_qz - log_qz_product,
        "dimension_kl": log_qz_product - p.log_prob(z_BxD),
    }
    loss = alpha * parts["mi"] + beta * parts["tc"] + gamma * parts["dimension_kl"] - log_px
    return Terms(loss, value, log_px, kl, parts)


def _real(batch: dict, like_B: jax.Array) -> jax.Array:
    """1 for an example, 0 for a row that fills a batch up; shape and dtype of ``like_B``."""
    return batch.get("mask", jnp.ones(like_B.shape)).astype(like_B.dtype)


def _log_normal_each(z: jax.Array, mu: jax.Array, logvar: jax.Array) -> jax.Array:
    """log N(z_d; μ_d, σ_d²) of each dimension."""
    return -0.5 * (math.log(2 * math.pi) + logvar + (z - mu) ** 2 * jnp.exp(-logvar))


def _diagonal(model: Model, params: Params, batch: dict) -> tuple[densities.Normal, Any]:
    """(q(z|x), p(z)); raises where q is no diagonal Gaussian."""
    q = model.encode(params, batch["image"])
    p = model.prior(params)
    if not isinstance(q, densities.Normal):
        raise UserError(
            "posterior.name: this objective needs diagonal Gaussians; want posterior.name=gaussian"
        )
    return q, p


def factor_vae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    gamma: float = 10.0,
) -> Terms:
    r"""Total correlation by a discriminator between z ~ q(z) and z with each dimension permuted.

    .. math:: -\mathrm{loss} = \mathrm{ELBO} - \gamma\, E_{q(z)} [\log D(z) - \log (1 - D(z))]

    D, three layers of 256, is ``params["objective"]`` and minimises its own cross-entropy in the
    same step; neither net sees the other's gradient. (The paper permutes a second batch; here it is
    the same one.)

    Kim & Mnih 2018 (arXiv:1802.05983), eq. 3 and algorithm 1, 2.
    """
    draw_keys, permute_keys = densities.split_keys(keys, 2)
    d = model.draw(params, batch["image"], split_keys(draw_keys, 1))
    value, log_px, kl = bound(d)
    z_BxD = d.z[0]
    real_B = _real(batch, kl)
    noise_BxD = jax.vmap(lambda key: jax.random.uniform(key, z_BxD.shape[1:]))(permute_keys)
    order_BxD = jnp.argsort(jnp.where(real_B[:, None] > 0, noise_BxD, 2), axis=0)
    permuted_BxD = jnp.take_along_axis(z_BxD, order_BxD[jnp.cumsum(real_B).astype(int) - 1], axis=0)

    def discriminate(net: Params, z: jax.Array) -> jax.Array:
        return _discriminator().apply({"params": net}, z)

    stop = jax.lax.stop_gradient
    net = params["objective"]
    logits_Bx2 = discriminate(stop(net), z_BxD)
    tc = logits_Bx2[:, 0] - logits_Bx2[:, 1]
    joint_Bx2 = jax.nn.log_softmax(discriminate(net, stop(z_BxD)))
    product_Bx2 = jax.nn.log_softmax(discriminate(net, stop(permuted_BxD)))
    discriminator = -0.5 * (joint_Bx2[:, 0] + product_Bx2[:, 1])
    loss = kl - log_px + gamma * tc
    extra = {"tc": tc, "discriminator": discriminator}
    return Terms(loss + discriminator - stop(discriminator), value, log_px, kl, extra)


def _discriminator() -> nets.MLPClassifier:
    return nets.MLPClassifier(outputs=2, widths=(256, 256, 256))


def _init_discriminator(key: jax.Array, model: Model) -> Params:
    return _discriminator().init(key, jnp.zeros((1, model.latent)))["params"]


factor_vae.init = _init_discriminator


def dip_vae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    kind: int = 1,
    off_diagonal: float = 10.0,
    diagonal: float = 10.0,
) -> Terms:
    r"""The covariance of q(z) is pulled to the identity.

    .. math:: \mathrm{loss} = -\mathrm{ELBO} + \lambda_{od} \sum_{i \ne j} C_{ij}^2
              + \lambda_d \sum_i (C_{ii} - 1)^2

    ``kind`` 1: C = Cov_x(μ); 2: C = Cov_x(μ) + E_x[diag σ²], both over the batch. Kumar et al. 2018
    (arXiv:1711.00848), eq. 6 and 7.
    """
    if kind not in (1, 2):
        raise UserError(f"objective.kind={kind}: want 1 or 2")
    q, _ = _diagonal(model, params, batch)
    value, log_px, kl = bound(model.draw(params, batch["image"], split_keys(keys, 1)))
    share_B = _real(batch, kl) / _real(batch, kl).sum()
    centred = q.mu - share_B @ q.mu
    covariance_DxD = (share_B[:, None] * centred).T @ centred
    if kind == 2:
        covariance_DxD += jnp.diag(share_B @ jnp.exp(q.logvar))
    variance_D = jnp.diag(covariance_DxD)
    off = jnp.sum(covariance_DxD**2) - jnp.sum(variance_D**2)
    penalty = off_diagonal * off + diagonal * jnp.sum((variance_D - 1) ** 2)
    extra = {"penalty": jnp.broadcast_to(penalty, kl.shape)}
    return Terms(kl - log_px + penalty, value, log_px, kl, extra)


def info_vae(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    alpha: float = 0.0,
    weight: float = 100.0,
) -> Terms:
    r"""q(z) is matched to p(z) by the maximum mean discrepancy instead of, or beside, the KL.

    .. math:: \mathrm{loss} = -E_q \log p(x|z) + (1 - \alpha)\,KL
              + (\alpha + \lambda - 1)\,\mathrm{MMD}(q(z), p(z))

    λ = ``weight``. MMD is the unbiased estimate over the batch with the Gaussian kernel of width D;
    alpha = 1 leaves out the KL. Zhao et al. 2019 (arXiv:1706.02262), eq. 6 and section 3.2.
    """
    draw_keys, prior_keys = densities.split_keys(keys, 2)
    d = model.draw(params, batch["image"], split_keys(draw_keys, 1))
    value, log_px, kl = bound(d)
    discrepancy = mmd(d.z[0], model.prior(params).sample(prior_keys), _real(batch, kl))
    loss = (1 - alpha) * kl - log_px + (alpha + weight - 1) * discrepancy
    return Terms(loss, value, log_px, kl, {"mmd": jnp.broadcast_to(discrepancy, kl.shape)})


def mmd(a_BxD: jax.Array, b_BxD: jax.Array, real_B: jax.Array | None = None) -> jax.Array:
    r"""Unbiased squared maximum mean discrepancy with k(a, b) = exp(−‖a − b‖² / 2D).

    Gretton et al. 2012 (JMLR 13), eq. 3. ``real_B``: 1 for the rows of both that count, 0 for
    others.
    """
    d = a_BxD.shape[1]
    w = jnp.ones(len(a_BxD)) if real_B is None else real_B
    n = w.sum()

    def kernel(a: jax.Array, b: jax.Array) -> jax.Array:
        norms = (a**2).sum(-1)[:, None] + (b**2).sum(-1)[None]
        squares = norms - 2 * jnp.matmul(a, b.T, precision="highest")
        return w @ jnp.exp(-jnp.maximum(squares, 0) / (2 * d)) @ w

    within_a = (kernel(a_BxD, a_BxD) - n) / (n * (n - 1))
    within_b = (kernel(b_BxD, b_BxD) - n) / (n * (n - 1))
    return within_a + within_b - 2 * kernel(a_BxD, b_BxD) / n**2
