"""Models of L levels: p(z) = Π p(z_l | z_<l), q(z|x) = Π q(z_l | z_<l, x).

The nets are those of ``nets.topdown``.

z_BxD is all levels flat, the top one first, so that ``encode``, ``prior`` and ``decode`` mean what
they mean for one layer. ``encode(params, x).mu`` has each level at its mean given those above.
Recognition and classifiers look at the levels of the coarsest grid, the first ``spec.code``
dimensions. q's own layers lie in ``params["decoder"]``: where inference and generative nets are
told apart (PIWAE, gradients' noise) they count as the latter.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import distributions
from vae_jax.mesh import layout
from vae_jax.models.core import (
    Array,
    Draw,
    Model,
    Params,
    Spec,
    classifier_of_code,
    over_samples,
)


class LevelParts(NamedTuple):
    """The nets of a hierarchy as functions of its parameters."""

    init: Callable[..., Params]
    features: Callable[[Params, Array], Any]  # params, x_B → what the bottom-up net makes of x
    # params, features or None, choose, given, rows, y=None → (out_BxHxWxO, records of each group)
    top_down: Callable[..., tuple[Array, list]]
    head: Callable[..., Array] | None  # params, z_BxD → logits_BxY


class Joint(NamedTuple):
    """q(z|x) or p(z) of a hierarchy as one distribution of z_BxD, its levels side by side."""

    mu: Array  # BxD: each level at its mean, given the means above it
    sample_and_log_prob: Callable[[Array], tuple[Array, Array]]
    log_prob: Callable[[Array], Array]

    def sample(self, keys: Array) -> Array:
        return self.sample_and_log_prob(keys)[0]


# What a level does, as ``choose`` of the top-down net: (q or None, p, what it is given) → z and
# (z, log p, log q, KL).


def draw_level(q: Any, p: Any, keys_B: Array) -> tuple[Array, tuple]:
    """z ~ q, or ~ p where there is no x; with log p, log q and KL(q ‖ p), shape B."""
    if q is None:
        z, log_pz = p.sample_and_log_prob(keys_B)
        return z, (z, log_pz, log_pz, None)
    z, log_qz = q.sample_and_log_prob(keys_B)
    return z, (z, p.log_prob(z), log_qz, distributions.kl(q, p))


def density_level(q: Any, p: Any, z: Array) -> tuple[Array, tuple]:
    """A given z, with its log p and log q."""
    log_qz = None if q is None else q.log_prob(z)
    return z, (z, p.log_prob(z), log_qz, None)


def mean_level(q: Any, p: Any, _: Array) -> tuple[Array, tuple]:
    """The mean of q, or of p where there is no x."""
    mu = p.mu if q is None else q.mu
    return mu, (mu, None, None, None)


def mixed_level(q: Any, p: Any, given: tuple[Array, Array, Array]) -> tuple[Array, tuple]:
    """q's mean where ``from_q``; else p's mean + temperature · σ · ε."""
    from_q, temperature, keys_B = given
    z = p.mu + temperature * (p.sample(keys_B) - p.mu)
    if q is not None:
        z = jnp.where(from_q, q.mu, z)
    return z, (z, None, None, None)


class Pass(NamedTuple):
    """One way down through the levels; BxL, or None where it was not asked for."""

    out: Array  # BxHxWxO
    z: Array  # BxD
    log_pz: Array | None
    log_qz: Array | None
    kl: Array | None


@dataclasses.dataclass(frozen=True)
class Levels:
    """The ways down through a hierarchy's levels."""

    spec: Spec
    parts: LevelParts

    def split(self, leaves_LxX: Any) -> list:
        """Arrays with an entry for each level, cut into groups."""
        edges = [0, *itertools.accumulate(n for n, _ in self.spec.groups)]

        def cut(lo: int, hi: int) -> Any:
            return jax.tree.map(lambda a: a[lo:hi], leaves_LxX)

        return [cut(lo, hi) for lo, hi in itertools.pairwise(edges)]

    def latents(self, z_BxD: Array) -> list[Array]:
        """z of each group, NxBxD_l."""
        edges = list(itertools.accumulate(n * d for n, d in self.spec.groups))
        groups = []
        pieces = jnp.split(z_BxD, edges[:-1], axis=-1)
        for piece, (n, d) in zip(pieces, self.spec.groups, strict=True):
            groups.append(jnp.moveaxis(piece.reshape(len(z_BxD), n, d), 1, 0))
        return groups

    def run(
        self,
        params: Params,
        features: Any,
        choose: Callable,
        given: list,
        rows: int,
        y: Array | None,
    ) -> Pass:
        """One way down; ``choose`` says which z a level goes on with."""
        out, records = self.parts.top_down(params, features, choose, given, rows, y)
        z, *others = zip(*records, strict=True)
        z_BxD = jnp.concatenate([jnp.moveaxis(a, 0, 1).reshape(rows, -1) for a in z], axis=-1)
        log_pz, log_qz, kl = (None if o[0] is None else jnp.concatenate(o).T for o in others)
        return Pass(out, z_BxD, log_pz, log_qz, kl)

    def descend(self, params: Params, features: Any, keys_B: Array, y: Array | None) -> Pass:
        """z ~ q(z|x), or ~ p(z) where ``features`` is None."""
        given = self.split(distributions.split_keys(keys_B, self.spec.levels))
        return self.run(params, features, draw_level, given, len(keys_B), y)

    def at(self, params: Params, features: Any, z_BxD: Array, y: Array | None) -> Pass:
        """The densities of a given z."""
        return self.run(params, features, density_level, self.latents(z_BxD), len(z_BxD), y)

    def mean(self, params: Params, features: Any, rows: int, y: Array | None) -> Array:
        """Each level at its mean, given the means above it."""
        nothing = self.split(jnp.zeros(self.spec.levels))
        return self.run(params, features, mean_level, nothing, rows, y).z

    def joint(self, params: Params, features: Any, rows: int, y: Array | None) -> Joint:
        """q(z|x), or p(z) where ``features`` is None."""

        def log_density(way: Pass) -> Array:
            return (way.log_pz if features is None else way.log_qz).sum(-1)

        def one(keys_B: Array) -> tuple[Array, Array]:
            way = self.descend(params, features, keys_B, y)
            return way.z, log_density(way)

        def log_prob(z_BxD: Array) -> Array:
            return log_density(self.at(params, features, z_BxD, y))

        mu = self.mean(params, features, rows, y)
        return Joint(mu, lambda keys: over_samples(one, keys), log_prob)

    def complete(
        self,
        params: Params,
        x: Array | None,
        keys_B: Array,
        y: Array | None = None,
        first: int | Array = 0,
        temperature: float | Array = 1.0,
    ) -> Array:
        """z_BxD whose ``first`` levels are q's means and whose others are from the prior.

        A level's deviation from the prior's mean is multiplied by ``temperature``: a number, or L
        of them.
        """
        features = None if x is None else self.parts.features(params, x)
        heat_L = jnp.broadcast_to(jnp.asarray(temperature, jnp.float32), self.spec.levels)
        level_keys = distributions.split_keys(keys_B, self.spec.levels)
        from_q_L = jnp.arange(self.spec.levels) < first
        given = self.split((from_q_L, heat_L, level_keys))
        return self.run(params, features, mixed_level, given, len(keys_B), y).z

    def draw(self, params: Params, x: Array, keys: Array, y: Array | None = None) -> Draw:
        one = functools.partial(self.draw_once, params, x, self.parts.features(params, x), y)
        if keys.ndim == 1:
            return one(keys)
        if len(keys) == 1:
            # vmap's axis would come between the rows that mlp.Dense puts in one matrix.
            return jax.tree.map(lambda a: a[None], one(keys[0]))
        return layout.constrain(jax.vmap(one)(keys), len(keys))

    def draw_once(
        self, params: Params, x: Array, features: Any, y: Array | None, keys_B: Array
    ) -> Draw:
        """One draw of each example."""
        way = self.descend(params, features, keys_B, y)
        log_px = self.spec.likelihood.log_prob(way.out, x)
        log_w = log_px + jnp.sum(way.log_pz - way.log_qz, axis=-1)
        extra = {"log_pz": way.log_pz, "log_qz": way.log_qz}
        return Draw(log_px, way.kl, log_w, way.z, extra)

    def log_joint(self, params: Params, x: Array, z: Array, y: Array | None = None) -> Array:
        def one(z_BxD: Array) -> Array:
            way = self.at(params, None, z_BxD, y)
            return self.spec.likelihood.log_prob(way.out, x) + way.log_pz.sum(-1)

        return one(z) if z.ndim == 2 else jax.vmap(one)(z)

    def log_posterior(self, params: Params, x: Array, z: Array, y: Array | None = None) -> Array:
        features = self.parts.features(params, x)

        def one(z_BxD: Array) -> Array:
            return self.at(params, features, z_BxD, y).log_qz.sum(-1)

        return one(z) if z.ndim == 2 else jax.vmap(one)(z)

    def encode(self, params: Params, x: Array, y: Array | None = None) -> Joint:
        return self.joint(params, self.parts.features(params, x), len(x), y)

    def prior(self, params: Params, y: Array | None = None) -> Joint:
        return self.joint(params, None, 1, y)

    def decode(self, params: Params, z: Array, y: Array | None = None) -> Array:
        return self.at(params, None, z, y).out

    def sample(
        self,
        params: Params,
        keys_N: Array,
        y: Array | None = None,
        temperature: float | Array = 1.0,
    ) -> Array:
        return self.complete(params, None, keys_N, y, 0, temperature)


def hierarchy(spec: Spec, parts: LevelParts) -> Model:
    """A model of several levels as a value."""
    levels = Levels(spec, parts)
    return Model(
        spec=spec,
        init=parts.init,
        draw=levels.draw,
        log_joint=levels.log_joint,
        log_posterior=levels.log_posterior,
        encode=levels.encode,
        prior=levels.prior,
        decode=levels.decode,
        sample=levels.sample,
        classify=classifier_of_code(levels.encode, parts.head),
        head=parts.head,
        complete=levels.complete,
        nets=parts,
    )
