"""Likelihoods p(x|z) of images: what a decoder's output channels mean, in nats.

``out_BxHxWxO`` comes from the decoder, ``x_BxHxWxC`` is the image in [0, 1]; ``log_prob`` sums over
H, W and C in float32 (a K axis in front broadcasts). The three kinds of data:

- ``binary``: x is exactly 0 or 1, and p(x|z) is a probability;
- ``levels``: x is one of ``levels`` grey levels k / (levels - 1), and p(x|z) is a probability;
- ``unit``: x is taken as a real number in [0, 1], and p(x|z) is a density. Bits per dimension are
  then not defined, and values of two different kinds must not be compared.

Dequantisation: none, anywhere; the images that a model meets are k / (levels - 1) to the last bit. ``binary`` and
``levels`` want none: their log_prob is that of the value itself, and bits per dimension follow from it as it is, where
a density of x + u, u uniform over a value's bin, gives a lower bound on log P(k) only (Theis et al. 2016,
arXiv:1511.01844, section 3.1). A ``unit`` density is taken at the values as they are. On a finite set of values it can
rise without limit, as a Gaussian of learnt variance does down to its floor: its nats are no code length of the image,
and evaluation gives no bits per dimension.

A likelihood is made by ``LIKELIHOODS[name](levels=…, …)`` with the data's number of grey levels, of
which those for binary data and the densities make no use.
"""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.distributions.normal import LOG_2PI, real, soft_clip

LOGVAR = (-12.0, 6.0)  # σ of a Gaussian pixel: 0.0025 (two thirds of one of 256 levels) to 20
LOG_SCALE = (-7.0, 7.0)  # of a logistic on [-1, 1]; the lower bound is PixelCNN++'s


@dataclasses.dataclass(frozen=True)
class Likelihood:
    """p(x|z) as functions of the decoder's output.

    data: 'binary', 'levels' or 'unit' (above). levels: how many, None for a density.
    outputs(C) -> O; log_prob(out, x) -> B; mean(out) -> BxHxWxC; sample(key, out) -> BxHxWxC.
    """

    name: str
    data: str
    levels: int | None
    outputs: Callable
    log_prob: Callable
    mean: Callable
    sample: Callable
    normalised: bool = True  # False: log_prob is a training objective, and its bound none on log p(x)

    @property
    def discrete(self):
        """Whether log_prob is a log-probability, so that bits per dimension are defined."""
        return self.levels is not None


def bits_per_dim(nats_B, shape):
    """nats / (H W C ln 2) for a negative log-likelihood of discrete data; shape = (H, W, C).

    Of a probability P(k), with no dequantisation and nothing to correct for it; of a density it says nothing.
    """
    return nats_B / (math.prod(shape) * math.log(2))


def check(likelihood, *, levels_of_data, binarized):
    """Raise UserError unless the data is of the kind that this is a likelihood of.

    levels_of_data: grey levels in the data set (256; 17 for digits; 2 for black and white).
    binarized: whether images are made binary before the model sees them.
    """
    levels = 2 if binarized else levels_of_data
    name = f"likelihood.name={likelihood.name}"
    if likelihood.data == "binary" and levels != 2:
        raise UserError(
            f"{name}: is one of binary data, the images have {levels} levels; want data.binarize "
            f"or one of {', '.join(k for k in LIKELIHOODS if k != likelihood.name)}"
        )
    if likelihood.data == "unit" and levels == 2:
        raise UserError(f"{name}: is a density of grey or colour data, the images are binary; want bernoulli")
    if likelihood.data == "levels" and likelihood.levels != levels:
        raise UserError(
            f"{name}: was made for {likelihood.levels} levels, the images have {levels}; want levels={levels}"
        )


def _natural(field, value, least):
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"likelihood.{field}={value}: want a whole number >= {least}")


