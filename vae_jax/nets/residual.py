"""Residual convolutional nets without norms, for images of any height, width and channels; NHWC.

A block's last layer starts at 1/√(number of blocks) of its usual scale, so that a sum of many
blocks starts at the scale of one (Child 2021, arXiv:2011.10650, section 3.2). Grids are halved by
the mean of 2x2 cells and doubled by repeating; an odd side is ⌈side/2⌉ below it, and what a
doubling gives beyond it is cut off. With ``patch`` = p the finest grid is p times coarser than the
image, and a cell holds p x p pixels.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax.config import UserError
from vae_jax.nets.conv import Conv
from vae_jax.nets.mlp import Dense, act, add_label

Shape = tuple[int, int, int]  # H, W, C


def patches(x_BxHxWxC: jax.Array, p: int) -> jax.Array:
    """Each p x p block of pixels as one cell's channels: Bx⌈H/p⌉x⌈W/p⌉x(p·p·C).

    Pixels beyond the edge are 0.
    """
    b, height, width, c = x_BxHxWxC.shape
    ((rows, columns),) = grids((height, width, c), p, 1)
    x = jnp.pad(x_BxHxWxC, ((0, 0), (0, rows * p - height), (0, columns * p - width), (0, 0)))
    x = x.reshape(b, rows, p, columns, p, c).swapaxes(2, 3)
    return x.reshape(b, rows, columns, p * p * c)


def unpatch(h_BxRxSxF: jax.Array, shape: Shape, p: int) -> jax.Array:
    """The inverse of :func:`patches` for an image of ``shape`` (H, W, C)."""
    b, rows, columns, _ = h_BxRxSxF.shape
    x = h_BxRxSxF.reshape(b, rows, columns, p, p, shape[2]).swapaxes(2, 3)
    return x.reshape(b, rows * p, columns * p, shape[2])[:, : shape[0], : shape[1]]


def grids(shape: Shape, p: int, n: int) -> list[tuple[int, int]]:
    """(rows, columns) of n grids, the finest first."""
    height = -(-shape[0] // p)
    width = -(-shape[1] // p)
    return [(-(-height // 2**i), -(-width // 2**i)) for i in range(n)]


def halve(h: jax.Array) -> jax.Array:
    """The mean of the cells of each 2x2 block that are there."""
    return nn.avg_pool(h, (2, 2), (2, 2), padding="SAME", count_include_pad=False)


def double(h: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Each cell four times, cut to ``grid``."""
    return h.repeat(2, 1).repeat(2, 2)[:, : grid[0], : grid[1]]


def scaled(scale: float) -> nn.initializers.Initializer:
    """LeCun's initialisation, its standard deviation times ``scale``; 0 is zeros."""
    if not scale:
        return nn.initializers.zeros
    return nn.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


class Bottleneck(nn.Module):
    """Dense to ``inner`` channels, a 3x3 convolution, dense to ``outputs``; h_BxF or h_BxHxWxF.

    An activation is before each. Only grids of 3 x 3 cells and more have the convolution.
    """

    outputs: int
    inner: int
    activation: str = "silu"
    scale: float = 1.0  # of the last layer's initialisation
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        nonlinear = act(self.activation)
        h = Dense(self.inner, dtype=self.dtype)(nonlinear(h))
        if h.ndim == 4 and min(h.shape[1:3]) > 2:
            h = Conv(self.inner, 3, dtype=self.dtype)(nonlinear(h))
        return Dense(self.outputs, kernel_init=scaled(self.scale), dtype=self.dtype)(nonlinear(h))


