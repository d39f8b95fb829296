"""From features to q(z|x), and the prior p(z): modules that return a distribution of ``densities``."""

from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from vae_jax.densities import Normal, soft_clip


class Gaussian(nn.Module):
    """q(z|x) = N(μ(x), diag σ²(x)); log σ² is bounded smoothly so that exp never overflows."""

    shape: int  # D
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h):
        out = nn.Dense(2 * self.shape, dtype=self.dtype)(h).astype(jnp.float32)
        mu, logvar = jnp.split(out, 2, axis=-1)
        return Normal(mu, soft_clip(logvar, -20.0, 20.0))


class FixedNormal(nn.Module):
    """p(z) = N(0, I)."""

    shape: int  # D
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self):
        zeros = jnp.zeros(self.shape, jnp.float32)
        return Normal(zeros, zeros)