def _sum(values_BxHxWxC):
    """The sum over H, W and C.

    XLA on CPU fuses a sum into the loop that makes its terms and then runs both one number at a time; a
    product with ones is not fused. results/performance.md has the figures.
    """
    flat = values_BxHxWxC.reshape(*values_BxHxWxC.shape[:-3], -1)
    with_ones = lambda v: jnp.matmul(v, jnp.ones(v.shape[-1], v.dtype), precision="highest")  # noqa: E731
    return jax.lax.platform_dependent(flat, cpu=with_ones, default=lambda v: jnp.sum(v, axis=-1))


def _channels_first(out_BxHxWxO):
    """O x … x H x W, laid out so.

    XLA on CPU would read a transposed array number by number in every loop that makes use of it; a product with the
    identity is made once (results/performance.md). There a value that is not finite makes all of its pixel's NaN.
    """
    identity = jnp.eye(out_BxHxWxO.shape[-1], dtype=out_BxHxWxO.dtype)
    made = lambda v: jnp.einsum("po,...o->p...", identity, v, precision="highest")  # noqa: E731
    return jax.lax.platform_dependent(out_BxHxWxO, cpu=made, default=lambda v: jnp.moveaxis(v, -1, 0))


@jax.custom_jvp
def softplus(a):
    """log(1 + e^a), to float32 rounding at any a, without log1p, which is slow on CPU.

    With u = e^-|a| and w = 1 + u as rounded, log(1 + u) = u log(w) / (w - 1): the rounding errors of
    numerator and denominator cancel (Kahan's trick; Goldberg 1991, theorem 4).
    """
    u = jnp.exp(-jnp.abs(a))
    w = 1 + u
    exact = w == 1
    return jnp.maximum(a, 0) + jnp.where(exact, u, u * jnp.log(w) / jnp.where(exact, 1, w - 1))


softplus.defjvps(lambda da, _, a: jax.nn.sigmoid(a) * da)


# Binary data


def bernoulli(*, levels=None):
    """log p = Σ x l - log(1 + e^l) for logits l: exact at any l, for x in {0, 1} only."""

    def log_prob(out, x):
        logits = real(out)
        return _sum(real(x) * logits - softplus(logits))

    def sample(key, out):
        logits = real(out)
        return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)

    return Likelihood("bernoulli", "binary", 2, lambda c: c, log_prob, lambda o: jax.nn.sigmoid(real(o)), sample)


# Densities on [0, 1] or on all real numbers


def continuous_bernoulli(*, levels=None):
    r"""The density on [0, 1] that is proportional to λ^x (1 - λ)^(1 - x), λ = sigmoid(l):

    .. math:: p(x) = \frac{l\, e^{l x}}{e^l - 1}, \qquad
              \log p = (x - \tfrac12)\, l - \log\frac{\sinh(l/2)}{l/2}

    Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845), eqs. 7-8, with C(λ) = l / tanh(l/2).
    Near l = 0 (λ = 1/2) the last term is its Taylor series.
    """

    def split(out):  # the logits, |l| made safe to divide by, and where the series is used
        logits = real(out)
        near = jnp.abs(logits) < 0.5
        return logits, jnp.where(near, 1.0, jnp.abs(logits)), near

    def log_prob(out, x):
        logits, size, near = split(out)
        h2 = jnp.where(near, logits / 2, 0.0) ** 2
        series = (real(x) - 0.5) * logits - h2 / 6 * (1 - h2 / 30 * (1 - 4 * h2 / 63))
        exact = real(x) * logits - jnp.maximum(logits, 0) + jnp.log(size / -jnp.expm1(-size))
        return _sum(jnp.where(near, series, exact))

    def mean(out):
        logits, size, near = split(out)
        h = size / 2
        far = 0.5 * jnp.sign(logits) * (1 / jnp.tanh(h) - 1 / h)
        series = logits / 12 * (1 - logits**2 / 60 * (1 - logits**2 / 42))
        return 0.5 + jnp.where(near, series, far)

    def sample(key, out):
        logits = real(out)
        size = jnp.maximum(jnp.abs(logits), 1e-20)  # y = u in the limit, and here
        u = jax.random.uniform(key, logits.shape, logits.dtype)
        y = -jnp.log1p(u * jnp.expm1(-size)) / size
        return jnp.where(logits < 0, y, 1 - y)

    return Likelihood("continuous_bernoulli", "unit", None, lambda c: c, log_prob, mean, sample)


