r"""The Poincaré ball of curvature −c: points of R^D with c ‖z‖² < 1, and wrapped normals on it.

Mathieu et al. 2019, Continuous Hierarchical Representations with Poincaré Variational
Auto-Encoders (arXiv:1901.06033). Densities are with respect to the ball's own volume,
(2 / (1 − c ‖z‖²))^D dz.
"""

import dataclasses

import jax
import jax.numpy as jnp

from vae_jax.distributions.keys import standard_normal
from vae_jax.distributions.normal import log_normal, real

EDGE = 1e-5  # 1 − √c ‖z‖ is kept above this: beyond it float32 knows no distance


def norm(v: jax.Array) -> jax.Array:
    """‖v‖ of the last axis, kept as an axis of 1; its gradient at 0 is 0."""
    return jnp.sqrt(jnp.sum(v**2, axis=-1, keepdims=True) + 1e-20)


def add(x: jax.Array, y: jax.Array, c: float) -> jax.Array:
    r"""Möbius addition, x ⊕ y.

    .. math:: \frac{(1 + 2c\langle x, y\rangle + c\|y\|^2)\, x + (1 - c\|x\|^2)\, y}
              {1 + 2c\langle x, y\rangle + c^2 \|x\|^2 \|y\|^2}
    """
    product = jnp.sum(x * y, axis=-1, keepdims=True)
    x2 = jnp.sum(x**2, axis=-1, keepdims=True)
    y2 = jnp.sum(y**2, axis=-1, keepdims=True)
    above = (1 + 2 * c * product + c * y2) * x + (1 - c * x2) * y
    return above / (1 + 2 * c * product + c**2 * x2 * y2)


def exp_origin(v: jax.Array, c: float) -> jax.Array:
    """The point at distance ‖v‖ from 0 in the direction of v: tanh(√c ‖v‖ / 2) v / (√c ‖v‖)."""
    root = c**0.5
    length = norm(v)
    reach = jnp.minimum(jnp.tanh(root * length / 2), 1 - EDGE)
    return reach * v / (root * length)


def log_origin(z: jax.Array, c: float) -> jax.Array:
    """The inverse of :func:`exp_origin`."""
    root = c**0.5
    length = norm(z)
    reach = jnp.minimum(root * length, 1 - EDGE)
    return 2 * jnp.arctanh(reach) * z / (root * length)


def log_volume(length: jax.Array, c: float) -> jax.Array:
    """log(sinh(√c r) / (√c r)): how much faster volume grows than in flat space, per dimension."""
    x = c**0.5 * length
    small = x < 0.1
    safe = jnp.where(small, 1.0, x)
    far = safe + jnp.log1p(-jnp.exp(-2 * safe)) - jnp.log(2 * safe)
    return jnp.where(small, x**2 / 6 - x**4 / 180, far)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class WrappedNormal:
    r"""z = μ ⊕ exp_0(v), v ~ N(0, diag σ²); v is a tangent vector at μ of length d(μ, z).

    .. math:: \log p(z) = \log N(v; 0, \sigma^2) - (D - 1) \log
              \frac{\sinh(\sqrt c\, r)}{\sqrt c\, r}, \qquad r = \|v\|

    Mathieu et al. 2019, eq. 4 (wrapped) and section 3.2.
    """

    mu: jax.Array  # BxD, in the ball
    logvar: jax.Array  # BxD
    c: float = dataclasses.field(default=1.0, metadata={"static": True})

    @property
    def support(self) -> str:
        return f"ball({self.c})"

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        """A point for each key, and its log density from v itself."""
        mu, logvar = jnp.broadcast_arrays(real(self.mu), real(self.logvar))
        noise = standard_normal(keys, mu.shape[-1], mu.dtype)
        v = jnp.exp(0.5 * logvar) * noise
        return add(mu, exp_origin(v, self.c), self.c), self._log_density(v, logvar)

    def sample(self, keys: jax.Array) -> jax.Array:
        return self.sample_and_log_prob(keys)[0]

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Nats with respect to the ball's volume, shape B; z_KxBxD gives KxB."""
        v = log_origin(add(-real(self.mu), real(z), self.c), self.c)
        return self._log_density(v, real(self.logvar))

    def _log_density(self, v: jax.Array, logvar: jax.Array) -> jax.Array:
        flat = log_normal(v, jnp.zeros_like(v), logvar)
        return flat - (v.shape[-1] - 1) * log_volume(norm(v)[..., 0], self.c)
