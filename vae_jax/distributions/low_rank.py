"""A Gaussian whose covariance is a diagonal plus a matrix of low rank."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.distributions.keys import standard_normal
from vae_jax.distributions.normal import LOG_2PI, Normal, kl_normal, real, register_kl


class LowRankNormal(NamedTuple):
    r"""N(μ, S (I + U Uᵀ) S) with S = diag σ: a diagonal covariance and R directions more.

    U is in units of each dimension's own σ. Nothing of size D x D is computed: with M = I + UᵀU
    (R x R), by Woodbury's identity and the determinant lemma,

    .. math:: \log N = -\tfrac12 \big(\|e - Uw\|^2 + \|w\|^2 + \log\det M + \textstyle\sum_d
              \log\sigma_d^2 + D \log 2\pi\big), \quad e = S^{-1}(z - \mu), \; w = M^{-1} U^T e

    The two squares are eᵀ (I + U Uᵀ)⁻¹ e without a difference of large numbers.
    A factor covariance, as of Ong, Nott & Smith 2018 (arXiv:1701.03208), section 3.
    """

    mu: jax.Array  # BxD
    logvar: jax.Array  # BxD   log σ²
    factor: jax.Array  # BxDxR U

    def sample(self, keys: jax.Array) -> jax.Array:
        return self.sample_and_log_prob(keys)[0]

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        scaled = (real(z_BxD) - real(self.mu)) * jnp.exp(-0.5 * real(self.logvar))
        return self._log_density(scaled)

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z = μ + σ (ε + U ε'), of D + R numbers of noise, and log N(z)."""
        mu = real(self.mu)
        factor = real(self.factor)
        size, rank = factor.shape[-2:]
        noise = standard_normal(keys, size + rank, mu.dtype)
        shared = jnp.einsum("...dr,...r->...d", factor, noise[..., size:], precision="highest")
        scaled = noise[..., :size] + shared
        return mu + jnp.exp(0.5 * real(self.logvar)) * scaled, self._log_density(scaled)

    def _log_density(self, scaled: jax.Array) -> jax.Array:
        """log N of e = (z − μ) / σ, shape BxD or KxBxD."""
        factor = real(self.factor)
        root = _root(factor)
        # w of every sample from one matrix of each example: M is not solved K times.
        to_w_BxRxD = jax.scipy.linalg.cho_solve((root, True), jnp.swapaxes(factor, -1, -2))
        w = jnp.einsum("...rd,...d->...r", to_w_BxRxD, scaled, precision="highest")
        rest = scaled - jnp.einsum("...dr,...r->...d", factor, w, precision="highest")
        squares = jnp.sum(rest**2, axis=-1) + jnp.sum(w**2, axis=-1)
        constants = jnp.sum(LOG_2PI + real(self.logvar), axis=-1)
        return -0.5 * (squares + constants) - _half_log_det(root)


def _root(factor_BxDxR: jax.Array) -> jax.Array:
    """The lower Cholesky factor of M = I + UᵀU, BxRxR."""
    product = jnp.einsum("...dr,...ds->...rs", factor_BxDxR, factor_BxDxR, precision="highest")
    return jnp.linalg.cholesky(product + jnp.eye(product.shape[-1], dtype=product.dtype))


def _half_log_det(root_BxRxR: jax.Array) -> jax.Array:
    """½ log det M from its Cholesky factor."""
    return jnp.sum(jnp.log(jnp.diagonal(root_BxRxR, axis1=-2, axis2=-1)), axis=-1)


@register_kl(LowRankNormal, Normal)
def kl_low_rank(q: LowRankNormal, p: Normal) -> jax.Array:
    r"""KL(q ‖ p) for p = N(μ_p, diag σ_p²); nats per example, shape B.

    .. math:: KL(N(\mu, \mathrm{diag}\,\sigma^2) \| p) - \tfrac12 \log\det M
              + \tfrac12 \sum_{dk} r_d U_{dk}^2, \qquad r_d = \sigma_d^2 / \sigma_{p,d}^2

    The last two terms are what the R directions add to :func:`kl_normal`.
    """
    factor = real(q.factor)
    ratio_BxD = jnp.exp(real(q.logvar) - real(p.logvar))
    spread = 0.5 * jnp.sum(ratio_BxD * jnp.sum(factor**2, axis=-1), axis=-1)
    return kl_normal(q.mu, q.logvar, p.mu, p.logvar) + spread - _half_log_det(_root(factor))
