r"""Attend, infer, repeat: a scene is a sum of objects, each with a place and a look.

.. math:: p(x, n, z) = p(n) \prod_{t \le n} p(z^{where}_t)\, p(z^{what}_t)\;
          p\Big(x \Big| \sum_{t \le n} W_y(z^{where}_t)\, g(z^{what}_t)\, W_x(z^{where}_t)^T\Big)

with n of at most T objects, written as :math:`z^{pres}_t = 1` for t ≤ n. An image is read as it is
written, by two matrix products. Eslami et al. 2016 (arXiv:1603.08575).

z is flat, BxT(4 + D): the presences, then where (scale, x, y), then what, step by step within each.
Of a step that is not present all entries are 0.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import distributions
from vae_jax.models.boxes import Detections
from vae_jax.models.core import Array, Draw, Model, Params, Spec, over_samples

WHERE = 3  # scale, x, y
DARKEST = 1e-3  # a canvas of probabilities lies within (DARKEST, 1 − DARKEST)
LIT = 0.1  # of white: pixels of an object that its box holds


class Parts(NamedTuple):
    """The nets as functions of parameters."""

    init: Callable[..., Params]
    features: Callable[..., Array]  # params, x_BxHxWxC → BxF
    attend: Callable[..., tuple]  # params, state_BxU, features, z_BxE → state, logit_B, q(where)
    what: Callable[..., Any]  # params, glimpse_BxGxGxC → q(what)
    glyph: Callable[..., Array]  # params, what_BxD → BxGxGxC in [0, 1]


@dataclasses.dataclass(frozen=True)
class Law:
    """The numbers of the prior and of the windows."""

    steps: int  # T
    window: int  # G, the side of what is read and written
    units: int  # of the recurrent net
    present: float  # ρ: probability of one more object
    scale: float  # of a window's side, in units of the canvas: its median
    spread: float  # and the standard deviation of its logarithm


class Latents(NamedTuple):
    """z by its meaning; presences are 0 or 1, or between them where they are relaxed."""

    present: Array  # BxT
    where: Array  # BxTx3
    what: Array  # BxTxD


class Beliefs(NamedTuple):
    """q of each step, given the steps before it."""

    logit: Array  # BxT, of the presence of step t if step t − 1 is present
    where: distributions.Normal  # BxTx3
    what: distributions.Normal  # BxTxD


Choose = Callable[..., tuple[Array, Array, Array]]


def join(z: Latents) -> Array:
    """Latents as one row for each example, BxT(4 + D)."""
    size = len(z.present)
    masked = (z.where * z.present[..., None], z.what * z.present[..., None])
    return jnp.concatenate([z.present, *(part.reshape(size, -1) for part in masked)], axis=-1)


def divide(z_BxE: Array, steps: int) -> Latents:
    """The inverse of :func:`join`."""
    present, where, what = jnp.split(z_BxE, [steps, steps * (1 + WHERE)], axis=-1)
    shape = (len(z_BxE), steps, -1)
    return Latents(present, where.reshape(shape), what.reshape(shape))


# --- Windows ---


def windows(where: Array, law: Law, side: int) -> Array:
    """Boxes …x4 (x, y, w, h in pixels) of where, …x3, on a canvas of ``side`` pixels.

    The prior N(0, I) of where is a log-normal size, and a uniform place of a window that lies
    within the canvas.
    """
    length = side * law.scale * jnp.exp(law.spread * where[..., :1])
    free = side - length
    corner = free * jax.scipy.stats.norm.cdf(where[..., 1:])
    return jnp.concatenate([corner, length, length], axis=-1)


def interpolation(points: Array, size: int) -> Array:
    """…xPxS: the bilinear weights of ``size`` pixels at these points, …xP, in units of pixels.

    Pixel s has its centre at s + 1/2. Points outside weigh nothing.
    """
    distance = jnp.abs(points[..., None] - 0.5 - jnp.arange(size))
    return jnp.maximum(0, 1 - distance)


def axes(box: Array) -> tuple[Array, Array]:
    """((y, h), (x, w)) of boxes …x4, as arrays …x2."""
    return box[..., 1::2], box[..., 0::2]


def read(image_BxHxWxC: Array, box_Bx4: Array, window: int) -> Array:
    """The image at the centres of ``window`` x ``window`` cells of a box: R_y I R_xᵀ, BxGxGxC."""
    centres = (jnp.arange(window) + 0.5) / window
    matrices = []
    for along, size in zip(axes(box_Bx4), image_BxHxWxC.shape[1:3], strict=True):
        points = along[:, :1] + centres * along[:, 1:]
        matrices.append(interpolation(points, size))
    return _products(matrices[0], image_BxHxWxC, matrices[1])


def write(glyph_BxGxGxC: Array, box_Bx4: Array, side: int) -> Array:
    """The glyph drawn into a box on a black canvas: W_y I W_xᵀ, BxSxSxC."""
    centres = jnp.arange(side) + 0.5
    window = glyph_BxGxGxC.shape[1]
    matrices = []
    for along in axes(box_Bx4):
        points = (centres - along[:, :1]) / along[:, 1:] * window
        matrices.append(interpolation(points, window))
    return _products(matrices[0], glyph_BxGxGxC, matrices[1])


def write_sum(glyph_BxTxGxGxC: Array, box_BxTx4: Array, side: int) -> Array:
    """The sum over T of what :func:`write` draws, BxSxSxC, without a canvas for each."""
    centres = jnp.arange(side) + 0.5
    window = glyph_BxTxGxGxC.shape[2]
    matrices = []
    for along in axes(box_BxTx4):
        points = (centres - along[..., :1]) / along[..., 1:] * window
        matrices.append(interpolation(points, window))
    half = jnp.einsum("btya,btacz->btycz", matrices[0], glyph_BxTxGxGxC)
    return jnp.einsum("btycz,btxc->byxz", half, matrices[1])


def _products(rows: Array, image: Array, columns: Array) -> Array:
    half = jnp.einsum("bya,bacz->bycz", rows, image)
    return jnp.einsum("bycz,bxc->byxz", half, columns)


# --- The count ---


def log_count(present: float, steps: int) -> Array:
    """log p(n) of n = 0 … T: ρⁿ (1 − ρ), and ρᵀ of the last."""
    n = jnp.arange(steps + 1)
    stop = jnp.where(n < steps, math.log1p(-present), 0.0)
    return n * math.log(present) + stop


def count_of_logits(logit_BxT: Array) -> Array:
    """log q(n) of n = 0 … T, where q(present_t | present_{t−1}) has these logits; BxT + 1."""
    go_on = jnp.cumsum(jax.nn.log_sigmoid(logit_BxT), axis=-1)
    before = jnp.pad(go_on, ((0, 0), (1, 0)))
    return before + jnp.pad(jax.nn.log_sigmoid(-logit_BxT), ((0, 0), (0, 1)))


def _at_risk(present_BxT: Array) -> Array:
    """The presence of the step before, 1 at the first: whether step t is decided at all."""
    return jnp.pad(present_BxT, ((0, 0), (1, 0)), constant_values=1.0)[:, :-1]


def log_bernoulli(present_BxT: Array, logit_BxT: Array) -> Array:
    """log q of each presence by itself, BxT."""
    yes = present_BxT * jax.nn.log_sigmoid(logit_BxT)
    no = (1 - present_BxT) * jax.nn.log_sigmoid(-logit_BxT)
    return yes + no


def log_presence(present_BxT: Array, logit_BxT: Array) -> Array:
    """log q(present) for each example: Σ_t of the steps that are decided."""
    return jnp.sum(_at_risk(present_BxT) * log_bernoulli(present_BxT, logit_BxT), axis=-1)


class Prior(NamedTuple):
    """p(n) p(where) p(what) of flat z."""

    law: Law
    what: int  # D

    def sample(self, keys: Array) -> Array:
        chance, eps = noise(keys, self.law.steps, self.what)
        present = jnp.cumprod((chance < self.law.present).astype(jnp.float32), axis=-1)
        return join(Latents(present, eps[..., :WHERE], eps[..., WHERE:]))

    def log_prob(self, z: Array) -> Array:
        latents = divide(z, self.law.steps)
        count = jnp.sum(latents.present, axis=-1).astype(jnp.int32)
        log_p = log_count(self.law.present, self.law.steps)[count]
        zero = jnp.zeros(())
        for part in latents[1:]:
            log_p += jnp.sum(latents.present * distributions.log_normal(part, zero, zero), axis=-1)
        return log_p


def noise(keys_B: Array, steps: int, what: int) -> tuple[Array, Array]:
    """(uniform BxT, normal BxTx(3 + D)) of each key."""

    def of_one(key: Array) -> tuple[Array, Array]:
        chance, rest = jax.random.split(key)
        normal = jax.random.normal(rest, (steps, WHERE + what))
        return jax.random.uniform(chance, (steps,)), normal

    return jax.vmap(of_one)(keys_B)


class Code(NamedTuple):
    """q(z|x): ``mu`` is z at the means, with a step present where its probability exceeds 1/2."""

    mu: Array
    sample: Callable[[Array], Array]  # keys_B → z
    log_prob: Callable[[Array], Array]  # z → B


# --- The model ---


@dataclasses.dataclass(frozen=True)
class Air:
    """The passes of the model; :func:`attend_infer_repeat` makes a Model of them."""

    spec: Spec
    parts: Parts
    law: Law

    @property
    def what(self) -> int:
        """D."""
        return self.spec.latent // self.law.steps - 1 - WHERE

    def infer(self, params: Params, x: Array, choose: Choose) -> tuple[Latents, Beliefs]:
        """Look, write, look at what is left, T times.

        ``choose(t, q(where), logit)`` is (presence, where), and ``choose(t, q(what))`` is what.
        """
        law = self.law
        size = len(x)
        state = jnp.zeros((size, law.units))
        before = jnp.zeros((size, WHERE + self.what))
        present = jnp.ones(size)
        left = x
        rows = []
        for t in range(law.steps):
            features = self.parts.features(params, left)
            state, logit, q_where = self.parts.attend(params, state, features, before)
            chosen, where = choose(t, q_where, logit)
            box = windows(where, law, x.shape[1])
            q_what = self.parts.what(params, read(left, box, law.window))
            what = choose(t, q_what)
            present = present * chosen
            before = present[:, None] * jnp.concatenate([where, what], axis=-1)
            drawn = write(self.parts.glyph(params, what), box, x.shape[1])
            left = left - present[:, None, None, None] * drawn
            rows.append((Latents(present, where, what), Beliefs(logit, q_where, q_what)))
        return jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *rows)

    def windows(self, where: Array, side: int) -> Array:
        """Boxes BxTx4 of where, BxTx3, on a canvas of ``side`` pixels."""
        return windows(where, self.law, side)

    def decided(self, present: Array) -> Array:
        """1 where a presence is decided at all, given those before it; BxT."""
        return _at_risk(present)

    def log_presence(self, present: Array, logit: Array) -> Array:
        """log q(present) with these logits, B."""
        return jnp.sum(self.decided(present) * log_bernoulli(present, logit), axis=-1)

    def draws(self, keys_B: Array, temperature: float | None = None) -> Choose:
        """Draws from q; with a temperature presences are relaxed ("concrete").

        Maddison et al. 2017 (arXiv:1611.00712), eq. 10.
        """
        chance, eps = noise(keys_B, self.law.steps, self.what)

        def choose(t: int, q: distributions.Normal, logit: Array | None = None) -> Any:
            if logit is None:
                return q.mu + jnp.exp(0.5 * q.logvar) * eps[:, t, WHERE:]
            where = q.mu + jnp.exp(0.5 * q.logvar) * eps[:, t, :WHERE]
            u = chance[:, t]
            if temperature is None:
                return (u < jax.nn.sigmoid(logit)).astype(jnp.float32), where
            logistic = jnp.log(u + 1e-7) - jnp.log1p(1e-7 - u)
            return jax.nn.sigmoid((logit - logistic) / temperature), where

        return choose

    def means(self, every: bool = False) -> Choose:
        """The means of q and the more probable presence; ``every``: all T steps are present."""

        def choose(t: int, q: distributions.Normal, logit: Array | None = None) -> Any:
            if logit is None:
                return q.mu
            present = jnp.ones_like(logit) if every else (logit > 0).astype(jnp.float32)
            return present, q.mu

        return choose

    def fixed(self, z: Latents) -> Choose:
        """These latents."""

        def choose(t: int, q: distributions.Normal, logit: Array | None = None) -> Any:
            if logit is None:
                return z.what[:, t]
            return z.present[:, t], z.where[:, t]

        return choose

    def layers(self, params: Params, z: Latents) -> Array:
        """Each step's object on a canvas of its own, as if present: BxTxSxSxC."""
        side = self.spec.shape[0]
        box = self.windows(z.where, side).reshape(-1, 4)
        glyph = self.glyphs(params, z.what).reshape(-1, *self.glyph_shape)
        return write(glyph, box, side).reshape(*z.present.shape, *self.spec.shape)

    @property
    def glyph_shape(self) -> tuple[int, int, int]:
        return (self.law.window, self.law.window, self.spec.shape[2])

    def glyphs(self, params: Params, what: Array) -> Array:
        """What each step draws into its window, BxTxGxGxC."""
        glyph = self.parts.glyph(params, what.reshape(-1, what.shape[-1]))
        return glyph.reshape(*what.shape[:2], *self.glyph_shape)

    def canvas(self, params: Params, z: Latents) -> Array:
        """The parameters of p(x|z): the sum of the objects that are present, or its logits."""
        side = self.spec.shape[0]
        glyph = z.present[..., None, None, None] * self.glyphs(params, z.what)
        total = write_sum(glyph, self.windows(z.where, side), side)
        if self.spec.likelihood.data != "binary":
            return total
        total = jnp.clip(total, DARKEST, 1 - DARKEST)
        return jnp.log(total) - jnp.log1p(-total)

    def log_px(self, params: Params, x: Array, z: Latents) -> Array:
        return self.spec.likelihood.log_prob(self.canvas(params, z), x)

    def log_q(self, z: Latents, q: Beliefs) -> Array:
        """log q(z|x) of beliefs that were formed along z."""
        log_q = self.log_presence(z.present, q.logit)
        for value, belief in ((z.where, q.where), (z.what, q.what)):
            log_q += jnp.sum(z.present * belief.log_prob(value), axis=-1)
        return log_q

    def rate(self, z: Latents, q: Beliefs) -> Array:
        """KL(q ‖ p) with each step's own KL in closed form, given the steps drawn before; B."""
        p = jax.nn.sigmoid(q.logit)
        rho = self.law.present
        yes = p * (jax.nn.log_sigmoid(q.logit) - math.log(rho))
        no = (1 - p) * (jax.nn.log_sigmoid(-q.logit) - math.log1p(-rho))
        rate = self.decided(z.present) * (yes + no)
        for belief in (q.where, q.what):
            rate += z.present * distributions.kl_std_normal(*belief)
        return jnp.sum(rate, axis=-1)

    def pass_through(
        self, params: Params, x: Array, keys_B: Array, temperature: float | None = None
    ) -> Draw:
        """One draw. ``extra["log_q_count"]``: log q(present), whose gradient is the score.

        With a temperature all terms are those of relaxed presences, and none is a bound.
        """
        z, q = self.infer(params, x, self.draws(keys_B, temperature))
        log_px = self.log_px(params, x, z)
        flat = join(z)
        log_w = jnp.zeros(len(x))
        if temperature is None:
            log_w = log_px + self.prior.log_prob(flat) - self.log_q(z, q)
        extra = {"log_q_count": self.log_presence(z.present, q.logit)}
        return Draw(log_px, self.rate(z, q)[:, None], log_w, flat, extra)

    @property
    def prior(self) -> Any:
        return Prior(self.law, self.what)

    def draw(self, params: Params, x: Array, keys: Array, y: Array | None = None) -> Draw:
        return over_samples(lambda keys_B: self.pass_through(params, x, keys_B), keys)

    def relaxed(self, params: Params, x: Array, keys: Array, temperature: float) -> Draw:
        """Draws with relaxed presences, for training."""
        return over_samples(lambda keys_B: self.pass_through(params, x, keys_B, temperature), keys)

    def log_joint(self, params: Params, x: Array, z: Array, y: Array | None = None) -> Array:
        def of_draw(z_BxE: Array) -> Array:
            log_px = self.log_px(params, x, divide(z_BxE, self.law.steps))
            return log_px + self.prior.log_prob(z_BxE)

        return of_draw(z) if z.ndim == 2 else jax.vmap(of_draw)(z)

    def log_posterior(self, params: Params, x: Array, z: Array, y: Array | None = None) -> Array:
        def of_draw(z_BxE: Array) -> Array:
            latents = divide(z_BxE, self.law.steps)
            _, q = self.infer(params, x, self.fixed(latents))
            return self.log_q(latents, q)

        return of_draw(z) if z.ndim == 2 else jax.vmap(of_draw)(z)

    def encode(self, params: Params, x: Array, y: Array | None = None) -> Code:
        z, _ = self.infer(params, x, self.means())
        return Code(
            join(z),
            lambda keys_B: self.pass_through(params, x, keys_B).z,
            lambda z_BxE: self.log_posterior(params, x, z_BxE),
        )

    def decode(self, params: Params, z: Array, y: Array | None = None) -> Array:
        return self.canvas(params, divide(z, self.law.steps))

    def classify(self, params: Params, x: Array, keys: Array | None = None) -> Array:
        """Logits of the number of objects, 0 … Y − 1: q(n|x) along the means."""
        _, q = self.infer(params, x, self.means(every=True))
        return fit_classes(self.log_count(q.logit), self.spec.classes)

    def log_count(self, logit: Array) -> Array:
        """log q(n) of n = 0 … T, BxT + 1, where presences have these logits."""
        return count_of_logits(logit)

    def detect(self, params: Params, x: Array) -> Detections:
        """Each step's object: the box of its own pixels above :data:`LIT`, and its window."""
        z, q = self.infer(params, x, self.means())
        lit = self.layers(params, z).max(-1) > LIT
        window = self.windows(z.where, x.shape[1])
        # A step counts only if all before it do.
        logit = jnp.where(self.decided(z.present) > 0, q.logit, jnp.minimum(q.logit, 0) - 30)
        one_class = jnp.zeros((*logit.shape, 1))
        return Detections(lit_boxes(lit), logit, one_class, window, z.what)

    def segment(self, params: Params, x: Array) -> Array:
        """BxHxW: the step (from 1) whose object is brightest; 0 where no window of one is.

        Of the steps that are more probably present than not.
        """
        z, _ = self.infer(params, x, self.means())
        drawn = z.present[..., None, None] * self.layers(params, z).max(-1)
        return jnp.where(drawn.max(1) > 0, jnp.argmax(drawn, 1) + 1, 0)


