"""The recurrent net that finds one object after another in an image."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax import distributions as densities

LOGVAR = (-20.0, 20.0)
PRESENCE_BIAS = 2.0  # of the first logit: objects are tried before they are given up
WHERE_LOGVAR = -3.0  # of the first position: noise of 0.2 prior deviations


class Attend(nn.Module):
    """One step: (state_BxU, features_BxF, z_BxE of the step before) → its successor's beliefs.

    Returns the new state, the logit of q(present), shape B, and q(where) of ``where`` dimensions.
    """

    units: int
    where: int = 3
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, state: jax.Array, features: jax.Array, z: jax.Array
    ) -> tuple[jax.Array, jax.Array, densities.Normal]:
        h = jnp.concatenate([features.astype(self.dtype), z.astype(self.dtype)], axis=-1)
        state, h = nn.GRUCell(self.units, dtype=self.dtype)(state, h)
        out = nn.Dense(1 + 2 * self.where, dtype=self.dtype, name="out")(h).astype(jnp.float32)
        logit = out[:, 0] + PRESENCE_BIAS
        mu, logvar = jnp.split(out[:, 1:], 2, axis=-1)
        return (
            state,
            logit,
            densities.Normal(mu, densities.soft_clip(logvar + WHERE_LOGVAR, *LOGVAR)),
        )
