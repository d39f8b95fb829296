"""Top-down halves of hierarchies: a state h goes through levels, each of which adds its latent z_l.

    p(z) = Π_l p(z_l | z_<l)        q(z|x) = Π_l q(z_l | z_<l, x)

Both distributions of a level are functions of the same h, q also of the bottom-up net's features of
x. The net draws nothing: ``choose(q, p, given_l) → (z_l, record)`` returns the z_l that a level
goes on with. Sønderby et al. 2016 (arXiv:1602.02282); residual initialisation and the path of the
prior's features as in VDVAE, Child 2021 (arXiv:2011.10650), section 3 and figure 3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.nets.mlp import Dense, act, add_label
from vae_jax.nets.residual import (
    Bottleneck,
    check,
    double,
    grids,
    out_layer,
    rematerialised,
    resized,
    scaled,
)

LOGVAR = (-12.0, 6.0)  # smooth bounds of every level: σ from 0.0025 to 20

Tree = Any  # a pytree: what ``choose`` is given, and what it records
Normal = densities.Normal
Choose = Callable[[Normal | None, Normal, Tree], tuple[jax.Array, Tree]]
Features = Sequence[jax.Array] | None  # of the bottom-up net, the top level's last; None without x


def _at(tree: Tree, i: int) -> Tree:
    """Entry i of the first axis of every array."""
    return jax.tree.map(lambda array: array[i], tree)


def _stacked(trees: list[Tree]) -> Tree:
    return jax.tree.map(lambda *arrays: jnp.stack(arrays), *trees)


def _normal(out: jax.Array, n: int) -> Normal:
    """N(μ, σ²) of a net's first n channels (μ) and the next n (log σ²): BxD_l, in float32."""
    mu = out[..., :n].reshape(len(out), -1).astype(jnp.float32)
    logvar = out[..., n : 2 * n].reshape(len(out), -1).astype(jnp.float32)
    return Normal(mu, densities.soft_clip(logvar, *LOGVAR))


class Level(nn.Module):
    """(h, features of x or None, given_l) → (h with z_l, the record of ``choose``).

    The prior's last layer starts at zero, so a fresh p(z_l | z_<l) is N(0, I). h_BxF or h_BxHxWxF;
    z_l is a vector or a map on the same grid, and flat, BxD_l, as an argument of a density.
    """

    latent: int  # numbers of z_l, or of each of its cells
    inner: int
    activation: str
    scale: float  # of the sum that a fresh level adds to h
    choose: Choose
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, h: jax.Array, features: jax.Array | None, given: Tree
    ) -> tuple[jax.Array, Tree]:
        width = h.shape[-1]
        n = self.latent

        def net(outputs: int, name: str, scale: float) -> Bottleneck:
            return Bottleneck(outputs, self.inner, self.activation, scale, self.dtype, name=name)

        out = net(2 * n + width, "prior", 0.0)(h)
        p = _normal(out, n)
        q = None
        if features is not None:
            both = jnp.concatenate([h, features], axis=-1)
            q = _normal(net(2 * n, "posterior", 1.0)(both), n)
        z, record = self.choose(q, p, given)
        z = z.astype(self.dtype).reshape(*h.shape[:-1], n)
        merge = Dense(width, kernel_init=scaled(self.scale), dtype=self.dtype, name="merge")
        h = h + out[..., 2 * n :] + merge(z)
        return h + net(width, "mix", self.scale)(h), record


