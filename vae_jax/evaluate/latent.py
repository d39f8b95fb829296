"""What the code z says of x: the rate, taken apart.

The average rate splits exactly (Hoffman & Johnson 2016, "ELBO surgery", eq. 4):

.. math:: E_x KL(q(z|x) ‖ p(z)) = I_q(x; z) + KL(q(z) ‖ p(z)), \\quad q(z) = \\tfrac1N \\sum_n q(z|x_n)
"""

import jax.numpy as jnp
import numpy as np

from vae_jax import distributions as densities
from vae_jax.train import program as compile_lib


def kl_per_dimension(mu_NxD, logvar_NxD, prior):
    """Mean KL(q(z_d|x) ‖ p(z_d)) of each latent dimension over N examples; nats, shape D.

    q and the prior, a ``densities.Normal``, are diagonal Gaussians: of others the KL is no sum over dimensions.
    """
    mu, logvar, mu_p, logvar_p = (np.asarray(a, np.float64) for a in (mu_NxD, logvar_NxD, *prior))
    log_r = logvar - logvar_p
    return 0.5 * ((mu - mu_p) ** 2 * np.exp(-logvar_p) + np.expm1(log_r) - log_r).mean(0)


def surgery(q, prior, key, chunk=500):
    """{'mutual_information', 'aggregate_kl', 'rate'} in nats, for diagonal posteriors q of N examples.

    One z per example; log q(z) is the log of the exact mixture over the same N posteriors, so the mutual
    information is at most log N, and that of a small N is an underestimate for the population.
    """
    z_NxD, log_qzx_N = q.sample_and_log_prob(densities.example_keys(key, jnp.arange(len(q.mu))))
    n = len(z_NxD)
    mixture = densities.MixtureOfNormals(jnp.zeros(n), q.mu, q.logvar)
    log_prob = compile_lib.simple(mixture.log_prob)
    log_qz = np.concatenate(
        [np.asarray(log_prob(z_NxD[i : i + chunk]), np.float64) for i in range(0, n, chunk)]
    )
    log_qzx, log_pz = (
        np.asarray(log_qzx_N, np.float64),
        np.asarray(prior.log_prob(z_NxD), np.float64),
    )
    return {
        "mutual_information": float((log_qzx - log_qz).mean()),
        "aggregate_kl": float((log_qz - log_pz).mean()),
        "rate": float((log_qzx - log_pz).mean()),
    }


def mutual_information_gap(z_NxD, factors_NxF, bins=20):
    r"""MIG: how much more the best latent dimension knows of each ground-truth factor than the next one.

    .. math:: \tfrac1F \sum_f \tfrac{1}{H(v_f)} \big(I(z_{d_1}; v_f) - I(z_{d_2}; v_f)\big)

    I from a histogram of z_d in ``bins`` equal-width bins; factors are integers. Between 0 and 1. Chen et
    al. 2018 (arXiv:1802.04942), eq. 6.

    No evaluation calls it: it wants the factors that made the images (position, scale, orientation, ...), as
    synthetic data has. A class label is one factor among others that nobody wrote down, and its gap alone
    says little.
    """
    z, factors = np.asarray(z_NxD), np.asarray(factors_NxF)
    edges = [np.linspace(c.min(), c.max(), bins + 1)[1:-1] for c in z.T]
    codes = [np.digitize(c, e) for c, e in zip(z.T, edges, strict=True)]
    gaps = []
    for v in factors.T:
        best = sorted((_information(code, v) for code in codes), reverse=True)
        gaps.append((best[0] - best[1]) / _entropy(np.unique(v, return_counts=True)[1]))
    return float(np.mean(gaps))


def _entropy(counts):
    p = counts[counts > 0] / counts.sum()
    return -float((p * np.log(p)).sum())


def _information(a, b):
    """Mutual information of two arrays of small integers, in nats: H(a) + H(b) − H(a, b)."""
    b = np.unique(b, return_inverse=True)[1]
    joint = np.bincount(a * (b.max() + 1) + b, minlength=(a.max() + 1) * (b.max() + 1)).reshape(
        -1, b.max() + 1
    )
    return _entropy(joint.sum(1)) + _entropy(joint.sum(0)) - _entropy(joint.ravel())
