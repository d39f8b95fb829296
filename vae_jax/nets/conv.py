"""Convolutional nets for images of any height, width and number of channels; NHWC."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.config import UserError
from vae_jax.nets.mlp import act, add_label
from vae_jax.ops import add_bias, conv, down2, product, same, up2


def _typed(dtype: Any, *arrays: jax.Array) -> list[jax.Array]:
    return [array.astype(dtype) for array in arrays]


class Conv(nn.Module):
    """A 'SAME' convolution with its kernel (kxkxIxO) and bias; parameters as ``nn.Conv``'s."""

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        w = self.param("kernel", nn.initializers.lecun_normal(), shape)
        b = self.param("bias", nn.initializers.zeros, (self.features,))
        x, w, b = _typed(self.dtype, x, w, b)
        even = x.shape[1] % 2 == 0 and x.shape[2] % 2 == 0
        if self.stride == 1:
            out = same(x, w)
        elif self.stride == 2 and even:
            out = down2(x, w)
        else:
            out = conv(x, w, self.stride)
        return add_bias(out, b)


class Dense(nn.Module):
    """A dense layer between an image's features and a vector; parameters as ``nn.Dense``'s.

    (:class:`vae_jax.nets.mlp.Dense` is the layer of every cell.)
    """

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (x.shape[-1], self.features)
        w = self.param("kernel", nn.initializers.lecun_normal(), shape)
        b = self.param("bias", nn.initializers.zeros, (self.features,))
        x, w, b = _typed(self.dtype, x, w, b)
        return product(x, w) + b


class UpConv(nn.Module):
    """A transposed convolution of stride 2 with its kernel (stored kxkxOxI) and bias."""

    features: int
    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        # An output pixel sees a quarter of the kernel, hence 4.0 for unit variance.
        init = nn.initializers.variance_scaling(
            4.0, "fan_in", "truncated_normal", in_axis=(0, 1, 3), out_axis=2
        )
        w = self.param("kernel", init, (self.kernel, self.kernel, self.features, z.shape[-1]))
        b = self.param("bias", nn.initializers.zeros, (self.features,))
        z, w, b = _typed(self.dtype, z, w, b)
        return add_bias(up2(z, w), b)


class ConvEncoder(nn.Module):
    """Convolutions of these widths and strides, then one dense layer: x_BxHxWxC → features_BxF."""

    widths: Sequence[int] = (32, 64)
    strides: Sequence[int] = (2, 2)
    kernel: int = 4
    dense: int = 256
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, y: jax.Array | None = None) -> jax.Array:
        nonlinear = act(self.activation)
        if len(self.widths) != len(self.strides):
            strides = tuple(self.strides)
            widths = tuple(self.widths)
            raise UserError(f"encoder.strides={strides}: want as many as widths={widths}")
        for width, stride in zip(self.widths, self.strides, strict=True):
            x = nonlinear(Conv(width, self.kernel, stride, dtype=self.dtype)(x))
        h = Dense(self.dense, dtype=self.dtype)(x.reshape(x.shape[0], -1))
        return nonlinear(add_label(h, y, self.dtype))


class ConvDecoder(nn.Module):
    """Dense, dense to a grid, then one doubling for each of ``widths``: z_BxD → out_BxHxWxO.

    The grid has ``widths[0]`` channels and ⌈H/2ⁿ⌉ × ⌈W/2ⁿ⌉ cells for n = len(widths); what the last
    doubling gives beyond H × W is cut off. The layer ``out`` is linear.
    """

    shape: tuple[int, int, int]
    dense: int = 256
    widths: Sequence[int] = (64, 32)
    kernel: int = 4
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: jax.Array, y: jax.Array | None = None) -> jax.Array:
        nonlinear = act(self.activation)
        height, width, outputs = self.shape
        n = len(self.widths)
        if not n:
            raise UserError("decoder.widths=(): want one number or more")
        rows = -(-height // 2**n)
        columns = -(-width // 2**n)
        dense = functools.partial(Dense, dtype=self.dtype)
        h = nonlinear(add_label(dense(self.dense)(z), y, self.dtype))
        h = nonlinear(dense(rows * columns * self.widths[0])(h))
        h = h.reshape(z.shape[0], rows, columns, self.widths[0])
        for features in self.widths[1:]:
            h = nonlinear(UpConv(features, self.kernel, dtype=self.dtype)(h))
        out = UpConv(outputs, self.kernel, dtype=self.dtype, name="out")(h)
        return out[:, :height, :width]
