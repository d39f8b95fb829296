"""Heads of finite scalar quantisation (Mentzer et al. 2024, arXiv:2309.15505)."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.config import UserError
from vae_jax.distributions import quantised


def checked(latent: int, grid: Sequence[int]) -> quantised.Grid:
    """``grid`` as a tuple.

    Raises:
      UserError: a dimension has fewer than 2 values, or D is no multiple of the grid's length.
    """
    grid = tuple(grid)
    if not grid or min(grid) < 2:
        raise UserError(f"posterior.grid={grid}: want numbers of values >= 2, such as (8, 5, 5, 5)")
    if latent % len(grid):
        near = max(1, round(latent / len(grid))) * len(grid)
        words = f"want a multiple of the {len(grid)} dimensions of grid={grid}, such as {near}"
        raise UserError(f"latent={latent}: {words}")
    return grid


class FiniteScalar(nn.Module):
    """q(z|x): a point of the grid; (8, 5, 5, 5) has 1,000 codes for each token of 4 numbers."""

    shape: int  # D
    grid: Sequence[int] = (8, 5, 5, 5)
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"grid{tuple(self.grid)}"

    @nn.compact
    def __call__(self, h: jax.Array) -> quantised.Quantised:
        grid = checked(self.shape, self.grid)
        # With biases of 0 small features all round to z = 0, where a ReLU decoder has no gradient.
        bias_init = nn.initializers.normal(1.0)
        layer = nn.Dense(self.shape, bias_init=bias_init, dtype=self.dtype, name="projection")
        out = layer(h)
        return quantised.Quantised(quantised.quantise(out, grid), grid)


class GridPrior(nn.Module):
    """p(z): uniform over the grid, or with ``learn`` any distribution of each dimension."""

    shape: int  # D
    grid: Sequence[int] = (8, 5, 5, 5)
    learn: bool = False
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"grid{tuple(self.grid)}"

    @nn.compact
    def __call__(self) -> quantised.GridPrior:
        grid = checked(self.shape, self.grid)
        size = (self.shape, max(grid))
        if not self.learn:
            return quantised.GridPrior(jnp.zeros(size), grid)
        return quantised.GridPrior(self.param("logits", nn.initializers.zeros, size), grid)


POSTERIORS = {"fsq": FiniteScalar}
PRIORS = {"grid": GridPrior}
