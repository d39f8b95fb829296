"""Clusters that are learnt with the code: the bound of VaDE."""

import jax
import jax.numpy as jnp

from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.distributions import MixtureOfNormals, split_keys
from vae_jax.models.core import Model, Params
from vae_jax.models.vae import log_likelihood
from vae_jax.objectives.terms import Terms


def log_assignments(prior: MixtureOfNormals, z_BxD: jax.Array) -> jax.Array:
    r"""log p(c|z) by Bayes' rule, BxM; z_KxBxD gives KxBxM.

    .. math:: p(c|z) = \frac{\pi_c\, N(z; \mu_c, \mathrm{diag}\,\sigma_c^2)}
              {\sum_{c'} \pi_{c'}\, N(z; \mu_{c'}, \mathrm{diag}\,\sigma_{c'}^2)}
    """
    log_z = densities.log_normal(z_BxD[..., None, :], prior.mu, prior.logvar)
    return jax.nn.log_softmax(log_z + jax.nn.log_softmax(prior.logits))


def vade(model: Model, params: Params, batch: dict, keys: jax.Array, *, samples: int = 1) -> Terms:
    r"""The bound of a VAE whose prior is a mixture, with its clusters c as a second latent.

    .. math:: -\mathrm{loss} = E_{q(z|x)} \log p(x|z)
              - \sum_c \gamma_c\, KL(q(z|x) \| p(z|c)) - KL(\gamma \| \pi),
              \quad \gamma_c = q(c|x) = \tfrac1K \textstyle\sum_k p(c|z_k), \quad z_k \sim q(z|x)

    The sum over c and each KL of Gaussians are exact. It is a bound on log p(x) for any γ, below
    that of ``elbo``, with its KL to the whole mixture, by the mean of KL(γ ‖ p(c|z)) over q(z|x).

    Jiang et al. 2017 (arXiv:1611.05148), eq. 9 and 16. Their clusters begin at a mixture fitted to
    the codes of a trained autoencoder: ``python -m vae_jax.tools.density --into``, and
    ``config.init_from``.

    Raises:
      UserError: the posterior is no diagonal Gaussian, or the prior no mixture of them.
    """
    x = batch["image"]
    q = model.encode(params, x)
    prior = model.prior(params)
    if not isinstance(q, densities.Normal) or not isinstance(prior, MixtureOfNormals):
        raise UserError(
            "objective.name=vade: wants clusters; want posterior.name=gaussian and "
            "prior.name=mixture"
        )
    z_KxBxD = q.sample(split_keys(keys, samples))
    log_px = log_likelihood(model.spec, model.decode, params, x, z_KxBxD).mean(0)
    log_gamma = jax.nn.logsumexp(log_assignments(prior, z_KxBxD), axis=0) - jnp.log(samples)
    kl_BxM = densities.kl_normal(q.mu[:, None], q.logvar[:, None], prior.mu, prior.logvar)
    log_pi_M = jax.nn.log_softmax(prior.logits)
    kl = jnp.sum(jnp.exp(log_gamma) * (kl_BxM + log_gamma - log_pi_M), axis=-1)
    clusters = -jnp.sum(jnp.exp(log_gamma) * log_gamma, axis=-1)
    return Terms(kl - log_px, log_px - kl, log_px, kl, {"assignment_entropy": clusters})


vade.needs = "mixture"
