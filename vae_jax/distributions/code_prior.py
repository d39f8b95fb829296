r"""An autoregressive distribution of codes: the probability of each variable given those before it.

z has N variables, variable n one of C_n codes, and C is the largest C_n. A *space* says how z and
its codes stand for each other: :class:`OneHot`, :class:`Points` of a grid, :class:`Vectors` of a
codebook.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions.categorical import all_codes, flat
from vae_jax.distributions.codebook import nearest
from vae_jax.distributions.normal import real
from vae_jax.distributions.quantised import Grid, counts, from_index, to_index

STATIC = {"static": True}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OneHot:
    """N one-hot rows of C codes, D = N C; the rows keep the gradient of z."""

    codes: int = dataclasses.field(metadata=STATIC)
    variables: int = dataclasses.field(metadata=STATIC)

    @property
    def support(self) -> str:
        return f"one-hot({self.codes})"

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.codes,) * self.variables

    def rows(self, z: jax.Array) -> jax.Array:
        """z_…xD as …xNxC."""
        return z.reshape(*z.shape[:-1], self.variables, self.codes)

    def point(self, index: jax.Array | np.ndarray) -> jax.Array:
        """The z_…xD of the codes …xN."""
        return flat(jax.nn.one_hot(index, self.codes))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Points:
    """Each of D numbers is a variable, its values those of a grid; rows have no gradient."""

    grid: Grid = dataclasses.field(metadata=STATIC)
    variables: int = dataclasses.field(metadata=STATIC)

    @property
    def support(self) -> str:
        return f"grid{self.grid}"

    @property
    def sizes(self) -> tuple[int, ...]:
        return tuple(counts(self.grid, self.variables).tolist())

    def rows(self, z: jax.Array) -> jax.Array:
        """One-hot rows …xNxC of z_…xD."""
        return jax.nn.one_hot(to_index(z, self.grid), max(self.grid))

    def point(self, index: jax.Array | np.ndarray) -> jax.Array:
        """The z_…xD of the codes …xN."""
        return from_index(index, self.grid)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Vectors:
    """Each of N tokens is one of the C vectors of a codebook; rows have no gradient."""

    codebook: jax.Array  # CxG
    variables: int = dataclasses.field(metadata=STATIC)

    @property
    def support(self) -> str:
        return "codebook"

    @property
    def sizes(self) -> tuple[int, ...]:
        return (len(self.codebook),) * self.variables

    def rows(self, z: jax.Array) -> jax.Array:
        """One-hot rows …xNxC of the vectors nearest to the tokens of z_…xD."""
        return jax.nn.one_hot(nearest(z, self.codebook), len(self.codebook))

    def point(self, index: jax.Array | np.ndarray) -> jax.Array:
        """The z_…xD of the codes …xN."""
        return self.codebook[index].reshape(*index.shape[:-1], -1)


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Autoregressive:
    r"""P(z) = Π_n π_n(z_n | z_1, …, z_{n−1}), π_n = softmax of the first C_n logits of row n.

    ``net(params, rows_…xNxC)`` gives the logits …xNxC; those of row n depend on rows before n
    alone. A log-probability is one call, a draw is N calls, one after the other.

    One-hot draws carry a gradient to the posterior, through the row that is scored and through the
    rows that are conditioned on: biased, as every gradient of such a draw. Of a grid or a codebook
    log P(z) is constant in z, so that it trains the net alone.
    """

    params: Any
    space: OneHot | Points | Vectors
    net: Callable[[Any, jax.Array], jax.Array] = dataclasses.field(metadata=STATIC)

    @property
    def support(self) -> str:
        return self.space.support

    def log_pi(self, rows: jax.Array) -> jax.Array:
        """log π of every code of every variable, …xNxC; 0 where a variable has fewer codes."""
        logits = real(self.net(self.params, rows))
        there = np.arange(rows.shape[-1]) < np.array(self.space.sizes)[:, None]
        return jnp.where(there, jax.nn.log_softmax(jnp.where(there, logits, -jnp.inf)), 0.0)

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Nats, shape B; z_KxBxD gives KxB."""
        rows = self.space.rows(real(z))
        return jnp.sum(rows * self.log_pi(rows), axis=(-2, -1))

    @property
    def mu(self) -> jax.Array:
        """The code of the most probable variables, one after the other, D: no mean."""

        def largest(key: jax.Array, logits_C: jax.Array) -> jax.Array:
            return jnp.argmax(logits_C)

        return self.space.point(self._codes(largest, jax.random.key(0)))

    def sample(self, keys: jax.Array) -> jax.Array:
        """A draw for each key, variable by variable; (*keys.shape, D)."""

        def draw(key: jax.Array) -> jax.Array:
            return self._codes(jax.random.categorical, key)

        index = jax.vmap(draw)(keys.reshape(-1))
        return self.space.point(index.reshape(*keys.shape, index.shape[-1]))

    def _codes(self, choose: Callable[..., jax.Array], key: jax.Array) -> jax.Array:
        """The codes N that ``choose(key, logits_C)`` takes, each given those before it."""
        sizes = np.array(self.space.sizes)
        shape = (len(sizes), sizes.max())
        there = np.arange(shape[1]) < sizes[:, None]

        def add(rows: jax.Array, place: tuple) -> tuple[jax.Array, jax.Array]:
            n, key, there_C = place
            logits_C = jnp.where(there_C, self.log_pi(rows)[n], -jnp.inf)
            index = choose(key, logits_C)
            return rows.at[n].set(jax.nn.one_hot(index, shape[1])), index

        places = (jnp.arange(shape[0]), jax.random.split(key, shape[0]), jnp.asarray(there))
        return jax.lax.scan(add, jnp.zeros(shape), places)[1]

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)

    def enumerate(self) -> jax.Array:
        """Every z, MxD."""
        return self.space.point(all_codes(self.space.sizes))
