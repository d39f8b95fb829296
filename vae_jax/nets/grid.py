"""The head of a grid model: of each cell, whether an object is there, and where."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax import distributions as densities
from vae_jax.nets.attend import LOGVAR, WHERE_LOGVAR
from vae_jax.nets.detection import DenseHead


class CellHead(nn.Module):
    """map_BxGxGxF → (logits of the presences BxN, q(where) BxNx``where``), N = G² cells by rows."""

    widths: Sequence[int]
    where: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, map_BxGxGxF: jax.Array) -> tuple[jax.Array, densities.Normal]:
        out = DenseHead(1 + 2 * self.where, self.widths, dtype=self.dtype)(map_BxGxGxF)
        size = len(out)
        out = out.astype(jnp.float32).reshape(size, -1, out.shape[-1])
        mu, logvar = jnp.split(out[..., 1:], 2, axis=-1)
        logvar = densities.soft_clip(logvar + WHERE_LOGVAR, *LOGVAR)
        return out[..., 0], densities.Normal(mu, logvar)