def _log_normal(x, mu, logvar):
    return _sum(-0.5 * (LOG_2PI + logvar + ((real(x) - mu) * jnp.exp(-0.5 * logvar)) ** 2))


def _noisy(key, mu, logvar):
    return mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape, mu.dtype)


def gaussian(*, levels=None, logvar=-4.0):
    """N(x; out, exp(logvar)) with one variance fixed beforehand: squared error over 2 σ², plus
    the constant. A density of grey or colour data; it has mass outside [0, 1]."""
    return Likelihood(
        "gaussian",
        "unit",
        None,
        lambda c: c,
        lambda out, x: _log_normal(x, real(out), jnp.asarray(logvar, real(out).dtype)),
        real,
        lambda key, out: _noisy(key, real(out), logvar),
    )


def gaussian_learned(*, levels=None, per="pixel"):
    """N(x; μ, σ²) with log σ² from the decoder, bounded smoothly to [-12, 6].

    per='pixel': O = 2C, the log-variances are the last C channels. per='image': O = C + 1, the
    mean of the last channel over the pixels is the image's log-variance. A pixel that never
    changes drives its variance to the bound, and the density up without a gain in the image.
    """
    if per not in ("pixel", "image"):
        raise UserError(f"likelihood.per={per}: want pixel or image")

    def split(out):
        out = real(out)
        c = out.shape[-1] // 2 if per == "pixel" else out.shape[-1] - 1
        mu, logvar = out[..., :c], out[..., c:]
        if per == "image":
            logvar = jnp.mean(logvar, axis=(-3, -2), keepdims=True)
        return mu, soft_clip(logvar, *LOGVAR)

    return Likelihood(
        "gaussian_learned",
        "unit",
        None,
        lambda c: 2 * c if per == "pixel" else c + 1,
        lambda out, x: _log_normal(x, *split(out)),
        lambda out: split(out)[0],
        lambda key, out: _noisy(key, *split(out)),
    )


def gaussian_optimal(*, levels=None):
    r"""σ-VAE: N(x; μ, σ*²) with the variance that is best for this image.

    .. math:: \sigma_*^2 = \frac{1}{HWC} \|x - \mu\|^2 + e^{-12}, \quad
              \log p = -\tfrac{HWC}{2} \big(\log 2\pi\sigma_*^2 + \|x - \mu\|^2 / HWC\sigma_*^2\big)

    Rybkin, Daniilidis & Levine 2021 (arXiv:2006.13202), Section 3. σ*² is computed over the H W C
    values of each image and each sample of z, not over the batch, so that examples stay apart.
    The floor is their bound log σ > -6. σ*² has seen x, so this is a training objective and the
    *maximum* over σ of a density, not itself a density of x: it does not integrate to 1, and its
    bound is not one of log p(x). ``sample`` is the mean, since σ*² needs x.
    """

    def log_prob(out, x):
        mu = real(out)
        error = jnp.mean((real(x) - mu) ** 2, axis=(-3, -2, -1), keepdims=True)
        return _log_normal(x, mu, jnp.log(error + math.exp(LOGVAR[0])))

    return Likelihood(
        "gaussian_optimal", "unit", None, lambda c: c, log_prob, real, lambda key, out: real(out), normalised=False
    )


# Grey levels k = 0 … levels - 1, at x = k / (levels - 1)


def _bins(x, levels):
    """Images in [0, 1], bfloat16 included for up to 256 levels, back to levels k (as floats)."""
    return jnp.clip(jnp.round(real(x) * (levels - 1)), 0, levels - 1)


