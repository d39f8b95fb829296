"""Fully connected nets."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from vae_jax.config import UserError, nearest

ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh, "gelu": nn.gelu, "silu": nn.silu}


class Layer(nn.Module):
    """Dense and activation; 'gated' is a ⊙ sigmoid(b) of two halves (Dauphin et al. 2017, eq. 1)."""

    width: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h):
        if self.activation == "gated":
            a, b = jnp.split(nn.Dense(2 * self.width, dtype=self.dtype, name="gated")(h), 2, axis=-1)
            return a * nn.sigmoid(b)
        return act(self.activation)(nn.Dense(self.width, dtype=self.dtype, name="dense")(h))


def act(name):
    """The activation of a config's ``activation`` field."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name}: unknown; {nearest(name, [*ACTIVATIONS, 'gated'])}")
    return ACTIVATIONS[name]


class MLPEncoder(nn.Module):
    """x_BxHxWxC → features_BxF by dense layers of these widths."""

    widths: Sequence[int] = (256, 256)
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        h = x.reshape(x.shape[0], -1)
        for width in self.widths:
            h = Layer(width, self.activation, dtype=self.dtype)(h)
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
            h = Layer(width, self.activation, dtype=self.dtype)(h)
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
            h = Layer(width, self.activation, dtype=self.dtype)(h)
        return nn.Dense(self.outputs, dtype=self.dtype, name="out")(h)
