"""Attacks that are hard to hide from: APGD with restarts, and Square, which needs no gradient.

A classifier whose gradients say little (it draws, or its loss is flat) looks robust to FGSM and PGD
alone. An image counts as misled where any of the attacks misleads: the worst case for each image,
as AutoAttack counts it (Croce & Hein 2020, arXiv:2003.01690).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.evaluate.robustness import LogP
from vae_jax.report.metrics import Metric, register
from vae_jax.train import program as compile_lib

IMAGES = 200  # test images, an even stride apart
STEPS = 20  # gradients of one start of APGD
RESTARTS = 2  # starts of APGD
QUERIES = 100  # of Square
MOMENTUM = 0.75
INCREASES = 0.75  # share of steps that must raise the loss, else the step is halved
SQUARES = 0.05  # share of the image that Square's first squares cover
HALVED = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries: the share halves
NAMES = {
    "apgd": "Accuracy under APGD, a gradient attack that adapts its step, with restarts.",
    "square": "Accuracy under Square, an attack by random squares that needs no gradient.",
    "worst": "Accuracy where an image counts only if neither APGD nor Square misleads.",
}
ENDS = {"": "", "_drawn": " The code is drawn.", "_bayes": " By Bayes' rule."}
for _name, _meaning in NAMES.items():
    for _end, _words in ENDS.items():
        _key = f"{_name}{_end}_accuracy"
        register(Metric(_key, _key.replace("_", " "), "%", "higher", _meaning + _words))

Attack = Callable[..., tuple[jax.Array, jax.Array]]
See = Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]  # x → ∇f, f_B, misled_B


class Climb(NamedTuple):
    """Where APGD is, B images at once."""

    x: jax.Array  # BxHxWxC
    before: jax.Array  # BxHxWxC, the place before
    gradient: jax.Array  # BxHxWxC, at x
    loss: jax.Array  # B, at x
    best: jax.Array  # BxHxWxC, the place of the highest loss
    best_gradient: jax.Array  # BxHxWxC, there
    best_loss: jax.Array  # B
    found: jax.Array  # BxHxWxC, the first place that misled, else the last one
    misled: jax.Array  # B, bool


class Pace(NamedTuple):
    """The step sizes of APGD, and what decides whether they are halved."""

    size: jax.Array  # B
    raised: jax.Array  # B, steps since the last checkpoint that raised the loss
    last_best: jax.Array  # B, the highest loss at the last checkpoint
    halved: jax.Array  # B, bool: there


def _wide(value_B: jax.Array) -> jax.Array:
    return value_B[:, None, None, None]


def project(x: jax.Array, clean: jax.Array, epsilon: float) -> jax.Array:
    """The nearest image that is within ε of ``clean`` in each value, and in [0, 1]."""
    return jnp.clip(jnp.clip(x, clean - epsilon, clean + epsilon), 0, 1)


def checkpoints(steps: int) -> list[int]:
    r"""The steps at which APGD may halve its step size. Croce & Hein 2020, section 3.2.

    .. math:: p_0 = 0, \quad p_1 = 0.22, \quad p_{j+1} = p_j + \max(p_j - p_{j-1} - 0.03,\, 0.06)

    and :math:`w_j = \lceil p_j N \rceil`.
    """
    shares = [0.0, 0.22]
    while shares[-1] < 1:
        shares.append(shares[-1] + max(shares[-1] - shares[-2] - 0.03, 0.06))
    return [math.ceil(p * steps - 1e-9) for p in shares[1:] if p < 1]


def _arrived(c: Climb, x: jax.Array, seen: tuple[jax.Array, jax.Array, jax.Array]) -> Climb:
    """The climb at its next place, of which ``seen`` is (∇f, f_B, misled_B)."""
    gradient, loss, misled = seen
    better = loss > c.best_loss
    return Climb(
        x=x,
        before=c.x,
        gradient=gradient,
        loss=loss,
        best=jnp.where(_wide(better), x, c.best),
        best_gradient=jnp.where(_wide(better), gradient, c.best_gradient),
        best_loss=jnp.where(better, loss, c.best_loss),
        found=jnp.where(_wide(c.misled), c.found, x),
        misled=c.misled | misled,
    )


def _checked(c: Climb, pace: Pace, steps: int) -> tuple[Climb, Pace]:
    """At a checkpoint, ``steps`` after the last: halved steps begin anew from the best place."""
    stuck = ~pace.halved & (c.best_loss <= pace.last_best)
    halve = stuck | (pace.raised < INCREASES * steps)
    c = c._replace(
        x=jnp.where(_wide(halve), c.best, c.x),
        gradient=jnp.where(_wide(halve), c.best_gradient, c.gradient),
        loss=jnp.where(halve, c.best_loss, c.loss),
    )
    size = jnp.where(halve, pace.size / 2, pace.size)
    return c, Pace(size, jnp.zeros_like(size), c.best_loss, halve)


def _climb(see: See, clean: jax.Array, start: jax.Array, epsilon: float, steps: int) -> tuple:
    """(images, misled_B) of one start of APGD."""
    halts = checkpoints(steps)
    gradient, loss, misled = see(start)
    c = Climb(start, start, gradient, loss, start, gradient, loss, start, misled)
    zero = jnp.zeros(len(clean))
    pace = Pace(zero + 2 * epsilon, zero, loss, zero > 0)
    last = 0
    for t in range(1, steps + 1):
        z = project(c.x + _wide(pace.size) * jnp.sign(c.gradient), clean, epsilon)
        share = 1.0 if t == 1 else MOMENTUM
        moved = c.x + share * (z - c.x) + (1 - share) * (c.x - c.before)
        x = project(moved, clean, epsilon)
        old_loss = c.loss
        c = _arrived(c, x, see(x))
        pace = pace._replace(raised=pace.raised + (c.loss > old_loss))
        if t in halts:
            c, pace = _checked(c, pace, t - last)
            last = t
    return c.found, c.misled


def apgd(log_p: LogP, steps: int = STEPS, restarts: int = RESTARTS) -> Attack:
    r"""run(params, x_BxHxWxC, label_B, key, epsilon) → (images, misled_B): APGD on −log p(y|x).

    .. math:: z = \Pi(x_t + \eta\, \mathrm{sign} \nabla f(x_t)), \qquad
              x_{t+1} = \Pi(x_t + \alpha (z - x_t) + (1 - \alpha)(x_t - x_{t-1}))

    Croce & Hein 2020 (arXiv:2003.01690), algorithm 1, with α = 0.75 and a first step of 2ε, halved
    for an image at :func:`checkpoints` where fewer than 3 of 4 steps raised the loss or nothing was
    gained; it then goes on from its best place. The first start is the image itself, so that the
    first place is FGSM's image and APGD misleads wherever FGSM does; other starts are random.
    ``key`` is also the noise of ``log_p``, the same at every step: what is attacked is a function.
    """

    @compile_lib.simple
    def look(
        params: dict, x: jax.Array, label: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """(∇f, f_B, misled_B)."""

        def loss(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
            log_p_BxY = log_p(params, x, key)
            loss_B = -jnp.take_along_axis(log_p_BxY, label[:, None], 1)[:, 0]
            return loss_B.sum(), (loss_B, jnp.argmax(log_p_BxY, 1) != label)

        gradient, (loss_B, misled_B) = jax.grad(loss, has_aux=True)(x)
        return gradient, loss_B, misled_B

    def run(
        params: dict, x_BxHxWxC: jax.Array, label_B: jax.Array, key: jax.Array, epsilon: float
    ) -> tuple[jax.Array, jax.Array]:
        clean = jnp.asarray(x_BxHxWxC, jnp.float32)
        label = jnp.asarray(label_B)

        def see(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            return look(params, x, label, key)

        found, misled = _climb(see, clean, clean, epsilon, steps)
        for restart in range(1, restarts):
            noise = jax.random.uniform(jax.random.fold_in(key, restart), clean.shape, minval=-1.0)
            start = project(clean + epsilon * noise, clean, epsilon)
            again, more = _climb(see, clean, start, epsilon, steps)
            found = jnp.where(_wide(misled), found, again)
            misled |= more
        return found, misled

    return run


def side_of_squares(query: int, queries: int, height: int, width: int) -> int:
    """The side in pixels of Square's square at a query, 0 … queries − 1."""
    scaled = int(query / queries * 10_000)
    share = SQUARES / 2 ** sum(scaled > limit for limit in HALVED)
    side = round(math.sqrt(share * height * width))
    return min(max(side, 1), min(height, width))