def log_discretized_logistic(k, mu, log_scale, levels):
    r"""log P(k) of a logistic on [-1, 1] rounded to the nearest of ``levels`` levels; elementwise.

    .. math:: P(k) = \sigma(a_k) - \sigma(b_k) = \sigma(a_k)\,\sigma(-b_k)\,(1 - e^{b_k - a_k})

    with a, b = (upper, lower edge of the bin - μ) / s; the first bin reaches to -∞ and the last to
    +∞ (Salimans et al. 2017, arXiv:1701.05517, Section 2.1). The product form loses nothing in
    the tails and needs no case distinction: a - b is the bin's width / s, whatever x and μ are.
    """
    inverse = jnp.exp(-log_scale)
    # Whole-number numerators: one bin's upper edge is the next one's lower edge to the last bit.
    a = ((2 * k + 2 - levels) / (levels - 1) - mu) * inverse
    b = ((2 * k - levels) / (levels - 1) - mu) * inverse
    first, last = k == 0, k == levels - 1
    width = jnp.log(-jnp.expm1(-2 / (levels - 1) * inverse))
    below_upper = jnp.where(last, 0.0, softplus(-a))
    above_lower = jnp.where(first, 0.0, softplus(b))
    return jnp.where(first | last, 0.0, width) - below_upper - above_lower


def _mean_logistic(mu, log_scale):
    """E[clip(v, -1, 1)] of a logistic v: ∫ (1 - F) over [-1, 1], minus 1."""
    s = jnp.exp(log_scale)
    return s * (softplus((mu + 1) / s) - softplus((mu - 1) / s)) - 1


def _sample_logistic(key, mu, log_scale, levels):
    """A level, as its value in [-1, 1]."""
    v = mu + jnp.exp(log_scale) * jax.random.logistic(key, mu.shape, mu.dtype)
    return 2 * _bins((v + 1) / 2, levels) / (levels - 1) - 1


def discretized_logistic(*, levels):
    """Each value a logistic rounded to its level; O = 2C: means on [-1, 1], then log-scales.

    :func:`log_discretized_logistic` with log-scales bounded smoothly to [-7, 7]. ``mean`` is that
    of the logistic clipped to the grey scale, before rounding: within half a level.
    """
    _natural("levels", levels, 2)

    def split(out):
        mu, log_scale = jnp.split(real(out), 2, axis=-1)
        return mu, soft_clip(log_scale, *LOG_SCALE)

    return Likelihood(
        "discretized_logistic",
        "levels",
        levels,
        lambda c: 2 * c,
        lambda out, x: _sum(log_discretized_logistic(_bins(x, levels), *split(out), levels)),
        lambda out: jnp.clip((_mean_logistic(*split(out)) + 1) / 2, 0, 1),
        lambda key, out: (_sample_logistic(key, *split(out), levels) + 1) / 2,
    )


