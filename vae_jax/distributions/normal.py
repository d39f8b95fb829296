"""Gaussian densities, their divergences, and distributions as tuples of arrays.

Every function returns nats, summed over the last axis D, one number per example. The arithmetic is
in float32 whatever the inputs are (float64 inputs stay float64).

A distribution is a pytree of arrays with

- ``sample(keys) -> z``, a draw for each key: ``keys_B`` gives ``z_BxD``, ``keys_KxB`` gives
  ``z_KxBxD``,
- ``log_prob(z_BxD) -> B``, or ``z_KxBxD -> KxB``,
- ``sample_and_log_prob(keys)``, both at once.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions.keys import standard_normal

LOG_2PI = math.log(2 * math.pi)


def real(array: jax.typing.ArrayLike) -> jax.Array:
    """``array`` in float32, or in float64 where it already is (finite differences need that)."""
    array = jnp.asarray(array)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def soft_clip(v: jax.typing.ArrayLike, lo: float, hi: float) -> jax.Array:
    r"""A smooth bound: v itself in the middle, never beyond [lo, hi], never without gradient.

    .. math:: f(v) = hi - \frac{m^2}{m + (v - (hi - m))} \quad\text{for } v > hi - m,
              \qquad f(v) = v \quad\text{for } lo + m \le v \le hi - m

    and its mirror image below, with m = min(1, (hi - lo) / 4). The value and the first derivative
    are continuous. The gradient at distance u from the middle is (1 + u / m)^-2: 1e-6 at u = 1000
    for m = 1, and above 0 in float32 for every \|v\| < 1e18. A hard clamp has none out there and an
    exponential tail loses it 90 units out, so a log-variance once lost would stay lost.
    """
    v = real(v)
    m = min(1.0, (hi - lo) / 4)
    over = v > hi - m
    under = v < lo + m
    above = jnp.where(over, v - (hi - m), 0.0)  # the unused branch stays finite
    below = jnp.where(under, (lo + m) - v, 0.0)
    clipped = jnp.where(over, hi - m * m / (m + above), v)
    return jnp.where(under, lo + m * m / (m + below), clipped)


def log_normal(z_BxD: jax.Array, mu_BxD: jax.Array, logvar_BxD: jax.Array) -> jax.Array:
    r"""log N(z; μ, diag σ²); nats per example, shape B.

    .. math:: -\tfrac12 \sum_d \big(\log 2\pi + \log\sigma_d^2 + (z_d - \mu_d)^2 / \sigma_d^2\big)
    """
    logvar = real(logvar_BxD)
    scaled = (real(z_BxD) - real(mu_BxD)) * jnp.exp(-0.5 * logvar)
    return -0.5 * jnp.sum(LOG_2PI + logvar + scaled**2, axis=-1)


def entropy_normal(logvar_BxD: jax.Array) -> jax.Array:
    r"""Entropy of N(μ, diag σ²): ½ Σ_d (1 + log 2π + log σ_d²); nats per example, shape B."""
    return 0.5 * jnp.sum(1 + LOG_2PI + real(logvar_BxD), axis=-1)


def kl_std_normal(mu_BxD: jax.Array, logvar_BxD: jax.Array) -> jax.Array:
    r"""KL(N(μ, diag σ²) ‖ N(0, I)); nats per example, shape B.

    .. math:: \tfrac12 \sum_d (\mu_d^2 + \sigma_d^2 - 1 - \log\sigma_d^2)

    Kingma & Welling 2014 (arXiv:1312.6114), Appendix B. ``expm1`` keeps the value exact as a
    dimension collapses (log σ² → 0).
    """
    logvar = real(logvar_BxD)
    return 0.5 * jnp.sum(real(mu_BxD) ** 2 + jnp.expm1(logvar) - logvar, axis=-1)


def kl_normal(
    mu_q_BxD: jax.Array, logvar_q_BxD: jax.Array, mu_p_BxD: jax.Array, logvar_p_BxD: jax.Array
) -> jax.Array:
    r"""KL(N(μ_q, diag σ_q²) ‖ N(μ_p, diag σ_p²)); nats per example, shape B.

    .. math:: \tfrac12 \sum_d \big((\mu_q - \mu_p)^2 / \sigma_p^2 + r - 1 - \log r\big),
              \qquad r = \sigma_q^2 / \sigma_p^2
    """
    logvar_p = real(logvar_p_BxD)
    log_r = real(logvar_q_BxD) - logvar_p
    scaled = (real(mu_q_BxD) - real(mu_p_BxD)) * jnp.exp(-0.5 * logvar_p)
    return 0.5 * jnp.sum(scaled**2 + jnp.expm1(log_r) - log_r, axis=-1)


def kl_full_normal(
    mu_q_BxD: jax.Array, scale_tril_BxDxD: jax.Array, mu_p_BxD: jax.Array, logvar_p_BxD: jax.Array
) -> jax.Array:
    r"""KL(N(μ_q, L Lᵀ) ‖ N(μ_p, diag σ_p²)) for lower-triangular L; nats per example, shape B.

    .. math:: \tfrac12 \sum_d \big((\mu_q - \mu_p)_d^2 / \sigma_d^2 + \textstyle\sum_{j<d}
              L_{dj}^2 / \sigma_d^2 + r_d - 1 - \log r_d\big), \qquad r_d = L_{dd}^2 / \sigma_d^2

    The off-diagonal terms are what full covariance adds to :func:`kl_normal`.
    """
    diagonal = _diagonal(scale_tril_BxDxD)
    logvar_p = real(logvar_p_BxD)
    off_BxD = jnp.sum(jnp.tril(real(scale_tril_BxDxD), -1) ** 2, axis=-1)
    off = 0.5 * jnp.sum(off_BxD * jnp.exp(-logvar_p), axis=-1)
    return off + kl_normal(mu_q_BxD, 2 * jnp.log(diagonal), mu_p_BxD, logvar_p)


def scale_tril(logvar_BxD: jax.Array, lower_BxT: jax.Array) -> jax.Array:
    """L_BxDxD = diag(exp(logvar / 2)) (I + T), where T is ``lower``, D (D - 1) / 2 numbers row by
    row below the diagonal: the outputs of a net as the parameter of :class:`FullNormal`.

    T is in units of the row's own scale, so L is as well conditioned as I + T whatever logvar is.
    """
    logvar = real(logvar_BxD)
    lower = real(lower_BxT)
    d = logvar.shape[-1]
    rows, columns = np.tril_indices(d, -1)
    unit = jnp.broadcast_to(jnp.eye(d, dtype=logvar.dtype), (*logvar.shape, d))
    return jnp.exp(0.5 * logvar)[..., None] * unit.at[..., rows, columns].set(lower)


def _diagonal(l_BxDxD: jax.Array) -> jax.Array:
    return jnp.diagonal(real(l_BxDxD), axis1=-2, axis2=-1)


class Normal(NamedTuple):
    """N(μ, diag σ²). A prior is ``Normal(zeros_D, zeros_D)``; ``sample(keys_B)`` gives z_BxD."""

    mu: jax.Array  # BxD
    logvar: jax.Array  # BxD

    def sample(self, keys: jax.Array) -> jax.Array:
        return self.sample_and_log_prob(keys)[0]

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        return log_normal(z_BxD, self.mu, self.logvar)

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z = μ + σ ε and log N(z) from ε itself, which z - μ would give back only rounded."""
        mu, logvar = jnp.broadcast_arrays(real(self.mu), real(self.logvar))
        eps = standard_normal(keys, mu.shape[-1], mu.dtype)
        log_prob = -0.5 * jnp.sum(LOG_2PI + logvar + eps**2, axis=-1)
        return mu + jnp.exp(0.5 * logvar) * eps, log_prob


