"""Fully connected nets."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh, "gelu": nn.gelu, "silu": nn.silu}


class MLPEncoder(nn.Module):
    """x_BxHxWxC → features_BxF by dense layers of these widths."""

    widths: Sequence[int] = (256, 256)
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        h = x.reshape(x.shape[0], -1)
        for width in self.widths:
            h = ACTIVATIONS[self.activation](nn.Dense(width, dtype=self.dtype)(h))
        return h


class MLPDecoder(nn.Module):
    """z_BxD → out_BxHxWxO by dense layers of these widths; the layer ``out`` is linear."""

    shape: tuple[int, int, int]
    widths: Sequence[int] = (256, 256)
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z):
        h = z
        for width in self.widths:
            h = ACTIVATIONS[self.activation](nn.Dense(width, dtype=self.dtype)(h))
        out = nn.Dense(math.prod(self.shape), dtype=self.dtype, name="out")(h)
        return out.reshape(z.shape[0], *self.shape)


class MLPClassifier(nn.Module):
    """z_BxD → logits_BxY; linear where ``widths`` is empty."""

    outputs: int
    widths: Sequence[int] = ()
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z):
        h = z
        for width in self.widths:
            h = ACTIVATIONS[self.activation](nn.Dense(width, dtype=self.dtype)(h))
        return nn.Dense(self.outputs, dtype=self.dtype, name="out")(h)
