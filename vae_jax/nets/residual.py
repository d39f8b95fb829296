"""Residual convolutional nets without norms, for images of any height, width and number of channels; NHWC.

A block's last layer starts at 1/√(number of blocks) of its usual scale, so that a sum of many blocks starts at the
scale of one (Child 2021, arXiv:2011.10650, section 3.2). Grids are halved by the mean of 2x2 cells and doubled by
repeating; an odd side is ⌈side/2⌉ below it, and what a doubling gives beyond it is cut off. With ``patch`` = p the
finest grid is p times coarser than the image, a cell holding p x p pixels. Convolutions are those of ``conv``: reverse
mode only.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.config import UserError
from vae_jax.nets.conv import Conv
from vae_jax.nets.mlp import Dense, act, add_label


def patches(x_BxHxWxC, p):
    """Each p x p block of pixels as one cell's channels, zeros beyond the edge: Bx⌈H/p⌉x⌈W/p⌉x(p·p·C)."""
    b, height, width, c = x_BxHxWxC.shape
    rows, columns = -(-height // p), -(-width // p)
    x = jnp.pad(x_BxHxWxC, ((0, 0), (0, rows * p - height), (0, columns * p - width), (0, 0)))
    return x.reshape(b, rows, p, columns, p, c).swapaxes(2, 3).reshape(b, rows, columns, p * p * c)


def unpatch(h_BxRxSxF, shape, p):
    """The inverse of :func:`patches` for an image of ``shape`` (H, W, C)."""
    b, rows, columns, _ = h_BxRxSxF.shape
    x = h_BxRxSxF.reshape(b, rows, columns, p, p, shape[2]).swapaxes(2, 3)
    return x.reshape(b, rows * p, columns * p, shape[2])[:, : shape[0], : shape[1]]


def grids(shape, p, n):
    """(rows, columns) of n grids, the finest first."""
    height, width = -(-shape[0] // p), -(-shape[1] // p)
    return [(-(-height // 2**i), -(-width // 2**i)) for i in range(n)]


def halve(h):
    """The mean of the cells of each 2x2 block that are there."""
    return nn.avg_pool(h, (2, 2), (2, 2), padding="SAME", count_include_pad=False)


def double(h, grid):
    """Each cell four times, cut to ``grid``."""
    return h.repeat(2, 1).repeat(2, 2)[:, : grid[0], : grid[1]]


def scaled(scale):
    """LeCun's initialisation, its standard deviation times ``scale``; 0 is zeros."""
    if not scale:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


class Bottleneck(nn.Module):
    """Dense to ``inner`` channels, a 3x3 convolution where the grid has room for it, dense to ``outputs``; an
    activation before each. Works on h_BxF and on h_BxHxWxF."""

    outputs: int
    inner: int
    activation: str = "silu"
    scale: float = 1.0  # of the last layer's initialisation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h):
        nonlinear = act(self.activation)
        h = Dense(self.inner, dtype=self.dtype)(nonlinear(h))
        if h.ndim == 4 and min(h.shape[1:3]) > 2:
            h = Conv(self.inner, 3, dtype=self.dtype)(nonlinear(h))
        return Dense(self.outputs, kernel_init=scaled(self.scale), dtype=self.dtype)(nonlinear(h))


class Residual(nn.Module):
    r"""h + :class:`Bottleneck` (h); with ``squeeze`` the latter's channels u each times a gate that has seen all cells:

    .. math:: u \cdot \sigma(W_2\, \mathrm{relu}(W_1 \bar u + b_1) + b_2), \quad \bar u\ \text{the mean over the grid}

    Hu et al. 2018 (arXiv:1709.01507), eqs. 2-4, with their reduction to a sixteenth of the channels. b_2 starts at 4: a
    fresh gate is nearly open, so that the scale of a fresh net stays what it is.
    """

    inner: int
    activation: str
    scale: float
    squeeze: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h):
        width = h.shape[-1]
        u = Bottleneck(width, self.inner, self.activation, self.scale, self.dtype, name="inner")(h)
        if self.squeeze:
            seen = nn.relu(nn.Dense(max(1, width // 16), dtype=self.dtype, name="squeeze")(u.mean((1, 2))))
            gate = nn.Dense(width, bias_init=nn.initializers.constant(4.0), dtype=self.dtype, name="excite")(seen)
            u = u * nn.sigmoid(gate)[:, None, None]
        return h + u


def rematerialised(block, remat):
    """A module class whose activations are computed again for the gradients: ``config.remat``, block by block."""
    if remat == "none":
        return block
    return nn.remat(block, policy=jax.checkpoint_policies.dots_saveable if remat == "dots" else None)


def check(net, section):
    if len(net.widths) != len(net.depths) or not net.widths:
        raise UserError(
            f"{section}.depths={tuple(net.depths)}: want as many as widths={tuple(net.widths)}, one or more"
        )


def resized(h, width, name, dtype):
    """h with ``width`` channels."""
    return h if h.shape[-1] == width else Dense(width, dtype=dtype, name=name)(h)


def stack(net, h, i):
    """The ``depths[i]`` blocks of one grid, called within a net."""
    block = rematerialised(Residual, net.remat)
    for j in range(net.depths[i]):
        inner, scale = max(1, net.widths[i] // net.bottleneck), sum(net.depths) ** -0.5
        h = block(inner, net.activation, scale, net.squeeze, net.dtype, name=f"block_{i}_{j}")(h)
    return h


class ResidualEncoder(nn.Module):
    """Blocks on grids of these widths and depths, each half as fine as the one before: x_BxHxWxC → features_BxF.

    With ``pyramid`` it gives the maps of all grids, the finest first: the bottom-up half of a hierarchy.
    """

    widths: Sequence[int] = (32, 64, 128)
    depths: Sequence[int] = (1, 1, 1)
    patch: int = 1
    bottleneck: int = 2  # a block's inner convolution has 1/bottleneck of its channels
    dense: int = 256
    activation: str = "silu"
    squeeze: bool = False  # a gate for each channel of a block's branch: see Residual
    pyramid: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, y=None):
        check(self, "encoder")
        h = Conv(self.widths[0], 3, dtype=self.dtype)(patches(2 * x - 1, self.patch))
        maps = []
        for i, width in enumerate(self.widths):
            h = resized(halve(h) if i else h, width, f"width_{i}", self.dtype)
            h = stack(self, h, i)
            maps.append(h)
        if self.pyramid:
            return tuple(maps)
        nonlinear = act(self.activation)
        h = nn.Dense(self.dense, dtype=self.dtype, name="dense")(nonlinear(h).reshape(h.shape[0], -1))
        return nonlinear(add_label(h, y, self.dtype))


class ResidualDecoder(nn.Module):
    """Dense to the coarsest grid, then blocks on grids of these widths and depths, each twice as fine as the one
    before: z_BxD → out_BxHxWxO. The layer ``out`` is linear."""

    shape: tuple[int, int, int]
    widths: Sequence[int] = (128, 64, 32)
    depths: Sequence[int] = (1, 1, 1)
    patch: int = 1
    bottleneck: int = 2
    dense: int = 256
    activation: str = "silu"
    squeeze: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z, y=None):
        check(self, "decoder")
        nonlinear = act(self.activation)
        sizes = grids(self.shape, self.patch, len(self.widths))[::-1]
        h = add_label(nn.Dense(self.dense, dtype=self.dtype, name="dense")(z), y, self.dtype)
        h = nn.Dense(sizes[0][0] * sizes[0][1] * self.widths[0], dtype=self.dtype, name="grid")(nonlinear(h))
        h = h.reshape(z.shape[0], *sizes[0], self.widths[0])
        for i, width in enumerate(self.widths):
            h = double(resized(h, width, f"width_{i}", self.dtype), sizes[i]) if i else h
            h = stack(self, h, i)
        return out_layer(self, nonlinear(h))


def out_layer(net, h):
    """The layer ``out`` of a decoder: each cell's channels to its pixels' parameters of p(x|z)."""
    out = Conv(net.patch**2 * net.shape[2], 3, dtype=net.dtype, name="out")(h)
    return unpatch(out, net.shape, net.patch)
