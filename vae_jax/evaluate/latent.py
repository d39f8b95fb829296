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


def mutual_information_gap(z_NxD: np.ndarray, factors_NxF: np.ndarray, bins: int = 20) -> float:
    r"""MIG: how much more the best latent dimension knows of each factor than the next one.

    .. math:: \tfrac1F \sum_f \tfrac{1}{H(v_f)} \big(I(z_{d_1}; v_f) - I(z_{d_2}; v_f)\big)

    I from a histogram of z_d in ``bins`` equal-width bins; factors are integers. Between 0 and 1.
    Chen et al. 2018 (arXiv:1802.04942), eq. 6.

    No evaluation calls it: it wants the factors that made the images (position, scale, …), as
    synthetic data has. A class label is one factor among others that nobody wrote down.
    """
    codes = [_binned(column, bins) for column in np.asarray(z_NxD).T]
    gaps = []
    for v in np.asarray(factors_NxF).T:
        best = sorted((_information(code, v) for code in codes), reverse=True)
        gaps.append((best[0] - best[1]) / _entropy(np.unique(v, return_counts=True)[1]))
    return float(np.mean(gaps))


def _binned(value_N: np.ndarray, bins: int) -> np.ndarray:
    edges = np.linspace(value_N.min(), value_N.max(), bins + 1)
    return np.digitize(value_N, edges[1:-1])


def _entropy(counts: np.ndarray) -> float:
    p = counts[counts > 0] / counts.sum()
    return -float((p * np.log(p)).sum())


def _information(a_N: np.ndarray, b_N: np.ndarray) -> float:
    """Mutual information of two arrays of small integers, in nats: H(a) + H(b) − H(a, b)."""
    b = np.unique(b_N, return_inverse=True)[1]
    width = b.max() + 1
    joint = np.bincount(a_N * width + b, minlength=(a_N.max() + 1) * width).reshape(-1, width)
    return _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint.ravel())
