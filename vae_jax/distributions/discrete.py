"""Likelihoods that are probabilities: binary images and grey levels k at x = k / (levels - 1)."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.distributions.likelihood import Likelihood, check_count, one_output_each
from vae_jax.distributions.normal import real, soft_clip
from vae_jax.ops import channels_first, softplus, sum_pixels

LOG_SCALE = (-7.0, 7.0)  # of a logistic on [-1, 1]; the lower bound is PixelCNN++'s


def bernoulli(*, levels: int | None = None) -> Likelihood:
    """log p = Σ x l - log(1 + e^l) for logits l: exact at any l, for x in {0, 1} only."""

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        logits = real(out)
        return sum_pixels(real(x) * logits - softplus(logits))

    def mean(out: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(real(out))

    def sample(key: jax.Array, out: jax.Array) -> jax.Array:
        logits = real(out)
        return jax.random.bernoulli(key, jax.nn.sigmoid(logits)).astype(logits.dtype)

    return Likelihood("bernoulli", "binary", 2, one_output_each, log_prob, mean, sample)


def _bins(x: jax.Array, levels: int) -> jax.Array:
    """Images in [0, 1], bfloat16 included for up to 256 levels, back to levels k (as floats)."""
    return jnp.clip(jnp.round(real(x) * (levels - 1)), 0, levels - 1)


def log_discretized_logistic(
    k: jax.Array, mu: jax.Array, log_scale: jax.Array, levels: int
) -> jax.Array:
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
    first = k == 0
    last = k == levels - 1
    width = jnp.log(-jnp.expm1(-2 / (levels - 1) * inverse))
    below_upper = jnp.where(last, 0.0, softplus(-a))
    above_lower = jnp.where(first, 0.0, softplus(b))
    return jnp.where(first | last, 0.0, width) - below_upper - above_lower


def _mean_logistic(mu: jax.Array, log_scale: jax.Array) -> jax.Array:
    """E[clip(v, -1, 1)] of a logistic v: ∫ (1 - F) over [-1, 1], minus 1."""
    s = jnp.exp(log_scale)
    return s * (softplus((mu + 1) / s) - softplus((mu - 1) / s)) - 1


def _sample_logistic(key: jax.Array, mu: jax.Array, log_scale: jax.Array, levels: int) -> jax.Array:
    """A level, as its value in [-1, 1]."""
    v = mu + jnp.exp(log_scale) * jax.random.logistic(key, mu.shape, mu.dtype)
    return 2 * _bins((v + 1) / 2, levels) / (levels - 1) - 1


def discretized_logistic(*, levels: int) -> Likelihood:
    """Each value a logistic rounded to its level; O = 2C: means on [-1, 1], then log-scales.

    :func:`log_discretized_logistic` with log-scales bounded smoothly to [-7, 7]. ``mean`` is that
    of the logistic clipped to the grey scale, before rounding: within half a level.
    """
    check_count("levels", levels, 2)

    def outputs(channels: int) -> int:
        return 2 * channels

    def split(out: jax.Array) -> tuple[jax.Array, jax.Array]:
        mu, log_scale = jnp.split(real(out), 2, axis=-1)
        return mu, soft_clip(log_scale, *LOG_SCALE)

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        return sum_pixels(log_discretized_logistic(_bins(x, levels), *split(out), levels))

    def mean(out: jax.Array) -> jax.Array:
        return jnp.clip((_mean_logistic(*split(out)) + 1) / 2, 0, 1)

    def sample(key: jax.Array, out: jax.Array) -> jax.Array:
        return (_sample_logistic(key, *split(out), levels) + 1) / 2

    return Likelihood("discretized_logistic", "levels", levels, outputs, log_prob, mean, sample)


class _Channel(NamedTuple):
    """One colour channel of a mixture: M components in front, pixels last."""

    mu: jax.Array
    log_scale: jax.Array
    gammas: list[jax.Array]  # the coefficients of the channels before it

    def shifted_mu(self, values: list[jax.Array] | jax.Array) -> jax.Array:
        """μ_m + Σ_j γ_mj v_j for the values v of the channels before it."""
        return self.mu + sum(gamma * values[j] for j, gamma in enumerate(self.gammas))


def _mixture_outputs(components: int, channels: int) -> int:
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def _split_mixture(out_BxHxWxO: jax.Array, components: int) -> tuple[jax.Array, list[_Channel]]:
    """The logits of M components, M x … x H x W, and the channels."""
    out = channels_first(real(out_BxHxWxO))
    sizes = itertools.count(1)
    c = next(c for c in sizes if _mixture_outputs(components, c) >= len(out))
    logits, *rest = jnp.split(out, 1 + 2 * c + c * (c - 1) // 2)
    gamma = iter(rest[2 * c :])
    channels = []
    for i in range(c):
        log_scale = soft_clip(rest[c + i], *LOG_SCALE)
        gammas = [jnp.tanh(next(gamma)) for _ in range(i)]
        channels.append(_Channel(rest[i], log_scale, gammas))
    return logits, channels


def discretized_mix_logistic(*, levels: int, components: int = 10) -> Likelihood:
    r"""A mixture over whole pixels of discretised logistics, the channels depending in order.

    .. math:: p(x) = \sum_m \pi_m \prod_c P\big(x_c;\ \mu_{mc} + \textstyle\sum_{j<c}
              \tanh(\gamma_{mcj})\, v_j,\ s_{mc}\big), \qquad v_j = 2 x_j - 1

    PixelCNN++, Salimans et al. 2017 (arXiv:1701.05517), Sections 2.1-2.2. For M components,
    O = M (1 + 2C + C(C-1)/2): logits, means, log-scales, γ (row by row), M channels for each; 3M
    for grey, 10M for colour. The channels are summed one at a time: beside the decoder's output no
    array has more than M x pixels x C values. ``mean`` is that of the clipped logistics before
    rounding, each with the mean of the channels before it: exact where no mass is beyond the ends
    of the scale.
    """
    check_count("levels", levels, 2)
    check_count("components", components, 1)

    def outputs(channels: int) -> int:
        return _mixture_outputs(components, channels)

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        # As many axes as x has: M comes in front of all, and would meet x's samples.
        front = [1] * (x.ndim - out.ndim)
        logits, channels = _split_mixture(out.reshape(*front, *out.shape), components)
        k = jnp.moveaxis(_bins(x, levels), -1, 0)
        v = 2 * k / (levels - 1) - 1
        log_p = jax.nn.log_softmax(logits, axis=0)
        for c, channel in enumerate(channels):
            mu = channel.shifted_mu(v)
            log_p += log_discretized_logistic(k[c], mu, channel.log_scale, levels)
        return sum_pixels(jax.nn.logsumexp(log_p, axis=0)[..., None])

    def mean(out: jax.Array) -> jax.Array:
        logits, channels = _split_mixture(out, components)
        v = []
        for channel in channels:
            v.append(_mean_logistic(channel.shifted_mu(v), channel.log_scale))
        pi = jax.nn.softmax(logits, axis=0)
        means = [(jnp.sum(pi * v_M, axis=0) + 1) / 2 for v_M in v]
        return jnp.clip(jnp.stack(means, axis=-1), 0, 1)  # against rounding

    def sample(key: jax.Array, out: jax.Array) -> jax.Array:
        logits, channels = _split_mixture(out, components)
        component_key, *keys = jax.random.split(key, 1 + len(channels))
        logits_last = jnp.moveaxis(logits, 0, -1)  # a row's noise as if M were last
        m = jax.random.categorical(component_key, logits_last)[None]

        def pick(values_M: jax.Array) -> jax.Array:
            return jnp.take_along_axis(values_M, m, axis=0)[0]

        v = []
        for channel_key, channel in zip(keys, channels, strict=True):
            picked = jax.tree.map(pick, channel)
            mu = picked.shifted_mu(v)
            v.append(_sample_logistic(channel_key, mu, picked.log_scale, levels))
        return (jnp.stack(v, axis=-1) + 1) / 2

    return Likelihood("discretized_mix_logistic", "levels", levels, outputs, log_prob, mean, sample)


def categorical(*, levels: int) -> Likelihood:
    """A free probability for each level of each value: log-softmax of O = C x levels logits."""
    check_count("levels", levels, 2)

    def outputs(channels: int) -> int:
        return channels * levels

    def split(out: jax.Array) -> jax.Array:
        return real(out).reshape(*out.shape[:-1], -1, levels)

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        k = _bins(x, levels).astype(jnp.int32)[..., None]
        logits = split(out)
        shape = jnp.broadcast_shapes(k.shape[:-1], logits.shape[:-1])
        k = jnp.broadcast_to(k, (*shape, 1))
        logits = jnp.broadcast_to(logits, (*shape, levels))
        log_odds = jnp.take_along_axis(logits, k, axis=-1)[..., 0]
        return sum_pixels(log_odds - jax.nn.logsumexp(logits, axis=-1))

    def mean(out: jax.Array) -> jax.Array:
        return jax.nn.softmax(split(out)) @ jnp.linspace(0, 1, levels)

    def sample(key: jax.Array, out: jax.Array) -> jax.Array:
        return jax.random.categorical(key, split(out)) / (levels - 1)

    return Likelihood("categorical", "levels", levels, outputs, log_prob, mean, sample)
