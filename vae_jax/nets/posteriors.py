"""Further heads q(z|x) on R^D: a Gaussian of low rank, and simple flows."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.distributions import Flow
from vae_jax.distributions import flows as steps_lib
from vae_jax.distributions.low_rank import LowRankNormal
from vae_jax.nets.heads import Gaussian


class LowRankGaussian(nn.Module):
    """q(z|x) = N(μ(x), S (I + U(x) U(x)ᵀ) S), S = diag σ(x); U has ``rank`` columns."""

    shape: int  # D
    rank: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> LowRankNormal:
        mu, logvar = Gaussian(self.shape, dtype=self.dtype, name="diagonal")(h)
        # U begins small, but not at 0: there the mean gradient is 0, for U and −U are one q.
        layer = nn.Dense(
            self.shape * self.rank,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.normal(0.1),
            dtype=self.dtype,
            name="factor",
        )
        factor = layer(h).astype(jnp.float32)
        return LowRankNormal(mu, logvar, factor.reshape(*h.shape[:-1], self.shape, self.rank))


def _outputs(size: int, dtype: Any, name: str, fresh: bool = False) -> nn.Dense:
    """A dense layer of a flow's parameters; ``fresh``: it begins at zero."""
    if fresh:
        return nn.Dense(size, kernel_init=nn.initializers.zeros, dtype=dtype, name=name)
    return nn.Dense(size, dtype=dtype, name=name)


class Planar(nn.Module):
    """q(z|x): a diagonal Gaussian through planar steps, whose numbers are functions of x.

    Rezende & Mohamed 2015 (arXiv:1505.05770). A fresh one is the Gaussian.
    """

    shape: int  # D
    steps: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> Flow:
        base = Gaussian(self.shape, dtype=self.dtype, name="base")(h)
        params = []
        for i in range(self.steps):
            u = _outputs(self.shape, self.dtype, f"u_{i}", fresh=True)(h)
            w = _outputs(self.shape, self.dtype, f"w_{i}")(h)
            b = _outputs(1, self.dtype, f"b_{i}")(h)[..., 0]
            params.append(_float32(u, w, b))
        return _flow(base, steps_lib.planar, params)


class Radial(nn.Module):
    """q(z|x): a diagonal Gaussian through radial steps, with centres beside the Gaussian's mean.

    Rezende & Mohamed 2015 (arXiv:1505.05770). A fresh one is the Gaussian.
    """

    shape: int  # D
    steps: int = 8
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> Flow:
        base = Gaussian(self.shape, dtype=self.dtype, name="base")(h)
        params = []
        for i in range(self.steps):
            offset = _outputs(self.shape, self.dtype, f"centre_{i}")(h)
            log_alpha = _outputs(1, self.dtype, f"alpha_{i}")(h)[..., 0]
            beta = _outputs(1, self.dtype, f"beta_{i}", fresh=True)(h)[..., 0]
            params.append(_float32(base.mu + offset, log_alpha, beta))
        return _flow(base, steps_lib.radial, params)


def _float32(*arrays: jax.Array) -> tuple[jax.Array, ...]:
    return tuple(array.astype(jnp.float32) for array in arrays)


def _flow(base: Any, step: Callable[..., Any], params: list[tuple]) -> Flow:
    """``base`` through one ``step`` for each entry of ``params``."""
    return Flow(base, tuple(params), (step,) * len(params))


POSTERIORS = {"low_rank": LowRankGaussian, "planar": Planar, "radial": Radial}
