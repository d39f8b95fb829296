"""Conditioners of flows. Their last layer starts at zero: a fresh flow is the identity."""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.distributions import made_masks


class MaskedDense(nn.Module):
    """A dense layer whose kernel [in, out] is multiplied by ``mask``."""

    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: jax.Array, mask: np.ndarray) -> jax.Array:
        kernel = self.param("kernel", self.kernel_init, mask.shape)
        bias = self.param("bias", nn.initializers.zeros, mask.shape[-1:])
        return x @ (kernel * mask) + bias


class MADE(nn.Module):
    """Masked autoregressive MLP: (z_BxD, context_BxC) → shift_BxD, log_scale_BxD, whose entry d
    depends on z_<d and on all of the context (Germain et al. 2015, arXiv:1502.03509)."""

    hidden: Sequence[int]
    dim: int

    @nn.compact
    def __call__(self, z: jax.Array, context: jax.Array | None = None) -> list[jax.Array]:
        *masks, last = made_masks(self.dim, self.hidden)
        for mask in masks:
            z = MaskedDense()(z, mask)
            if context is not None:
                z += nn.Dense(mask.shape[1], use_bias=False)(context)
            z = nn.silu(z)
        return jnp.split(MaskedDense(nn.initializers.zeros)(z, last), 2, axis=-1)


class CouplingNet(nn.Module):
    """MLP of a coupling step: z_BxD → shift_BxD, log_scale_BxD with D = ``out``."""

    hidden: Sequence[int]
    out: int

    @nn.compact
    def __call__(self, z: jax.Array) -> list[jax.Array]:
        for width in self.hidden:
            z = nn.silu(nn.Dense(width)(z))
        return jnp.split(nn.Dense(2 * self.out, kernel_init=nn.initializers.zeros)(z), 2, axis=-1)
