"""Heads of categorical codes: ``latent`` = D numbers are N = D / codes one-hot variables."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.config import UserError
from vae_jax.distributions import categorical


def variables(latent: int, codes: int) -> int:
    """N = latent / codes.

    Raises:
      UserError: ``latent`` is no multiple of ``codes``, or there is one code only.
    """
    if codes < 2:
        raise UserError(f"posterior.codes={codes}: want 2 or more")
    if latent % codes:
        near = max(1, round(latent / codes)) * codes
        raise UserError(f"latent={latent}: want a multiple of codes={codes}, such as {near}")
    return latent // codes


def check_temperature(section: str, temperature: float) -> None:
    """Raise UserError where ``temperature`` is no number > 0."""
    if temperature <= 0:
        raise UserError(f"{section}.temperature={temperature}: want a number > 0")


def logits(head: nn.Module, h: jax.Array) -> jax.Array:
    """…xNxC by a dense layer of ``head``, from features …xF; called within its ``__call__``."""
    n = variables(head.shape, head.codes)
    out = nn.Dense(head.shape, dtype=head.dtype, name="logits")(h).astype(jnp.float32)
    return out.reshape(*h.shape[:-1], n, head.codes)


class Categorical(nn.Module):
    """q(z|x): independent categorical variables.

    ``gradient``: 'gumbel', of the relaxed draw at ``temperature``, or 'straight_through', of the
    probabilities; see ``distributions.categorical.Categorical``.
    """

    shape: int  # D
    codes: int = 10  # C
    gradient: str = "gumbel"
    temperature: float = 1.0
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"one-hot({self.codes})"

    @nn.compact
    def __call__(self, h: jax.Array) -> categorical.Categorical:
        if self.gradient not in ("gumbel", "straight_through"):
            raise UserError(f"posterior.gradient={self.gradient}: want gumbel or straight_through")
        check_temperature("posterior", self.temperature)
        if self.gradient == "straight_through":
            return categorical.Categorical(logits(self, h))
        return categorical.Categorical(logits(self, h), self.temperature)


class CategoricalPrior(nn.Module):
    """p(z): uniform over the codes of each variable, or with ``learn`` any distribution of each."""

    shape: int  # D
    codes: int = 10
    learn: bool = False
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"one-hot({self.codes})"

    @nn.compact
    def __call__(self) -> categorical.Categorical:
        size = (variables(self.shape, self.codes), self.codes)
        if not self.learn:
            return categorical.Categorical(jnp.zeros(size))
        return categorical.Categorical(self.param("logits", nn.initializers.zeros, size))


class Concrete(nn.Module):
    """q(z|x): independent relaxed categorical variables (Maddison et al. 2017).

    0.67 is the paper's temperature of posteriors (appendix C.3).
    """

    shape: int  # D
    codes: int = 10
    temperature: float = 0.67
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"simplex({self.codes})"

    @nn.compact
    def __call__(self, h: jax.Array) -> categorical.RelaxedCategorical:
        check_temperature("posterior", self.temperature)
        return categorical.RelaxedCategorical(logits(self, h), self.temperature)


class ConcretePrior(nn.Module):
    """p(z): relaxed uniform variables; 0.5 is the temperature of priors in Maddison et al. 2017."""

    shape: int  # D
    codes: int = 10
    temperature: float = 0.5
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"simplex({self.codes})"

    @nn.compact
    def __call__(self) -> categorical.RelaxedCategorical:
        check_temperature("prior", self.temperature)
        size = (variables(self.shape, self.codes), self.codes)
        return categorical.RelaxedCategorical(jnp.zeros(size), self.temperature)


POSTERIORS = {"categorical": Categorical, "concrete": Concrete}
PRIORS = {"categorical": CategoricalPrior, "concrete": ConcretePrior}
