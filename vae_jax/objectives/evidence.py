"""The evidence lower bound, and losses that weigh its two parts differently."""

from typing import Any

import jax
import jax.numpy as jnp

from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.models.core import Model, Params
from vae_jax.objectives.terms import Terms, bound, with_gradient_of


def elbo(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 1.0,
    samples: int = 1,
    stl: bool = False,
) -> Terms:
    r"""The evidence lower bound; with ``beta`` ≠ 1 the beta-VAE.

    .. math:: -\mathrm{loss} = \tfrac1K \sum_k \log p(x|z_k) - \beta\, KL(q(z|x) ‖ p(z)),
              \quad z_k \sim q(z|x)

    ``stl`` leaves the score term, zero in expectation, out of the gradient (sticking the landing,
    Roeder et al. 2017, arXiv:1703.09194); the KL is then the sampled one.

    Kingma & Welling 2014 (arXiv:1312.6114), eq. 3 and 10; beta: Higgins et al. 2017, eq. 4.
    """
    x = batch["image"]
    d = model.draw(params, x, split_keys(keys, samples))
    value, log_px, kl = bound(d)
    if stl:
        path = path_log_w(model, params, x, d.z).mean(0)
        kl = log_px - path
        value = path
    return Terms(beta * kl - log_px, value, log_px, kl)


def path_log_w(model: Model, params: Params, x: jax.Array, z: jax.Array) -> jax.Array:
    """log p(x, z) − log q(z|x), whose gradient goes through z alone in q; q's *parameters* are
    constants.

    Never stop what a lower level is conditioned on (Roeder et al. 2017, arXiv:1703.09194, eq. 7).
    """
    log_qz = model.log_posterior(jax.lax.stop_gradient(params), x, z)
    return model.log_joint(params, x, z) - log_qz


def free_bits(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    nats: float = 0.5,
    per: str = "dimension",
    samples: int = 1,
) -> Terms:
    r"""No pressure on a group j of latents until its mean rate over the batch exceeds λ = ``nats``.

    .. math:: -\mathrm{loss} = E_q \log p(x|z) - \sum_j \max(\lambda, \tfrac1B \sum_b KL_{bj})

    ``per``: 'dimension' (needs diagonal Gaussians) or 'level' (all of z in a one-layer model). A
    group below λ adds the constant λ and gets no gradient from the KL at all; one above adds its KL
    with its whole gradient. The batch mean decides which of the two it is, without a gradient.

    Kingma et al. 2016 (arXiv:1606.04934), eq. 15. λ = 0 is the ELBO.
    """
    d = model.draw(params, batch["image"], split_keys(keys, samples))
    value, log_px, kl = bound(d)
    if per == "dimension":
        kl_BxJ = kl_per_dimension(model.encode(params, batch["image"]), model.prior(params))
    elif per == "level":
        kl_BxJ = d.kl.mean(0)
    else:
        raise UserError(f"objective.per={per}: want dimension or level")
    mask = batch.get("mask", jnp.ones(len(kl), bool))[:, None]
    mean_J = jnp.where(mask, kl_BxJ, 0).sum(0) / jnp.maximum(mask.sum(), 1)
    paid = jnp.where(mean_J > nats, kl_BxJ, nats).sum(-1)
    return Terms(paid - log_px, value, log_px, kl)


def kl_per_dimension(q: Any, p: Any) -> jax.Array:
    """KL of each dimension, BxD, for diagonal Gaussians."""
    if not (isinstance(q, densities.Normal) and isinstance(p, densities.Normal)):
        raise UserError("objective.per=dimension: the KL has no dimensions here; want per=level")

    columns = []
    for array in (*q, *p):
        columns.append(jnp.broadcast_to(array, q.mu.shape)[..., None])
    return densities.kl_normal(*columns)


def capacity(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    capacity: float = 25.0,
    gamma: float = 30.0,
    samples: int = 1,
) -> Terms:
    r"""The rate is held at a capacity C, which ``warmup.of=capacity`` raises from 0.

    .. math:: -\mathrm{loss} = E_q \log p(x|z) - \gamma\, |KL(q(z|x) ‖ p(z)) - C(t)|

    Burgess et al. 2018 (arXiv:1804.03599), eq. 8; |·| is taken for each example.
    """
    value, log_px, kl = bound(model.draw(params, batch["image"], split_keys(keys, samples)))
    return Terms(gamma * jnp.abs(kl - capacity) - log_px, value, log_px, kl)


def geco(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    target: float = 100.0,
    samples: int = 1,
) -> Terms:
    r"""The smallest rate under a constraint on the distortion: −E log p(x|z) ≤ ``target`` nats.

    .. math:: \min_{\theta,\phi} \max_\lambda\; KL + e^{\lambda}\,C,
              \quad C = -E_q\log p(x|z) - \mathrm{target}

    λ is ``params["objective"]``; its gradient is turned round, so that the same optimiser raises it
    while the constraint is violated. (The paper moves the multiplier by exp of an averaged
    constraint, outside the optimiser; here the optimiser's own averaging does that.)

    Rezende & Viola 2018 (arXiv:1810.00597), section 2.1 and algorithm 1.
    """
    value, log_px, kl = bound(model.draw(params, batch["image"], split_keys(keys, samples)))
    log_multiplier = params["objective"]["log_multiplier"]
    constraint = -log_px - target
    multiplier = jnp.exp(log_multiplier)
    stop = jax.lax.stop_gradient
    saddle = stop(multiplier) * constraint - multiplier * stop(constraint)
    loss = kl + with_gradient_of(multiplier * constraint, saddle)
    extra = {"multiplier": jnp.broadcast_to(multiplier, loss.shape)}
    return Terms(loss, value, log_px, kl, extra)


def _init_multiplier(key: jax.Array, model: Model) -> Params:
    return {"log_multiplier": jnp.zeros(())}


geco.init = _init_multiplier