class Residual(nn.Module):
    r"""h + :class:`Bottleneck` (h).

    With ``squeeze`` its channels u are multiplied by gates that depend on the mean ū over the grid:

    .. math:: u \cdot \sigma(W_2\, \mathrm{relu}(W_1 \bar u + b_1) + b_2)

    Hu et al. 2018 (arXiv:1709.01507), eqs. 2-4, with their reduction to a sixteenth of the
    channels. b_2 starts at 4: a fresh gate is nearly open, so that the scale of a fresh net stays
    the same.
    """

    inner: int
    activation: str
    scale: float
    squeeze: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h: jax.Array) -> jax.Array:
        width = h.shape[-1]
        u = Bottleneck(width, self.inner, self.activation, self.scale, self.dtype, name="inner")(h)
        if self.squeeze:
            squeeze = nn.Dense(max(1, width // 16), dtype=self.dtype, name="squeeze")
            bias = nn.initializers.constant(4.0)
            excite = nn.Dense(width, bias_init=bias, dtype=self.dtype, name="excite")
            gate = nn.sigmoid(excite(nn.relu(squeeze(u.mean((1, 2))))))
            u = u * gate[:, None, None]
        return h + u


def rematerialised(block: type[nn.Module], remat: str) -> type[nn.Module]:
    """A module class that computes its activations again for the gradients: ``config.remat``."""
    if remat == "none":
        return block
    if remat == "dots":
        return nn.remat(block, policy=jax.checkpoint_policies.dots_saveable)
    return nn.remat(block)


def check(net: nn.Module, section: str) -> None:
    """Raise UserError unless the net has a depth for each width."""
    widths = tuple(net.widths)
    depths = tuple(net.depths)
    if len(widths) != len(depths) or not widths:
        raise UserError(f"{section}.depths={depths}: want as many as widths={widths}, one or more")


def resized(h: jax.Array, width: int, name: str, dtype: Any) -> jax.Array:
    """h with ``width`` channels."""
    if h.shape[-1] == width:
        return h
    return Dense(width, dtype=dtype, name=name)(h)


def stack(net: nn.Module, h: jax.Array, i: int) -> jax.Array:
    """The ``depths[i]`` blocks of one grid, called within a net."""
    block = rematerialised(Residual, net.remat)
    inner = max(1, net.widths[i] // net.bottleneck)
    scale = sum(net.depths) ** -0.5
    for j in range(net.depths[i]):
        h = block(inner, net.activation, scale, net.squeeze, net.dtype, name=f"block_{i}_{j}")(h)
    return h


class ResidualEncoder(nn.Module):
    """Blocks on grids of these widths and depths: x_BxHxWxC → features_BxF.

    Each grid is half as fine as the one before. With ``pyramid`` the net returns the maps of all
    grids, the finest first: the bottom-up half of a hierarchy.
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
    def __call__(
        self, x: jax.Array, y: jax.Array | None = None
    ) -> jax.Array | tuple[jax.Array, ...]:
        check(self, "encoder")
        h = Conv(self.widths[0], 3, dtype=self.dtype)(patches(2 * x - 1, self.patch))
        maps = []
        for i, width in enumerate(self.widths):
            if i:
                h = halve(h)
            h = stack(self, resized(h, width, f"width_{i}", self.dtype), i)
            maps.append(h)
        if self.pyramid:
            return tuple(maps)
        nonlinear = act(self.activation)
        flat = nonlinear(h).reshape(h.shape[0], -1)
        h = nn.Dense(self.dense, dtype=self.dtype, name="dense")(flat)
        return nonlinear(add_label(h, y, self.dtype))


class ResidualDecoder(nn.Module):
    """Dense to the coarsest grid, then blocks on grids of these sizes: z_BxD → out_BxHxWxO.

    Grid i has ``depths[i]`` blocks of ``widths[i]`` channels. Each grid is twice as fine as the one
    before. The layer ``out`` is linear.
    """

    shape: Shape
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
    def __call__(self, z: jax.Array, y: jax.Array | None = None) -> jax.Array:
        check(self, "decoder")
        nonlinear = act(self.activation)
        sizes = grids(self.shape, self.patch, len(self.widths))[::-1]
        h = add_label(nn.Dense(self.dense, dtype=self.dtype, name="dense")(z), y, self.dtype)
        rows, columns = sizes[0]
        cells = rows * columns * self.widths[0]
        h = nn.Dense(cells, dtype=self.dtype, name="grid")(nonlinear(h))
        h = h.reshape(z.shape[0], rows, columns, self.widths[0])
        for i, width in enumerate(self.widths):
            if i:
                h = double(resized(h, width, f"width_{i}", self.dtype), sizes[i])
            h = stack(self, h, i)
        return out_layer(self, nonlinear(h))


def out_layer(net: nn.Module, h: jax.Array) -> jax.Array:
    """The layer ``out`` of a decoder: each cell's channels to its pixels' parameters of p(x|z)."""
    out = Conv(net.patch**2 * net.shape[2], 3, dtype=net.dtype, name="out")(h)
    return unpatch(out, net.shape, net.patch)
