"""Convolutional nets for images of any height, width and number of channels; NHWC."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from vae_jax.config import UserError
from vae_jax.nets.mlp import act, add_label

# XLA on CPU is two to ten times slower than need be at some gradients of these layers (results/performance.md says how
# much each form below brings). Other platforms keep XLA's own; reverse mode only.


def _conv(x, w, stride=1, padding="SAME"):
    return lax.conv_general_dilated(x, w, (stride, stride), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def _transposed(function, like, g):
    """The transpose of a linear function of something shaped as ``like``, at g."""
    return jax.linear_transpose(function, jax.ShapeDtypeStruct(like.shape, like.dtype))(g)[0]


def _settled(x):
    """x, by a product with the identity, so that XLA on CPU has it in memory before it is laid out anew. A copy that is
    a program of its own runs in blocks; one within the loop that makes x goes number by number, far apart in memory. A
    value that is not finite makes its cell's NaN."""
    width = x.shape[-1]
    if width < 16 or x.size < 2**20:  # the product would cost more
        return x
    rows = jnp.matmul(x.reshape(-1, width), jnp.eye(width, dtype=x.dtype), precision="highest")
    return rows.reshape(x.shape)


def _kernel_gradient(x, w, g, stride):
    """The gradient in w of ``_conv(x, w, stride)``."""
    gradient = lambda x, w, g: _transposed(lambda v: _conv(x, v, stride), w, g)  # noqa: E731
    settled = lambda x, w, g: gradient(_settled(x), w, g)  # noqa: E731
    return lax.platform_dependent(x, w, g, cpu=settled, default=gradient)


def _plain_up2(z, w):
    x = jax.ShapeDtypeStruct((z.shape[0], 2 * z.shape[1], 2 * z.shape[2], w.shape[2]), z.dtype)
    return _transposed(lambda y: _conv(y, w, 2), x, z)


