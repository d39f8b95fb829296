"""Densities, divergences, likelihoods, priors and flows: nats, summed over event dimensions."""

from vae_jax.distributions.flows import (
    Flow,
    autoregressive,
    autoregressive_flow,
    coupling,
    coupling_flow,
    made_masks,
)
from vae_jax.distributions.likelihoods import (
    LIKELIHOODS,
    Likelihood,
    bits_per_dim,
    check,
    log_discretized_logistic,
    softplus,
)
from vae_jax.distributions.mixture import MixtureOfNormals, label_normal
from vae_jax.distributions.normal import (
    FullNormal,
    Normal,
    entropy_normal,
    kl,
    kl_full_normal,
    kl_normal,
    kl_std_normal,
    log_normal,
    real,
    scale_tril,
    soft_clip,
    stop,
)

__all__ = [
    "LIKELIHOODS",
    "Flow",
    "FullNormal",
    "Likelihood",
    "MixtureOfNormals",
    "Normal",
    "autoregressive",
    "autoregressive_flow",
    "bits_per_dim",
    "check",
    "coupling",
    "coupling_flow",
    "entropy_normal",
    "kl",
    "kl_full_normal",
    "kl_normal",
    "kl_std_normal",
    "label_normal",
    "log_discretized_logistic",
    "log_normal",
    "made_masks",
    "real",
    "scale_tril",
    "soft_clip",
    "softplus",
    "stop",
]
