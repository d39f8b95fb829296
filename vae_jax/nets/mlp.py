"""Fully connected nets."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from vae_jax import distributions as densities
from vae_jax.config import UserError, nearest

ACTIVATIONS = {"relu": nn.relu, "tanh": nn.tanh, "gelu": nn.gelu, "silu": nn.silu, "softplus": densities.softplus}


class Dense(nn.Dense):
    """``nn.Dense`` of every cell of h_…xF, all cells as rows of one matrix.

    A kernel's gradient is then one product over rows. Over the axes of a grid XLA on CPU makes it one of transposed
    copies, in three times the time (results/performance.md).
    """

    def __call__(self, h):
        return super().__call__(h.reshape(-1, h.shape[-1])).reshape(*h.shape[:-1], self.features)


class Layer(nn.Module):
    """Dense and activation; 'gated' is a ⊙ sigmoid(b) of two halves (Dauphin et al. 2017, eq. 1).

    A label y, one-hot, adds a row of a kernel of its own, ``label``.
    """

    width: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h, y=None):
        gated = self.activation == "gated"
        width = 2 * self.width if gated else self.width
        h = nn.Dense(width, dtype=self.dtype, name="gated" if gated else "dense")(h)
        h = add_label(h, y, self.dtype)
        if gated:
            a, b = jnp.split(h, 2, axis=-1)
            return a * nn.sigmoid(b)
        return act(self.activation)(h)


def act(name):
    """The activation of a config's ``activation`` field."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name}: unknown; {nearest(name, [*ACTIVATIONS, 'gated'])}")
    return ACTIVATIONS[name]


def add_label(h, y, dtype):
    """h + W_y y within a module: what a one-hot label adds to the layer W_h h + b.

    One entry of y is 1, so rows of unit variance give a label the scale that W_h h has for h ~ N(0, I). With a scale
    for Y inputs M2's decoder meets z first, learns to do without y, and q(y|x) has nothing to learn from.
    """
    if y is None:
        return h
    rows, exact = nn.initializers.normal(1.0), lax.Precision.HIGHEST  # else a TPU sums its gradient in bfloat16
    return h + nn.Dense(h.shape[-1], use_bias=False, kernel_init=rows, dtype=dtype, precision=exact, name="label")(y)


def hidden(net, h, y=None):
    """What each of ``net.widths``' layers gives, called within it; a label y enters the first."""
    if y is not None and not net.widths:
        raise UserError("widths=(): a label enters the first layer; want one number or more")
    found = [h]
    for i, width in enumerate(net.widths):
        found.append(Layer(width, net.activation, dtype=net.dtype)(found[-1], y if i == 0 else None))
    return found


class MLPEncoder(nn.Module):
    """x_BxHxWxC → features_BxF by dense layers of these widths; with ``pyramid``, for a hierarchy, those of each."""

    widths: Sequence[int] = (256, 256)
    activation: str = "relu"
    pyramid: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y=None):
        found = hidden(self, x.reshape(x.shape[0], -1), y)
        return tuple(found[1:]) if self.pyramid else found[-1]


class MLPDecoder(nn.Module):
    """z_BxD → out_BxHxWxO by dense layers of these widths; the layer ``out`` is linear."""

    shape: tuple[int, int, int]
    widths: Sequence[int] = (256, 256)
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, y=None):
        h = hidden(self, z, y)[-1]
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
        return nn.Dense(self.outputs, dtype=self.dtype, name="out")(hidden(self, z)[-1])