class Ladder(nn.Module):
    """Dense levels, the top one first: z_l has ``latents[l]`` numbers.

    The encoder has as many layers of features, the last of them for the top level. The layer
    ``out`` is linear.
    """

    shape: tuple[int, int, int]
    latents: Sequence[int] = (4, 8, 16, 32, 64)
    width: int = 256
    inner: int = 256
    activation: str = "silu"
    dtype: Any = jnp.float32

    def groups(self) -> list[tuple[int, int]]:
        """[(levels of equal shape, numbers of each)], the top first."""
        return [(1, n) for n in self.latents]

    def code(self) -> int:
        """How many numbers of z, from the top, recognition and classifiers use: here all."""
        return sum(self.latents)

    @nn.compact
    def __call__(
        self,
        features: Features,
        choose: Choose,
        given: Sequence[Tree],
        rows: int,
        y: jax.Array | None = None,
    ) -> tuple[jax.Array, list[Tree]]:
        start = self.param("start", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        h = jnp.broadcast_to(add_label(start, y, self.dtype), (rows, self.width))
        if features is not None and len(features) != len(self.latents):
            latents = tuple(self.latents)
            raise UserError(
                f"decoder.latents={latents}: want as many levels as encoder.widths has layers"
            )
        scale = len(self.latents) ** -0.5
        records = []
        for i, n in enumerate(self.latents):
            fields = (n, self.inner, self.activation, scale, choose, self.dtype)
            of_level = None if features is None else features[-1 - i]
            h, record = Level(*fields, name=f"level_{i}")(h, of_level, _at(given[i], 0))
            records.append(_stacked([record]))
        pixels = self.shape[0] * self.shape[1] * self.shape[2]
        out = nn.Dense(pixels, dtype=self.dtype, name="out")(act(self.activation)(h))
        return out.reshape(rows, *self.shape), records


class VDVAE(nn.Module):
    """Convolutional levels on grids from coarse to fine.

    Grid i has ``depths[i]`` levels of ``channels`` maps. The encoder is ``residual`` with as many
    grids. With ``scan`` the levels of a grid are one ``lax.scan``: a program whose size does not
    grow with the depth, which XLA on CPU runs several times slower than the levels written out.
    """

    shape: tuple[int, int, int]
    widths: Sequence[int] = (64, 64, 64)
    depths: Sequence[int] = (1, 1, 1)
    channels: int = 16
    patch: int = 1
    bottleneck: int = 2
    activation: str = "silu"
    scan: bool = False
    remat: str = "none"
    dtype: Any = jnp.float32

    def groups(self) -> list[tuple[int, int]]:
        """[(levels of a grid, numbers of each)], the coarsest grid first."""
        sizes = grids(self.shape, self.patch, len(self.widths))[::-1]
        groups = []
        for depth, (rows, columns) in zip(self.depths, sizes, strict=True):
            groups.append((depth, rows * columns * self.channels))
        return groups

    def code(self) -> int:
        """How many numbers of z recognition and classifiers use: those of the coarsest grid."""
        depth, size = self.groups()[0]
        return depth * size

    @nn.compact
    def __call__(
        self,
        features: Features,
        choose: Choose,
        given: Sequence[Tree],
        rows: int,
        y: jax.Array | None = None,
    ) -> tuple[jax.Array, list[Tree]]:
        check(self, "decoder")
        sizes = grids(self.shape, self.patch, len(self.widths))[::-1]
        if features is not None and [f.shape[1:3] for f in features[::-1]] != sizes:
            widths = tuple(self.widths)
            raise UserError(
                f"decoder.widths={widths}: want the encoder's grids: as many widths and its patch"
            )
        start = self.param("start", nn.initializers.zeros, (*sizes[0], self.widths[0]))
        start = start.astype(self.dtype)
        label = None if y is None else jnp.expand_dims(y, (-2, -3))  # over all cells
        h = jnp.broadcast_to(add_label(start, label, self.dtype), (rows, *start.shape))
        records = []
        for i, width in enumerate(self.widths):
            if i:
                h = double(resized(h, width, f"width_{i}", self.dtype), sizes[i])
            of_grid = None if features is None else features[-1 - i]
            h, record = self._levels(i, choose)(h, of_grid, given[i])
            records.append(record)
        return out_layer(self, act(self.activation)(h)), records

    def _levels(self, i: int, choose: Choose) -> Callable[..., tuple[jax.Array, Tree]]:
        """(h, features, given) → (h, records) of the levels of grid i, called within the net."""
        inner = max(1, self.widths[i] // self.bottleneck)
        scale = sum(self.depths) ** -0.5
        fields = (self.channels, inner, self.activation, scale, choose, self.dtype)
        block = rematerialised(Level, self.remat)
        if self.scan:
            scanned = nn.scan(
                block,
                length=self.depths[i],
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=(nn.broadcast, 0),
            )
            return scanned(*fields, name=f"levels_{i}")

        def written_out(
            h: jax.Array, features: jax.Array | None, given: Tree
        ) -> tuple[jax.Array, Tree]:
            records = []
            for j in range(self.depths[i]):
                level = block(*fields, name=f"level_{i}_{j}")
                h, record = level(h, features, _at(given, j))
                records.append(record)
            return h, _stacked(records)

        return written_out
