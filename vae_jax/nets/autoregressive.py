"""The autoregressive prior over codes: a masked MLP in the order of the variables."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from vae_jax.config import UserError
from vae_jax.distributions import code_prior, made_masks
from vae_jax.nets import categorical, quantised
from vae_jax.nets.flows import MaskedDense

Params = dict[str, Any]


def code_masks(variables: int, codes: int, hidden: Sequence[int]) -> list[np.ndarray]:
    """The masks of :func:`vae_jax.distributions.made_masks` for rows of C codes, [in, out].

    The C inputs and the C outputs of a variable have its degree.
    """
    masks = made_masks(variables, hidden)
    masks[-1] = np.repeat(masks[-1][:, :variables], codes, axis=1)
    masks[0] = np.repeat(masks[0], codes, axis=0)
    return masks


class CodeMADE(nn.Module):
    """Masked MLP: rows_…xNxC → logits_…xNxC, whose row n depends on the rows before n alone.

    Germain et al. 2015 (arXiv:1502.03509). It begins at the uniform distribution.
    """

    hidden: Sequence[int]
    length: int  # N
    codes: int  # C

    @nn.compact
    def __call__(self, rows: jax.Array) -> jax.Array:
        *masks, last = code_masks(self.length, self.codes, self.hidden)
        h = rows.reshape(*rows.shape[:-2], self.length * self.codes)
        for mask in masks:
            h = nn.silu(MaskedDense()(h, mask))
        return MaskedDense(nn.initializers.zeros)(h, last).reshape(rows.shape)


def within(
    module: nn.Module, space: code_prior.OneHot | code_prior.Points | code_prior.Vectors
) -> code_prior.Autoregressive:
    """The distribution of a masked MLP with ``module.hidden``, a parameter of ``module``.

    Called within its ``__call__``.

    Raises:
      UserError: ``hidden`` is not one number or more.
    """
    if not module.hidden or min(module.hidden) < 1:
        raise UserError(f"prior.hidden={tuple(module.hidden)}: want widths > 0, such as (512,)")
    made = CodeMADE(tuple(module.hidden), len(space.sizes), max(space.sizes), parent=None)

    def init(key: jax.Array) -> Params:
        return made.init(key, jnp.zeros((1, made.length, made.codes)))["params"]

    def apply(params: Params, rows: jax.Array) -> jax.Array:
        return made.apply({"params": params}, rows)

    return code_prior.Autoregressive(module.param("made", init), space, apply)


class Autoregressive(nn.Module):
    """p(z) = Π_n p(z_n | z_<n) over one-hot variables of ``codes`` codes each.

    With ``grid`` the variables are the numbers of a grid (``posterior.name=fsq``) instead; with
    ``model.name=vq`` the tokens of its codebook, and neither field counts.
    """

    shape: int  # D
    codes: int = 10
    grid: Sequence[int] = ()
    hidden: Sequence[int] = (512,)
    dtype: Any = jnp.float32

    @property
    def support(self) -> str:
        return f"grid{tuple(self.grid)}" if self.grid else f"one-hot({self.codes})"

    @nn.compact
    def __call__(self) -> code_prior.Autoregressive:
        if self.grid:
            grid = quantised.checked(self.shape, self.grid)
            return within(self, code_prior.Points(grid, self.shape))
        n = categorical.variables(self.shape, self.codes)
        return within(self, code_prior.OneHot(self.codes, n))


class OfTokens(nn.Module):
    """p(z) = Π_n p(z_n | z_<n) over the tokens of a codebook."""

    length: int  # N
    hidden: Sequence[int] = (512,)

    @nn.compact
    def __call__(self, codebook_CxG: jax.Array) -> code_prior.Autoregressive:
        return within(self, code_prior.Vectors(codebook_CxG, self.length))


PRIORS = {"autoregressive": Autoregressive}
