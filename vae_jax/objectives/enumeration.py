"""Exact sums over all codes, for models of few."""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.models.core import Model, Params
from vae_jax.objectives.terms import Terms


def enumerated(
    model: Model, params: Params, batch: dict, keys: jax.Array, *, bound: str = "elbo"
) -> Terms:
    r"""The evidence lower bound, or the evidence itself, without a draw.

    .. math:: -\mathrm{loss} = \sum_z q(z|x) \big(\log p(x, z) - \log q(z|x)\big)
              \quad \mathrm{or} \quad \log \sum_z p(x, z)

    ``bound``: 'elbo' or 'evidence'. The decoder runs for every z, so the posterior and the prior
    must be of few codes (:data:`vae_jax.distributions.categorical.MOST_CODES`). Its gradients are
    those that straight-through and relaxed draws estimate. With bound=evidence nothing trains q.

    Raises:
      UserError: the prior is not one of codes, or they are too many.
    """
    x = batch["image"]
    prior = model.prior(params)
    if not hasattr(prior, "enumerate"):
        raise UserError(
            "objective.name=enumerated: z is not a code; want posterior.name=categorical "
            "and prior.name=categorical"
        )
    z_MxD = prior.enumerate()
    z = jnp.broadcast_to(z_MxD[:, None], (len(z_MxD), len(x), z_MxD.shape[-1]))
    log_joint_MxB = model.log_joint(params, x, z)
    log_prior_MxB = prior.log_prob(z)
    log_q_MxB = model.log_posterior(params, x, z)
    possible = log_q_MxB > -jnp.inf
    log_q_MxB = jnp.where(possible, log_q_MxB, 0.0)
    q_MxB = jnp.where(possible, jnp.exp(log_q_MxB), 0.0)
    log_px = jnp.sum(q_MxB * (log_joint_MxB - log_prior_MxB), axis=0)
    kl = jnp.sum(q_MxB * (log_q_MxB - log_prior_MxB), axis=0)
    evidence = jax.nn.logsumexp(log_joint_MxB, axis=0)
    if bound == "elbo":
        loss = kl - log_px
    elif bound == "evidence":
        loss = -evidence
    else:
        raise UserError(f"objective.bound={bound}: want elbo or evidence")
    return Terms(loss, log_px - kl, log_px, kl, {"evidence": evidence})


enumerated.needs = "codes"
