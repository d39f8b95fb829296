"""Fully connected nets."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from vae_jax import ops
from vae_jax.config import UserError, nearest

ACTIVATIONS = {
    "relu": nn.relu,
    "tanh": nn.tanh,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "softplus": ops.softplus,
}


class Dense(nn.Dense):
    """``nn.Dense`` of every cell of h_…xF: :func:`vae_jax.ops.as_rows`."""

    def __call__(self, h: jax.Array) -> jax.Array:
        return ops.as_rows(super().__call__, h)


class Layer(nn.Module):
    """Dense and activation; 'gated' is a ⊙ sigmoid(b) of two halves (Dauphin et al. 2017, eq. 1).

    A label y, one-hot, adds a row of a kernel of its own, ``label``.
    """

    width: int
    activation: str
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array, y: jax.Array | None = None) -> jax.Array:
        if self.activation == "gated":
            h = nn.Dense(2 * self.width, dtype=self.dtype, name="gated")(h)
            a, b = jnp.split(add_label(h, y, self.dtype), 2, axis=-1)
            return a * nn.sigmoid(b)
        h = nn.Dense(self.width, dtype=self.dtype, name="dense")(h)
        return act(self.activation)(add_label(h, y, self.dtype))


def act(name: str) -> Callable[[jax.Array], jax.Array]:
    """The activation of a config's ``activation`` field."""
    if name not in ACTIVATIONS:
        raise UserError(f"activation={name}: unknown; {nearest(name, [*ACTIVATIONS, 'gated'])}")
    return ACTIVATIONS[name]


def add_label(h: jax.Array, y: jax.Array | None, dtype: Any) -> jax.Array:
    """h + W_y y within a module: what a one-hot label adds to the layer W_h h + b.

    One entry of y is 1, so rows of unit variance give a label the scale that W_h h has for
    h ~ N(0, I). With a scale for Y inputs M2's decoder meets z first, learns to do without y, and
    q(y|x) has nothing to learn from.
    """
    if y is None:
        return h
    layer = nn.Dense(
        h.shape[-1],
        use_bias=False,
        kernel_init=nn.initializers.normal(1.0),
        dtype=dtype,
        precision=lax.Precision.HIGHEST,  # else a TPU sums its gradient in bfloat16
        name="label",
    )
    return h + layer(y)


def hidden(net: nn.Module, h: jax.Array, y: jax.Array | None = None) -> list[jax.Array]:
    """h and the output of each of ``net.widths``' layers, called within the net.

    A label y enters the first layer.
    """
    if y is not None and not net.widths:
        raise UserError("widths=(): a label enters the first layer; want one number or more")
    outputs = [h]
    for i, width in enumerate(net.widths):
        label = y if i == 0 else None
        outputs.append(Layer(width, net.activation, dtype=net.dtype)(outputs[-1], label))
    return outputs


class MLPEncoder(nn.Module):
    """x_BxHxWxC → features_BxF by dense layers of these widths.

    With ``pyramid``, for a hierarchy, the features of every layer.
    """

    widths: Sequence[int] = (256, 256)
    activation: str = "relu"
    pyramid: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: jax.Array, y: jax.Array | None = None
    ) -> jax.Array | tuple[jax.Array, ...]:
        outputs = hidden(self, x.reshape(x.shape[0], -1), y)
        if self.pyramid:
            return tuple(outputs[1:])
        return outputs[-1]


class MLPDecoder(nn.Module):
    """z_BxD → out_BxHxWxO by dense layers of these widths; the layer ``out`` is linear."""

    shape: tuple[int, int, int]
    widths: Sequence[int] = (256, 256)
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, y: jax.Array | None = None) -> jax.Array:
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
    def __call__(self, z: jax.Array) -> jax.Array:
        return nn.Dense(self.outputs, dtype=self.dtype, name="out")(hidden(self, z)[-1])