def fit_classes(log_q_BxN: Array, classes: int) -> Array:
    """log q of the counts 0 … ``classes`` − 1, the last one's with all beyond it."""
    missing = classes - log_q_BxN.shape[1]
    if missing > 0:
        return jnp.pad(log_q_BxN, ((0, 0), (0, missing)), constant_values=-30.0)
    last = jax.nn.logsumexp(log_q_BxN[:, classes - 1 :], axis=-1, keepdims=True)
    return jnp.concatenate([log_q_BxN[:, : classes - 1], last], axis=-1)


def lit_boxes(lit: Array) -> Array:
    """…x4: x, y, w, h of the smallest box of what is true in …xHxW; zeros where nothing is."""
    low_x, high_x = _ends(lit.any(-2))
    low_y, high_y = _ends(lit.any(-1))
    box = jnp.stack([low_x, low_y, high_x - low_x, high_y - low_y], axis=-1)
    return jnp.where(lit.any((-2, -1))[..., None], box, 0).astype(jnp.float32)


def _ends(lit: Array) -> tuple[Array, Array]:
    """(the first place, one past the last place) that is true along the last axis."""
    return jnp.argmax(lit, -1), lit.shape[-1] - jnp.argmax(lit[..., ::-1], -1)


def attend_infer_repeat(spec: Spec, parts: Parts, law: Law) -> Model:
    """The model as a value. ``nets`` is the :class:`Air` with its relaxed draws."""
    return of_passes(Air(spec, parts, law))


def of_passes(air: Air) -> Model:
    """A Model of an :class:`Air`'s passes."""
    return Model(
        spec=air.spec,
        init=air.parts.init,
        draw=air.draw,
        log_joint=air.log_joint,
        log_posterior=air.log_posterior,
        encode=air.encode,
        prior=lambda params: air.prior,
        decode=air.decode,
        sample=lambda params, keys_N, y=None: air.prior.sample(keys_N),
        classify=air.classify if air.spec.classes else None,
        detect=air.detect,
        nets=air,
    )
