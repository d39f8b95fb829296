"""Heads on the unit sphere: a von Mises-Fisher posterior and the uniform prior."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax import distributions


class VonMisesFisher(nn.Module):
    """q(z|x) = vMF(μ(x), κ(x)) on S^{D-1}; κ = 1 + softplus(·), as in the authors' code."""

    shape: int  # D, the dimensions of the space around the sphere
    dtype: Any = jnp.float32
    support = "sphere"

    @nn.compact
    def __call__(self, h: jax.Array) -> distributions.VonMisesFisher:
        direction = nn.Dense(self.shape, dtype=self.dtype, name="direction")(h).astype(jnp.float32)
        length = jnp.sqrt(jnp.sum(direction**2, axis=-1, keepdims=True) + 1e-12)
        concentration = nn.Dense(1, dtype=self.dtype, name="concentration")(h).astype(jnp.float32)
        kappa = 1.0 + nn.softplus(concentration[..., 0])
        return distributions.VonMisesFisher(direction / length, kappa)


class UniformSphere(nn.Module):
    """p(z): uniform on S^{D-1}."""

    shape: int  # D
    dtype: Any = jnp.float32
    support = "sphere"

    @nn.compact
    def __call__(self) -> distributions.UniformSphere:
        return distributions.UniformSphere(jnp.zeros(self.shape).at[0].set(1.0))
