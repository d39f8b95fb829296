"""Vision Transformer: an image as a set of patches with positions.

Dosovitskiy et al. 2021 (arXiv:2010.11929).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.config import UserError
from vae_jax.nets.mlp import Dense, act, add_label
from vae_jax.nets.residual import grids, patches, rematerialised, scaled, unpatch


def implementation(name: str, dtype: Any, size: int) -> str:
    """``name``, or UserError where ``jax.nn.dot_product_attention`` has no such kernel.

    ``size``: numbers of a head. 'xla' is on every device. 'cudnn' is cuDNN's fused one, which
    stores no NxN scores: bfloat16 on an NVIDIA GPU, and a run with it is evaluated on such a GPU
    too. Not run yet.
    """
    if name not in ("xla", "cudnn"):
        raise UserError(f"attention={name}: want xla or cudnn")
    if name == "cudnn" and dtype != jnp.bfloat16:
        raise UserError(f"attention=cudnn: has no {jnp.dtype(dtype)}; want dtype=bfloat16, or xla")
    if name == "cudnn" and size % 8:
        raise UserError(
            "attention=cudnn: wants a multiple of 8 numbers a head, "
            f"not width / heads = {size}; want xla"
        )
    if name == "cudnn" and jax.default_backend() != "gpu":
        device = jax.default_backend()
        raise UserError(f"attention=cudnn: wants an NVIDIA GPU, the device is {device}; want xla")
    return name


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q kᵀ / √d) v; h_BxNxF → BxNxF.

    The kernel is that of ``jax.nn.dot_product_attention``.
    ``mask_BxN``: which patches are there; no patch attends to the others.
    """

    heads: int
    scale: float = 1.0  # of the last layer's initialisation
    attention: str = "xla"  # or cudnn: see implementation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h_BxNxF: jax.Array, mask_BxN: jax.Array | None = None) -> jax.Array:
        b, n, f = h_BxNxF.shape
        if f % self.heads:
            raise UserError(f"heads={self.heads}: want a divisor of width={f}")
        qkv = Dense(3 * f, use_bias=False, dtype=self.dtype, name="qkv")(h_BxNxF)
        q, k, v = jnp.split(qkv.reshape(b, n, 3 * self.heads, f // self.heads), 3, axis=2)
        mask = None if mask_BxN is None else mask_BxN[:, None, None]
        kernel = implementation(self.attention, self.dtype, f // self.heads)
        out = jax.nn.dot_product_attention(q, k, v, mask=mask, implementation=kernel)
        layer = Dense(f, kernel_init=scaled(self.scale), dtype=self.dtype, name="out")
        return layer(out.reshape(b, n, f))


class TransformerBlock(nn.Module):
    """h + attention(norm h), then h + MLP(norm h): pre-norm, the MLP four times as wide."""

    heads: int
    activation: str
    scale: float
    attention: str = "xla"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        width = h.shape[-1]
        attend = Attention(self.heads, self.scale, self.attention, self.dtype, name="attention")
        h = h + attend(nn.LayerNorm(dtype=self.dtype)(h), mask)
        wide = Dense(4 * width, dtype=self.dtype)(nn.LayerNorm(dtype=self.dtype)(h))
        out = Dense(width, kernel_init=scaled(self.scale), dtype=self.dtype)
        return h + out(act(self.activation)(wide))


def blocks(net: nn.Module, h: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """``net.depth`` blocks and a norm, called within the net.

    Residual branches start small, as in ``residual``.
    """
    block = rematerialised(TransformerBlock, net.remat)
    scale = (2 * net.depth) ** -0.5
    fields = (net.heads, net.activation, scale, net.attention, net.dtype)
    for i in range(net.depth):
        h = block(*fields, name=f"block_{i}")(h, mask)
    return nn.LayerNorm(dtype=net.dtype, name="norm")(h)


def positions(net: nn.Module, n: int) -> jax.Array:
    """A learned vector for each of n positions."""
    vectors = net.param("positions", nn.initializers.normal(0.02), (n, net.width))
    return vectors.astype(net.dtype)


class ViTEncoder(nn.Module):
    """The mean of patches that went through ``depth`` blocks: x_BxHxWxC → features_BxF.

    ``mask_BxN``: which patches the net sees, row by row; the others have no influence.
    """

    patch: int = 4
    width: int = 128
    depth: int = 6
    heads: int = 4
    activation: str = "gelu"
    attention: str = "xla"  # or cudnn: see implementation
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, y: jax.Array | None = None, mask_BxN: jax.Array | None = None
    ) -> jax.Array:
        x_BxNxP = patches(2 * x - 1, self.patch).reshape(len(x), -1, self.patch**2 * x.shape[-1])
        h = Dense(self.width, dtype=self.dtype, name="embed")(x_BxNxP)
        h = blocks(self, h + positions(self, x_BxNxP.shape[1]), mask_BxN)
        mask = None if mask_BxN is None else mask_BxN[..., None]
        return add_label(jnp.mean(h, axis=1, where=mask), y, self.dtype)


class ViTDecoder(nn.Module):
    """z at every position plus the position's vector, then ``depth`` blocks: z_BxD → out_BxHxWxO.

    Patches differ by their position alone, as in the decoder of a masked autoencoder (He et al.
    2022, arXiv:2111.06377); here the decoder generates all of them. The layer ``out`` is linear.
    """

    shape: tuple[int, int, int]
    patch: int = 4
    width: int = 128
    depth: int = 4
    heads: int = 4
    activation: str = "gelu"
    attention: str = "xla"  # or cudnn: see implementation
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, y: jax.Array | None = None) -> jax.Array:
        ((rows, columns),) = grids(self.shape, self.patch, 1)
        h = add_label(nn.Dense(self.width, dtype=self.dtype, name="embed")(z), y, self.dtype)
        h = blocks(self, h[:, None] + positions(self, rows * columns))
        out = Dense(self.patch**2 * self.shape[2], dtype=self.dtype, name="out")(h)
        return unpatch(out.reshape(len(z), rows, columns, -1), self.shape, self.patch)