@compile_lib.simple
def _with_squares(
    x: jax.Array, clean: jax.Array, epsilon: float, keys_B: jax.Array, side: jax.Array
) -> jax.Array:
    """x with one random square of ``side`` pixels of each image at +ε or −ε."""
    height, width, channels = clean.shape[1:]

    def one(key: jax.Array) -> jax.Array:
        place, sign = jax.random.split(key)
        top, left = jax.random.randint(place, (2,), 0, jnp.array([height, width]) - side + 1)
        rows = jnp.arange(height) - top
        columns = jnp.arange(width) - left
        inside_H = (rows >= 0) & (rows < side)
        inside_W = (columns >= 0) & (columns < side)
        inside = inside_H[:, None, None] & inside_W[None, :, None]
        return jnp.where(inside, 2 * epsilon * jax.random.rademacher(sign, (channels,)), 0)

    return project(x + jax.vmap(one)(keys_B), clean, epsilon)


def square(log_p: LogP, queries: int = QUERIES) -> Attack:
    r"""run(params, x_BxHxWxC, label_B, key, epsilon) → (images, misled_B): the Square attack, L∞.

    Begins with vertical stripes of ±ε; each query moves a random square of each channel to +ε or
    −ε, and keeps it where that lowers the margin

    .. math:: \log p(y|x) - \max_{k \ne y} \log p(k|x)

    Andriushchenko et al. 2020 (arXiv:1912.00049), algorithms 1 and 2. ``key`` is also the noise of
    ``log_p``, the same at every query.
    """

    @compile_lib.simple
    def margin(params: dict, x: jax.Array, label: jax.Array, key: jax.Array) -> jax.Array:
        log_p_BxY = log_p(params, x, key)
        own = jax.nn.one_hot(label, log_p_BxY.shape[1], dtype=bool)
        rival = jnp.where(own, -jnp.inf, log_p_BxY).max(1)
        return jnp.where(own, log_p_BxY, 0).sum(1) - rival

    def run(
        params: dict, x_BxHxWxC: jax.Array, label_B: jax.Array, key: jax.Array, epsilon: float
    ) -> tuple[jax.Array, jax.Array]:
        clean = jnp.asarray(x_BxHxWxC, jnp.float32)
        label = jnp.asarray(label_B)
        stripes_key, key_of_squares = jax.random.split(jax.random.fold_in(key, 1))
        shape = (len(clean), 1, *clean.shape[2:])
        stripes = epsilon * jax.random.rademacher(stripes_key, shape)
        best = clean
        least = margin(params, clean, label, key)
        for query in range(queries + 1):
            if query == 0:
                x = project(clean + stripes, clean, epsilon)
            else:
                keys_B = jax.random.split(jax.random.fold_in(key_of_squares, query), len(clean))
                side = side_of_squares(query - 1, queries, *clean.shape[1:3])
                x = _with_squares(best, clean, epsilon, keys_B, side)
            value = margin(params, x, label, key)
            better = value < least
            best = jnp.where(_wide(better), x, best)
            least = jnp.where(better, value, least)
        return best, least < 0

    return run


Curves = dict[str, tuple[Sequence[float], np.ndarray]]  # strengths, accuracy at each


def curves(
    params: dict,
    batches: Iterable[tuple[jax.Array, np.ndarray]],
    log_p: LogP,
    key: jax.Array,
    epsilons: Sequence[float],
) -> Curves:
    """{'apgd', 'square', 'worst': (ε, accuracy at each)} of (images, labels) in ``batches``.

    ``key``: the noise of ``log_p``.
    """
    runs = {"apgd": apgd(log_p), "square": square(log_p)}
    hits = {name: np.zeros(len(epsilons)) for name in NAMES}
    count = 0
    for x, label in batches:
        count += len(label)
        for e, epsilon in enumerate(epsilons):
            misled_B = np.zeros(len(label), bool)
            for name, run in runs.items():
                misled = np.asarray(run(params, x, label, key, epsilon)[1])
                hits[name][e] += (~misled).sum()
                misled_B |= misled
            hits["worst"][e] += (~misled_B).sum()
    return {name: (tuple(epsilons), hit / count) for name, hit in hits.items()}
