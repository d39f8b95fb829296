"""Heads on the Poincaré ball (Mathieu et al. 2019, arXiv:1901.06033)."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.config import UserError
from vae_jax.distributions import hyperbolic, soft_clip

LOGVAR = (-20.0, 4.0)  # a standard deviation of e² already reaches the edge of float32


def check(section: str, curvature: float) -> None:
    """Raise UserError where ``curvature`` is no number > 0."""
    if curvature <= 0:
        raise UserError(f"{section}.curvature={curvature}: want a number > 0, such as 1.0")


class WrappedNormal(nn.Module):
    """q(z|x): a wrapped normal at exp_0 of a dense layer; curvature −c with c = ``curvature``."""

    shape: int  # D
    curvature: float = 1.0
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"ball({self.curvature})"

    @nn.compact
    def __call__(self, h: jax.Array) -> hyperbolic.WrappedNormal:
        check("posterior", self.curvature)
        out = nn.Dense(2 * self.shape, dtype=self.dtype)(h).astype(jnp.float32)
        tangent, logvar = jnp.split(out, 2, axis=-1)
        mu = hyperbolic.exp_origin(tangent, self.curvature)
        return hyperbolic.WrappedNormal(mu, soft_clip(logvar, *LOGVAR), self.curvature)


class BallPrior(nn.Module):
    """p(z): the wrapped normal at 0 with σ = 1."""

    shape: int  # D
    curvature: float = 1.0
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"ball({self.curvature})"

    @nn.compact
    def __call__(self) -> hyperbolic.WrappedNormal:
        check("prior", self.curvature)
        zeros = jnp.zeros(self.shape)
        return hyperbolic.WrappedNormal(zeros, zeros, self.curvature)


POSTERIORS = {"wrapped_normal": WrappedNormal}
PRIORS = {"ball": BallPrior}