def _phases(z, w):
    """The four pixels that a cell of z becomes, each by the taps that reach it: convolutions without gaps.

    Tap a of cell h reaches pixel 2q + r where 2h + a − before = 2q + r.
    """
    (b, rows, columns, _), k, before = z.shape, len(w), (len(w) - 2) // 2
    taps = [np.arange(k - 1 - (k - 1 - before - r) % 2, -1, -2) for r in (0, 1)]
    first = [(r + before - a[0]) // 2 for r, a in enumerate(taps)]  # cell h − q of the first tap
    pads = [(-f, f + len(a) - 1) for f, a in zip(first, taps, strict=True)]

    def pixel(r, s):
        return _conv(z, w[np.ix_(taps[r], taps[s])].swapaxes(2, 3), 1, (pads[r], pads[s]))

    grid = jnp.stack([jnp.stack([pixel(r, s) for s in (0, 1)], 3) for r in (0, 1)], 2)
    return grid.reshape(b, 2 * rows, 2 * columns, -1)


def _up2(z, w):
    if min(w.shape[2:]) < 16:  # the phases' narrow products cost more than the gaps
        return _plain_up2(z, w)
    return lax.platform_dependent(z, w, cpu=_phases, default=_plain_up2)


@jax.custom_vjp
def up2(z_BxHxWxI, w_hxwxOxI):
    """Transposed convolution of stride 2: the transpose of :func:`down2` in its image; BxHxWxI → Bx2Hx2WxO.

    Equal to ``lax.conv_transpose(z, w, (2, 2), "SAME", transpose_kernel=True)``. On CPU dw is the weight gradient of
    the mirrored strided convolution, which is the same sum: XLA's own takes ten times the rest of the step.
    """
    return _up2(z_BxHxWxI, w_hxwxOxI)


def _mirrored(z, w, g):
    return _transposed(lambda v: _conv(_settled(g), v, 2), w, z)


def _plain(z, w, g):
    return _transposed(lambda v: _plain_up2(z, v), w, g)


def _up2_backward(residuals, g):
    z, w = residuals
    return _conv(g, w, 2), lax.platform_dependent(z, w, g, cpu=_mirrored, default=_plain)


up2.defvjp(lambda z, w: (_up2(z, w), (z, w)), _up2_backward)


@jax.custom_vjp
def down2(x_BxHxWxI, w_hxwxIxO):
    """Convolution of stride 2, 'SAME', of an even height and width; its gradient in x is :func:`up2`."""
    return _conv(x_BxHxWxI, w_hxwxIxO, 2)


def _down2_backward(residuals, g):
    x, w = residuals
    return _up2(g, w), _kernel_gradient(x, w, g, 2)


down2.defvjp(lambda x, w: (_conv(x, w, 2), (x, w)), _down2_backward)


@jax.custom_vjp
def same(x_BxHxWxI, w_hxwxIxO):
    """Convolution of stride 1, 'SAME'."""
    return _conv(x_BxHxWxI, w_hxwxIxO)


def _same_backward(residuals, g):
    x, w = residuals
    return _transposed(lambda v: _conv(v, w), x, g), _kernel_gradient(x, w, g, 1)


same.defvjp(lambda x, w: (_conv(x, w), (x, w)), _same_backward)


@jax.custom_vjp
def add_bias(x_BxHxWxC, b_C):
    """x + b; on CPU the gradient in b is a product with ones over the batch before it is a sum."""
    return x_BxHxWxC + b_C


def _channel_sums(g):
    return (jnp.ones((1, len(g)), g.dtype) @ g.reshape(len(g), -1)).reshape(-1, g.shape[-1]).sum(0)


def _add_bias_backward(_, g):
    return g, lax.platform_dependent(g, cpu=_channel_sums, default=lambda g: g.sum((0, 1, 2)))


add_bias.defvjp(lambda x, b: (x + b, None), _add_bias_backward)


@jax.custom_vjp
def product(x_BxI, w_IxO):
    """x w; on CPU the gradient in x is the transpose of w gᵀ, for which a large w is read in the order it lies in."""
    return x_BxI @ w_IxO


def _product_backward(residuals, g):
    x, w = residuals
    held = lax.optimization_barrier  # or XLA makes g wᵀ of it again
    turned = lambda g, w: held(w @ held(g.T)).T  # noqa: E731
    return lax.platform_dependent(g, w, cpu=turned, default=lambda g, w: g @ w.T), x.T @ g


product.defvjp(lambda x, w: (x @ w, (x, w)), _product_backward)


class Conv(nn.Module):
    """A 'SAME' convolution with its kernel (kxkxIxO) and bias; parameters as ``nn.Conv`` has them."""

    features: int
    kernel: int
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        w = self.param("kernel", nn.initializers.lecun_normal(), shape)
        b = self.param("bias", nn.initializers.zeros, (self.features,))
        x, w, b = (a.astype(self.dtype) for a in (x, w, b))
        if self.stride == 1:
            return add_bias(same(x, w), b)
        halves = self.stride == 2 and not (x.shape[1] % 2 or x.shape[2] % 2)
        return add_bias(down2(x, w) if halves else _conv(x, w, self.stride), b)


class Dense(nn.Module):
    """A dense layer between an image's features and a vector: :func:`product`; parameters as ``nn.Dense`` has them.
    (``mlp.Dense`` is the one of every cell.)"""

    features: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x):
        w = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], self.features))
        b = self.param("bias", nn.initializers.zeros, (self.features,))
        x, w, b = (a.astype(self.dtype) for a in (x, w, b))
        return product(x, w) + b


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
    def __call__(self, x, y=None):
        nonlinear = act(self.activation)
        if len(self.widths) != len(self.strides):
            raise UserError(f"encoder.strides={tuple(self.strides)}: want as many as widths={tuple(self.widths)}")
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
    def __call__(self, z, y=None):
        nonlinear = act(self.activation)
        height, width, outputs = self.shape
        n = len(self.widths)
        if not n:
            raise UserError("decoder.widths=(): want one number or more")
        rows, columns = -(-height // 2**n), -(-width // 2**n)
        dense = functools.partial(Dense, dtype=self.dtype)
        h = nonlinear(add_label(dense(self.dense)(z), y, self.dtype))
        h = nonlinear(dense(rows * columns * self.widths[0])(h))
        h = h.reshape(z.shape[0], rows, columns, self.widths[0])
        for features in self.widths[1:]:
            h = nonlinear(UpConv(features, self.kernel, dtype=self.dtype)(h))
        out = UpConv(outputs, self.kernel, dtype=self.dtype, name="out")(h)
        return out[:, :height, :width]
