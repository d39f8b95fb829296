r"""Finite scalar quantisation: each number of z is rounded to a grid of its own.

Mentzer et al. 2024 (arXiv:2309.15505). A token is G numbers with grids of L_1, …, L_G values, so
it has Π L_g codes and no codebook is learned. z is flat, BxD, with P = D / G tokens side by side.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions.categorical import all_codes
from vae_jax.distributions.normal import real, register_kl

Grid = tuple[int, ...]  # L_1, …, L_G
EDGE = 1e-3  # how far the bound lies beyond the outermost value, as in the authors' code


def counts(grid: Grid, d: int) -> np.ndarray:
    """The number of values of each of D dimensions: ``grid``, again and again."""
    return np.tile(np.array(grid), d // len(grid))


def to_index(z: jax.Array, grid: Grid) -> jax.Array:
    """The place 0, …, L − 1 of each value of z on its grid."""
    half = counts(grid, z.shape[-1]) // 2
    return jnp.round(real(z) * half).astype(jnp.int32) + half


def from_index(index: jax.Array | np.ndarray, grid: Grid) -> jax.Array:
    """The values (i − ⌊L/2⌋) / ⌊L/2⌋ of the places i, in [−1, 1]."""
    half = counts(grid, index.shape[-1]) // 2
    return jnp.asarray((index - half) / half, jnp.float32)


def quantise(h: jax.Array, grid: Grid) -> jax.Array:
    """h_…xD bounded by a tanh and rounded to the grid; the gradient is that of the bound.

    Mentzer et al. 2024, section 3.1 and appendix A.
    """
    count = counts(grid, h.shape[-1])
    radius = (count - 1) * (1 + EDGE) / 2
    offset = np.where(count % 2 == 0, 0.5, 0.0)  # of an even number of values, which has no middle
    shift = np.float32(np.arctanh(offset / radius))
    bounded = jnp.tanh(real(h) + shift) * np.float32(radius) - np.float32(offset)
    rounded = jnp.round(jax.lax.stop_gradient(bounded))
    value = rounded + (bounded - jax.lax.stop_gradient(bounded))
    return value / np.float32(count // 2)


def token_index(z: jax.Array, grid: Grid) -> jax.Array:
    """The code 0, …, Π L_g − 1 of each token, int BxP; the first dimension counts fastest."""
    basis = np.cumprod((1, *grid[:-1]))
    index = to_index(z, grid)
    tokens = index.reshape(*index.shape[:-1], -1, len(grid))
    return jnp.sum(tokens * basis, axis=-1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Quantised:
    """q(z|x) = 1 at one point of the grid, so that log q = 0 and a draw has no noise."""

    z: jax.Array  # BxD, values of the grid
    grid: Grid = dataclasses.field(metadata={"static": True})

    @property
    def support(self) -> str:
        return f"grid{self.grid}"

    @property
    def size(self) -> int:
        """The number of codes of a token."""
        return math.prod(self.grid)

    @property
    def mu(self) -> jax.Array:
        return self.z

    def log_prob(self, z: jax.Array) -> jax.Array:
        """0 at the point, −∞ elsewhere; shape B, z_KxBxD gives KxB."""
        same = to_index(z, self.grid) == to_index(self.z, self.grid)
        return jnp.where(same.all(-1), 0.0, -jnp.inf)

    def sample(self, keys: jax.Array) -> jax.Array:
        """The point itself for each key."""
        return jnp.broadcast_to(self.z, (*keys.shape, self.z.shape[-1]))

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.sample(keys), jnp.zeros(keys.shape)

    def indices(self, z: jax.Array) -> jax.Array:
        """The code of each token, int BxP."""
        return token_index(z, self.grid)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class GridPrior:
    """P(z) = Π_d π_{d, z_d} over the points of the grid, π_d = softmax of the first L_d logits."""

    logits: jax.Array  # DxL, L the largest number of values
    grid: Grid = dataclasses.field(metadata={"static": True})

    @property
    def support(self) -> str:
        return f"grid{self.grid}"

    @property
    def mu(self) -> jax.Array:
        """The most probable point, D."""
        return from_index(jnp.argmax(self.log_pi(), axis=-1), self.grid)

    def log_pi(self) -> jax.Array:
        """log π, DxL; −∞ where a grid has fewer values."""
        logits = real(self.logits)
        count = counts(self.grid, len(logits))
        there = np.arange(logits.shape[-1]) < count[:, None]
        return jax.nn.log_softmax(jnp.where(there, logits, -jnp.inf))

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Nats, shape B; z_KxBxD gives KxB. Constant in z: rounding has no gradient."""
        index = to_index(z, self.grid)
        d = index.shape[-1]
        return jnp.sum(self.log_pi()[np.arange(d), index], axis=-1)

    def sample(self, keys: jax.Array) -> jax.Array:
        """A point for each key, (*keys.shape, D)."""
        log_pi = self.log_pi()
        draw = jax.vmap(lambda key: jax.random.categorical(key, log_pi))
        index = draw(keys.reshape(-1)).reshape(*keys.shape, len(log_pi))
        return from_index(index, self.grid)

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)

    def enumerate(self) -> jax.Array:
        """Every z, MxD."""
        d = self.logits.shape[0]
        return from_index(all_codes(tuple(counts(self.grid, d).tolist())), self.grid)


@register_kl(Quantised, GridPrior)
def kl_quantised(q: Quantised, p: GridPrior) -> jax.Array:
    """KL(q ‖ p) = −log p(z): what the code of x costs under the prior; nats, shape B."""
    return -p.log_prob(q.z)
