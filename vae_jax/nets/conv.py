"""Convolutional nets for images of any height, width and number of channels; NHWC."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from vae_jax.config import UserError
from vae_jax.nets.mlp import act, add_label


def _down2(y, w):
    """Convolution of stride 2, 'SAME'; y_BxHxWxI, w_hxwxIxO."""
    return lax.conv_general_dilated(y, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _shape(z, w):
    return jax.ShapeDtypeStruct((z.shape[0], 2 * z.shape[1], 2 * z.shape[2], w.shape[2]), z.dtype)


def _up2(z, w):
    (x,) = jax.linear_transpose(lambda y: _down2(y, w), _shape(z, w))(z)
    return x


@jax.custom_vjp
def up2(z_BxHxWxI, w_hxwxOxI):
    """Transposed convolution of stride 2: the transpose of :func:`_down2` in its image; BxHxWxI → Bx2Hx2WxO.

    Equal to ``lax.conv_transpose(z, w, (2, 2), "SAME", transpose_kernel=True)``. Its own gradient
    matters on CPU, where XLA's weight gradient of a transposed convolution is more than ten times
    slower than the rest of the step: there dw is the weight gradient of the mirrored strided
    convolution, which is the same sum. Other platforms keep XLA's form. Reverse mode only.
    """
    return _up2(z_BxHxWxI, w_hxwxOxI)


def _mirrored(z, w, g):
    (dw,) = jax.linear_transpose(lambda v: _down2(g, v), jax.ShapeDtypeStruct(w.shape, w.dtype))(z)
    return dw


def _plain(z, w, g):
    (dw,) = jax.linear_transpose(lambda v: _up2(z, v), jax.ShapeDtypeStruct(w.shape, w.dtype))(g)
    return dw


def _up2_backward(residuals, g):
    z, w = residuals
    dw = lax.platform_dependent(z, w, g, cpu=_mirrored, default=_plain)
    return _down2(g, w), dw


up2.defvjp(lambda z, w: (_up2(z, w), (z, w)), _up2_backward)


class UpConv(nn.Module):
    """:func:`up2` with its kernel (stored kxkxOxI) and bias."""

    features: int
    kernel: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z):
        # An output pixel sees a quarter of the kernel, hence 4.0 for unit variance.
        init = nn.initializers.variance_scaling(4.0, "fan_in", "truncated_normal", in_axis=(0, 1, 3), out_axis=2)
        w = self.param("kernel", init, (self.kernel, self.kernel, self.features, z.shape[-1]))
        b = self.param("bias", nn.initializers.zeros, (self.features,))
        z, w, b = (a.astype(self.dtype) for a in (z, w, b))
        return up2(z, w) + b


class ConvEncoder(nn.Module):
    """Convolutions of these widths and strides, then one dense layer: x_BxHxWxC → features_BxF."""

    widths: Sequence[int] = (32, 64)
    strides: Sequence[int] = (2, 2)
    kernel: int = 4
    dense: int = 256
    activation: str = "relu"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y=None):
        nonlinear = act(self.activation)
        if len(self.widths) != len(self.strides):
            raise UserError(f"encoder.strides={tuple(self.strides)}: want as many as widths={tuple(self.widths)}")
        for width, stride in zip(self.widths, self.strides, strict=True):
            conv = nn.Conv(width, (self.kernel,) * 2, (stride,) * 2, padding="SAME", dtype=self.dtype)
            x = nonlinear(conv(x))
        h = nn.Dense(self.dense, dtype=self.dtype)(x.reshape(x.shape[0], -1))
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
    def __call__(self, z, y=None):
        nonlinear = act(self.activation)
        height, width, outputs = self.shape
        n = len(self.widths)
        if not n:
            raise UserError("decoder.widths=(): want one number or more")
        rows, columns = -(-height // 2**n), -(-width // 2**n)
        dense = functools.partial(nn.Dense, dtype=self.dtype)
        h = nonlinear(add_label(dense(self.dense)(z), y, self.dtype))
        h = nonlinear(dense(rows * columns * self.widths[0])(h))
        h = h.reshape(z.shape[0], rows, columns, self.widths[0])
        for features in self.widths[1:]:
            h = nonlinear(UpConv(features, self.kernel, dtype=self.dtype)(h))
        out = UpConv(outputs, self.kernel, dtype=self.dtype, name="out")(h)
        return out[:, :height, :width]
