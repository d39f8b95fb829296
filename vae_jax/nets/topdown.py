"""Top-down halves of hierarchies: a state h goes through levels, each of which meets its latent z_l.

    p(z) = Π_l p(z_l | z_<l)        q(z|x) = Π_l q(z_l | z_<l, x)

Both of a level's distributions are read off the same h, q's beside what the bottom-up net made of x. The net draws
nothing: ``choose(q, p, given_l) → (z_l, record)`` says which z_l a level goes on with. Sønderby et al. 2016
(arXiv:1602.02282); residual initialisation and the path of the prior's features as in VDVAE, Child 2021
(arXiv:2011.10650), section 3 and figure 3.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.nets.mlp import Dense, act, add_label
from vae_jax.nets.residual import Bottleneck, check, double, grids, out_layer, rematerialised, resized, scaled

LOGVAR = (-12.0, 6.0)  # smooth bounds of every level: σ from 0.0025 to 20


class Level(nn.Module):
    """(h, features of x or None, given_l) → (h with z_l, what ``choose`` records).

    The prior's last layer starts at zero, so a fresh p(z_l | z_<l) is N(0, I). h_BxF or h_BxHxWxF; z_l is a vector or
    a map on the same grid, and flat, BxD_l, wherever a density is taken of it.
    """

    latent: int  # numbers of z_l, or of each of its cells
    inner: int
    activation: str
    scale: float  # of what is added to h, at the start
    choose: Callable
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, h, features, given):
        width, n = h.shape[-1], self.latent

        def net(outputs, name, scale):
            return Bottleneck(outputs, self.inner, self.activation, scale, self.dtype, name=name)

        def normal(stats):
            mu, logvar = (a.reshape(len(h), -1).astype(jnp.float32) for a in (stats[..., :n], stats[..., n : 2 * n]))
            return densities.Normal(mu, densities.soft_clip(logvar, *LOGVAR))

        stats = net(2 * n + width, "prior", 0.0)(h)
        p, q = normal(stats), None
        if features is not None:
            q = normal(net(2 * n, "posterior", 1.0)(jnp.concatenate([h, features], axis=-1)))
        z, record = self.choose(q, p, given)
        z = z.astype(self.dtype).reshape(*h.shape[:-1], n)
        h = h + stats[..., 2 * n :] + Dense(width, kernel_init=scaled(self.scale), dtype=self.dtype, name="merge")(z)
        return h + net(width, "mix", self.scale)(h), record


class Ladder(nn.Module):
    """Dense levels, the top one first: z_l has ``latents[l]`` numbers. The encoder gives as many layers of features,
    of which the last is the top level's; the layer ``out`` is linear."""

    shape: tuple[int, int, int]
    latents: Sequence[int] = (4, 8, 16, 32, 64)
    width: int = 256
    inner: int = 256
    activation: str = "silu"
    dtype: Any = jnp.float32

    def groups(self):
        """[(levels of equal shape, numbers of each)], the top first."""
        return [(1, n) for n in self.latents]

    def code(self):
        """How many numbers of z, from the top, recognition and classifiers look at: here all."""
        return sum(self.latents)

    @nn.compact
    def __call__(self, features, choose, given, rows, y=None):
        start = self.param("start", nn.initializers.zeros, (self.width,)).astype(self.dtype)
        h = jnp.broadcast_to(add_label(start, y, self.dtype), (rows, self.width))
        if features is not None and len(features) != len(self.latents):
            raise UserError(f"decoder.latents={tuple(self.latents)}: want as many levels as encoder.widths has layers")
        scale, records = len(self.latents) ** -0.5, []
        for i, n in enumerate(self.latents):
            level = Level(n, self.inner, self.activation, scale, choose, self.dtype, name=f"level_{i}")
            h, record = level(h, None if features is None else features[-1 - i], jax.tree.map(lambda a: a[0], given[i]))
            records.append(jax.tree.map(lambda a: a[None], record))
        pixels = self.shape[0] * self.shape[1] * self.shape[2]
        out = nn.Dense(pixels, dtype=self.dtype, name="out")(act(self.activation)(h))
        return out.reshape(rows, *self.shape), records


class VDVAE(nn.Module):
    """Convolutional levels on grids from coarse to fine: ``depths[i]`` levels of ``channels`` maps on grid i.

    The encoder is ``residual`` with as many grids. With ``scan`` the levels of a grid are one ``lax.scan``: a program
    whose size does not grow with the depth, which XLA on CPU runs several times slower than the levels written out.
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

    def groups(self):
        sizes = grids(self.shape, self.patch, len(self.widths))[::-1]
        return [(n, r * c * self.channels) for n, (r, c) in zip(self.depths, sizes, strict=True)]

    def code(self):
        """Those of the coarsest grid."""
        n, size = self.groups()[0]
        return n * size

    @nn.compact
    def __call__(self, features, choose, given, rows, y=None):
        check(self, "decoder")
        sizes = grids(self.shape, self.patch, len(self.widths))[::-1]
        found = None if features is None else [f.shape[1:3] for f in features[::-1]]
        if found is not None and found != sizes:
            raise UserError(
                f"decoder.widths={tuple(self.widths)}: want the encoder's grids: as many widths and its patch"
            )
        start = self.param("start", nn.initializers.zeros, (*sizes[0], self.widths[0])).astype(self.dtype)
        label = None if y is None else jnp.expand_dims(y, (-2, -3))  # over all cells
        h = jnp.broadcast_to(add_label(start, label, self.dtype), (rows, *start.shape))
        records = []
        for i, width in enumerate(self.widths):
            if i:
                h = double(resized(h, width, f"width_{i}", self.dtype), sizes[i])
            depth, inner = self.depths[i], max(1, width // self.bottleneck)
            fields = (self.channels, inner, self.activation, sum(self.depths) ** -0.5, choose, self.dtype)
            seen, block = None if features is None else features[-1 - i], rematerialised(Level, self.remat)
            if self.scan:
                axes = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "in_axes": (nn.broadcast, 0)}
                h, record = nn.scan(block, length=depth, **axes)(*fields, name=f"levels_{i}")(h, seen, given[i])
            else:
                each = []
                for j in range(depth):
                    here = jax.tree.map(lambda a, j=j: a[j], given[i])
                    h, one = block(*fields, name=f"level_{i}_{j}")(h, seen, here)
                    each.append(one)
                record = jax.tree.map(lambda *a: jnp.stack(a), *each)
            records.append(record)
        return out_layer(self, act(self.activation)(h)), records
