r"""A grid of cells, each with at most one object: many objects of an image are found at once.

.. math:: p(x, z) = \prod_n \rho^{z^{pres}_n} (1 - \rho)^{1 - z^{pres}_n}\,
          p(z^{where}_n)\, p(z^{what}_n)\;
          p\Big(x \Big| \sum_n z^{pres}_n\, W_y(z^{where}_n)\, g(z^{what}_n)\,
          W_x(z^{where}_n)^T\Big)

over the N = G² cells of a convolutional encoder's last map. The number of objects is
binomial. Given the image the cells' presences and places are independent, and
:math:`q(z^{what}_n)` is read at the place drawn. Crawford & Pineau 2019 (SPAIR) and the foreground
of SPACE, Lin et al. 2020 (arXiv:2001.02407); here objects are added, as in
:mod:`vae_jax.models.air`, so they have no depth.

A cell's where is (scale, x, y): its window's corner lies in the cell's G-th of the places at which
a window fits into the canvas. So a window lies within the canvas, the cells' windows cover all
places once, and with G = 1 the law is that of :func:`vae_jax.models.air.windows`. z is flat,
BxN(4 + D), the cells row by row, as the steps of attend-infer-repeat are.
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import distributions
from vae_jax.models import air
from vae_jax.models.air import WHERE, Air, Beliefs, Choose, Latents, Law, Parts
from vae_jax.models.core import Array, Model, Params, Spec

EVERY = slice(None)  # the cells of a choice: all at once
RAREST = 1e-30  # of a count's probability, before its logarithm


def cell_windows(where_BxNx3: Array, law: Law, side: int) -> Array:
    """Boxes BxNx4 (x, y, w, h in pixels) of where, cell by cell, on a canvas of ``side`` pixels."""
    grid = math.isqrt(law.steps)
    length = side * law.scale * jnp.exp(law.spread * where_BxNx3[..., :1])
    cell = jnp.arange(law.steps)
    place_Nx2 = jnp.stack([cell % grid, cell // grid], axis=-1)
    share = (place_Nx2 + jax.scipy.stats.norm.cdf(where_BxNx3[..., 1:])) / grid
    return jnp.concatenate([(side - length) * share, length, length], axis=-1)


def log_count(logit_BxN: Array) -> Array:
    """log q(n) of n = 0 … N presences that are independent, BxN + 1 (Poisson-binomial)."""
    size, cells = logit_BxN.shape
    none = jnp.zeros((size, cells + 1)).at[:, 0].set(1.0)

    def add_cell(mass: Array, p_B: Array) -> tuple[Array, None]:
        one_more = jnp.pad(mass, ((0, 0), (1, 0)))[:, :-1]
        p = p_B[:, None]
        return (1 - p) * mass + p * one_more, None

    mass, _ = jax.lax.scan(add_cell, none, jax.nn.sigmoid(logit_BxN).T)
    return jnp.log(jnp.maximum(mass, RAREST))


class CellPrior(NamedTuple):
    """p(present) p(where) p(what) of flat z: cells are independent."""

    law: Law
    what: int  # D

    def sample(self, keys: Array) -> Array:
        chance, eps = air.noise(keys, self.law.steps, self.what)
        present = (chance < self.law.present).astype(jnp.float32)
        return air.join(Latents(present, eps[..., :WHERE], eps[..., WHERE:]))

    def log_prob(self, z: Array) -> Array:
        latents = air.divide(z, self.law.steps)
        rho = self.law.present
        log_p = latents.present * math.log(rho) + (1 - latents.present) * math.log1p(-rho)
        zero = jnp.zeros(())
        for part in (latents.where, latents.what):
            log_p += latents.present * distributions.log_normal(part, zero, zero)
        return jnp.sum(log_p, axis=-1)


@dataclasses.dataclass(frozen=True)
class Grid(Air):
    """The passes of :class:`Air` with cells in the place of steps, all decided at once."""

    def infer(self, params: Params, x: Array, choose: Choose) -> tuple[Latents, Beliefs]:
        """One look at the whole image, then one at each cell's window.

        ``choose`` is as :meth:`Air.infer` has it, of all cells together.
        """
        law = self.law
        logit, q_where = self.parts.attend(params, self.parts.features(params, x))
        present, where = choose(EVERY, q_where, logit)
        box = self.windows(where, x.shape[1])
        glimpse = jax.vmap(air.read, (None, 1, None), 1)(x, box, law.window)
        flat = self.parts.what(params, glimpse.reshape(-1, *self.glyph_shape))
        shape = (len(x), law.steps, self.what)
        q_what = distributions.Normal(flat.mu.reshape(shape), flat.logvar.reshape(shape))
        what = choose(EVERY, q_what)
        return Latents(present, where, what), Beliefs(logit, q_where, q_what)

    def windows(self, where: Array, side: int) -> Array:
        return cell_windows(where, self.law, side)

    def decided(self, present: Array) -> Array:
        return jnp.ones_like(present)

    def log_count(self, logit: Array) -> Array:
        return log_count(logit)

    @property
    def prior(self) -> CellPrior:
        return CellPrior(self.law, self.what)


def grid(spec: Spec, parts: Parts, law: Law) -> Model:
    """The model as a value. ``nets`` is the :class:`Grid` with its relaxed draws."""
    return air.of_passes(Grid(spec, parts, law))
