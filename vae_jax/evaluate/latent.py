"""What the code z says of x: the rate, taken apart.

The average rate splits exactly (Hoffman & Johnson 2016, "ELBO surgery", eq. 4):

.. math:: E_x KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)),
          \\quad q(z) = \\tfrac1N \\sum_n q(z|x_n)
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import distributions as densities
from vae_jax.train import program as compile_lib


def kl_per_dimension(
    mu_NxD: np.ndarray, logvar_NxD: np.ndarray, prior: densities.Normal
) -> np.ndarray:
    """Mean KL(q(z_d|x) ‖ p(z_d)) of each latent dimension over N examples; nats, shape D.

    q and the prior are diagonal Gaussians: the KL of others is no sum over dimensions.
    """
    return _kl(mu_NxD, logvar_NxD, prior).mean(0)


def _kl(mu_NxD: np.ndarray, logvar_NxD: np.ndarray, prior: densities.Normal) -> np.ndarray:
    mu, logvar, mu_p, logvar_p = (np.asarray(a, np.float64) for a in (mu_NxD, logvar_NxD, *prior))
    log_r = logvar - logvar_p
    return 0.5 * ((mu - mu_p) ** 2 * np.exp(-logvar_p) + np.expm1(log_r) - log_r)


def surgery(q: densities.Normal, prior: Any, key: jax.Array, chunk: int = 500) -> dict[str, float]:
    """Rate, mutual information and aggregate KL in nats, for diagonal posteriors q of N examples.

    One z per example; log q(z) is the log of the exact mixture over the same N posteriors, so the
    mutual information is at most log N, and that of a small N is an underestimate for the
    population. The aggregate KL is the rate less the mutual information. Where the prior is a
    diagonal Gaussian too, the rate is analytic, so that log p(z) at the draws adds no noise.

    ``mutual_information_se`` and ``aggregate_kl_se`` are standard errors: sd / √N over examples,
    which counts the noise of the draws and the choice of the examples.
    """
    z_NxD, log_qzx_N = q.sample_and_log_prob(densities.example_keys(key, jnp.arange(len(q.mu))))
    n = len(z_NxD)
    mixture = densities.MixtureOfNormals(jnp.zeros(n), q.mu, q.logvar)
    log_prob = compile_lib.simple(mixture.log_prob)
    parts = []
    for start in range(0, n, chunk):
        parts.append(np.asarray(log_prob(z_NxD[start : start + chunk]), np.float64))
    log_qzx = np.asarray(log_qzx_N, np.float64)
    information_N = log_qzx - np.concatenate(parts)
    if isinstance(prior, densities.Normal):
        rate_N = _kl(q.mu, q.logvar, prior).sum(1)
    else:
        rate_N = log_qzx - np.asarray(prior.log_prob(z_NxD), np.float64)
    aggregate_N = rate_N - information_N
    return {
        "mutual_information": float(information_N.mean()),
        "mutual_information_se": _standard_error(information_N),
        "aggregate_kl": float(aggregate_N.mean()),
        "aggregate_kl_se": _standard_error(aggregate_N),
        "rate": float(rate_N.mean()),
    }


def _standard_error(value_N: np.ndarray) -> float | None:
    """sd / √N; None of one value."""
    if len(value_N) < 2:
        return None
    return float(value_N.std(ddof=1) / np.sqrt(len(value_N)))