def discretized_mix_logistic(*, levels, components=10):
    r"""A mixture over whole pixels of discretised logistics, the channels depending in order.

    .. math:: p(x) = \sum_m \pi_m \prod_c P\big(x_c;\ \mu_{mc} + \textstyle\sum_{j<c}
              \tanh(\gamma_{mcj})\, v_j,\ s_{mc}\big), \qquad v_j = 2 x_j - 1

    PixelCNN++, Salimans et al. 2017 (arXiv:1701.05517), Sections 2.1-2.2. For M components,
    O = M (1 + 2C + C(C-1)/2): logits, means, log-scales, γ (row by row), M channels for each; 3M
    for grey, 10M for colour. The channels are summed one at a time: beside the decoder's output no
    array has more than M x pixels x C values. ``mean`` is that of the clipped logistics before rounding, each with the
    mean of the channels before it: exact where no mass is beyond the ends of the scale.
    """
    _natural("levels", levels, 2)
    _natural("components", components, 1)

    def outputs(c):
        return components * (1 + 2 * c + c * (c - 1) // 2)

    def split(out):
        """logits_M, then per channel mu_M, log_scale_M and its γ_M; M in front, pixels last."""
        out = _channels_first(real(out))
        c = next(c for c in itertools.count(1) if outputs(c) >= len(out))
        logits, *rest = jnp.split(out, 1 + 2 * c + c * (c - 1) // 2)
        gamma = iter(rest[2 * c :])
        return logits, [
            (rest[i], soft_clip(rest[c + i], *LOG_SCALE), [jnp.tanh(next(gamma)) for _ in range(i)]) for i in range(c)
        ]

    def log_prob(out, x):
        # As many axes as x has: M comes in front of all, and would meet x's samples.
        logits, channels = split(out.reshape(*[1] * (x.ndim - out.ndim), *out.shape))
        k = jnp.moveaxis(_bins(x, levels), -1, 0)
        v = 2 * k / (levels - 1) - 1
        log_p = jax.nn.log_softmax(logits, axis=0)
        for c, (mu, log_scale, gammas) in enumerate(channels):
            mu += sum(g * v[j] for j, g in enumerate(gammas))
            log_p += log_discretized_logistic(k[c], mu, log_scale, levels)
        return _sum(jax.nn.logsumexp(log_p, axis=0)[..., None])

    def mean(out):
        logits, channels = split(out)
        v = []
        for mu, log_scale, gammas in channels:
            mu += sum(g * before for g, before in zip(gammas, v, strict=True))
            v.append(_mean_logistic(mu, log_scale))
        pi = jax.nn.softmax(logits, axis=0)
        mean = jnp.stack([(jnp.sum(pi * v_M, axis=0) + 1) / 2 for v_M in v], axis=-1)
        return jnp.clip(mean, 0, 1)  # against rounding

    def sample(key, out):
        logits, channels = split(out)
        which, *keys = jax.random.split(key, 1 + len(channels))
        m = jax.random.categorical(which, jnp.moveaxis(logits, 0, -1))[None]  # a row's noise as if M were last

        def pick(values_M):
            return jnp.take_along_axis(values_M, m, axis=0)[0]

        v = []
        for channel_key, (mu, log_scale, gammas) in zip(keys, channels, strict=True):
            mu = pick(mu) + sum(pick(g) * before for g, before in zip(gammas, v, strict=True))
            v.append(_sample_logistic(channel_key, mu, pick(log_scale), levels))
        return (jnp.stack(v, axis=-1) + 1) / 2

    return Likelihood("discretized_mix_logistic", "levels", levels, outputs, log_prob, mean, sample)


def categorical(*, levels):
    """A free probability for each level of each value: log-softmax of O = C x levels logits."""
    _natural("levels", levels, 2)

    def split(out):
        return real(out).reshape(*out.shape[:-1], -1, levels)

    def log_prob(out, x):
        k = _bins(x, levels).astype(jnp.int32)[..., None]
        logits = split(out)
        shape = jnp.broadcast_shapes(k.shape[:-1], logits.shape[:-1])
        k, logits = jnp.broadcast_to(k, (*shape, 1)), jnp.broadcast_to(logits, (*shape, levels))
        chosen = jnp.take_along_axis(logits, k, axis=-1)[..., 0]
        return _sum(chosen - jax.nn.logsumexp(logits, axis=-1))

    def mean(out):
        return jax.nn.softmax(split(out)) @ jnp.linspace(0, 1, levels)

    def sample(key, out):
        return jax.random.categorical(key, split(out)) / (levels - 1)

    return Likelihood("categorical", "levels", levels, lambda c: c * levels, log_prob, mean, sample)


LIKELIHOODS = {
    f.__name__: f
    for f in (
        bernoulli,
        continuous_bernoulli,
        gaussian,
        gaussian_learned,
        gaussian_optimal,
        discretized_logistic,
        discretized_mix_logistic,
        categorical,
    )
}