class FullNormal(NamedTuple):
    """N(μ, L Lᵀ) with L lower-triangular and a positive diagonal; see :func:`scale_tril`."""

    mu: jax.Array  # BxD
    scale_tril: jax.Array  # BxDxD

    def sample(self, keys: jax.Array) -> jax.Array:
        return self.sample_and_log_prob(keys)[0]

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        r"""-½ ‖L⁻¹(z - μ)‖² - Σ_d log L_dd - ½ D log 2π."""
        mu = real(self.mu)
        l_BxDxD = real(self.scale_tril)
        difference = real(z_BxD) - mu
        d = mu.shape[-1]
        # Samples are the columns of one solve per example: L is not copied K times.
        columns = jnp.moveaxis(difference.reshape(-1, *mu.shape), 0, -1)
        eps = jax.lax.linalg.triangular_solve(l_BxDxD, columns, left_side=True, lower=True)
        squares = jnp.moveaxis(jnp.sum(eps**2, axis=-2), -1, 0).reshape(difference.shape[:-1])
        return -0.5 * (squares + d * LOG_2PI) - jnp.sum(jnp.log(_diagonal(l_BxDxD)), axis=-1)

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """z = μ + L ε and log N(z) from ε itself."""
        mu = real(self.mu)
        l_BxDxD = real(self.scale_tril)
        eps = standard_normal(keys, mu.shape[-1], mu.dtype)
        z = mu + jnp.einsum("...ij,...j->...i", l_BxDxD, eps, precision="highest")
        log_det = jnp.sum(jnp.log(_diagonal(l_BxDxD)), axis=-1)
        return z, -0.5 * jnp.sum(LOG_2PI + eps**2, axis=-1) - log_det


_KLS: dict[tuple[type, type], Callable[[Any, Any], jax.Array]] = {}


def register_kl(q_type: type, p_type: type) -> Callable[[Callable], Callable]:
    """Decorator: the function is KL(q ‖ p) of distributions of these types, in nats, shape B."""

    def register(function: Callable) -> Callable:
        _KLS[q_type, p_type] = function
        return function

    return register


def kl(q: Any, p: Any) -> jax.Array | None:
    """KL(q ‖ p) in nats, shape B, where a closed form is known; None where not, and then the
    caller estimates it as the mean of ``q.log_prob(z) - p.log_prob(z)`` over z ~ q."""
    function = _KLS.get((type(q), type(p)))
    return None if function is None else function(q, p)


def support(distribution: Any) -> str:
    """The set that a distribution lives on: "real" (R^D), or what the distribution itself says."""
    return getattr(distribution, "support", "real")


@register_kl(Normal, Normal)
def _kl_normals(q: Normal, p: Normal) -> jax.Array:
    return kl_normal(*q, *p)


@register_kl(FullNormal, Normal)
def _kl_full_to_diagonal(q: FullNormal, p: Normal) -> jax.Array:
    return kl_full_normal(*q, *p)


def stop(distribution: Any) -> Any:
    """``distribution`` with constant parameters.

    ``stop(q).log_prob(z)`` differentiates through z alone. That is the log q of "sticking the
    landing" (Roeder et al. 2017, arXiv:1703.09194): the score term, zero in expectation, is left
    out. Stop the parameters only, never what a lower level is conditioned on.
    """
    return jax.tree.map(jax.lax.stop_gradient, distribution)
