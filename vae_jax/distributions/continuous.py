"""Likelihoods that are densities: images as real numbers in [0, 1], in nats without bits."""

import math

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.distributions.likelihood import Likelihood, one_output_each
from vae_jax.distributions.normal import LOG_2PI, real, soft_clip
from vae_jax.ops import sum_pixels

LOGVAR = (-12.0, 6.0)  # σ of a Gaussian pixel: 0.0025 (two thirds of one of 256 levels) to 20


def continuous_bernoulli(*, levels: int | None = None) -> Likelihood:
    r"""The density on [0, 1] that is proportional to λ^x (1 - λ)^(1 - x), λ = sigmoid(l):

    .. math:: p(x) = \frac{l\, e^{l x}}{e^l - 1}, \qquad
              \log p = (x - \tfrac12)\, l - \log\frac{\sinh(l/2)}{l/2}

    Loaiza-Ganem & Cunningham 2019 (arXiv:1907.06845), eqs. 7-8, with C(λ) = l / tanh(l/2).
    Near l = 0 (λ = 1/2) the last term is its Taylor series.
    """

    def split(out: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The logits, |l| made safe to divide by, and where the series is used."""
        logits = real(out)
        near = jnp.abs(logits) < 0.5
        return logits, jnp.where(near, 1.0, jnp.abs(logits)), near

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        logits, size, near = split(out)
        h2 = jnp.where(near, logits / 2, 0.0) ** 2
        series = (real(x) - 0.5) * logits - h2 / 6 * (1 - h2 / 30 * (1 - 4 * h2 / 63))
        normaliser = jnp.log(size / -jnp.expm1(-size))
        exact = real(x) * logits - jnp.maximum(logits, 0) + normaliser
        return sum_pixels(jnp.where(near, series, exact))

    def mean(out: jax.Array) -> jax.Array:
        logits, size, near = split(out)
        h = size / 2
        far = 0.5 * jnp.sign(logits) * (1 / jnp.tanh(h) - 1 / h)
        series = logits / 12 * (1 - logits**2 / 60 * (1 - logits**2 / 42))
        return 0.5 + jnp.where(near, series, far)

    def sample(key: jax.Array, out: jax.Array) -> jax.Array:
        logits = real(out)
        size = jnp.maximum(jnp.abs(logits), 1e-20)  # y = u in the limit, and here
        u = jax.random.uniform(key, logits.shape, logits.dtype)
        y = -jnp.log1p(u * jnp.expm1(-size)) / size
        return jnp.where(logits < 0, y, 1 - y)

    return Likelihood("continuous_bernoulli", "unit", None, one_output_each, log_prob, mean, sample)


def _log_normal(x: jax.Array, mu: jax.Array, logvar: jax.Array) -> jax.Array:
    scaled = (real(x) - mu) * jnp.exp(-0.5 * logvar)
    return sum_pixels(-0.5 * (LOG_2PI + logvar + scaled**2))


def _sample_normal(key: jax.Array, mu: jax.Array, logvar: jax.Array | float) -> jax.Array:
    return mu + jnp.exp(0.5 * logvar) * jax.random.normal(key, mu.shape, mu.dtype)


def gaussian(*, levels: int | None = None, logvar: float = -4.0) -> Likelihood:
    """N(x; out, exp(logvar)) with one variance fixed beforehand: squared error over 2 σ², plus
    the constant. A density of grey or colour data; it has mass outside [0, 1]."""

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        mu = real(out)
        return _log_normal(x, mu, jnp.asarray(logvar, mu.dtype))

    def sample(key: jax.Array, out: jax.Array) -> jax.Array:
        return _sample_normal(key, real(out), logvar)

    return Likelihood("gaussian", "unit", None, one_output_each, log_prob, real, sample)


def gaussian_learned(*, levels: int | None = None, per: str = "pixel") -> Likelihood:
    """N(x; μ, σ²) with log σ² from the decoder, bounded smoothly to [-12, 6].

    per='pixel': O = 2C, the log-variances are the last C channels. per='image': O = C + 1, the
    mean of the last channel over the pixels is the image's log-variance. A pixel that never
    changes drives its variance to the bound, and the density up without a gain in the image.
    """
    if per not in ("pixel", "image"):
        raise UserError(f"likelihood.per={per}: want pixel or image")

    def outputs(channels: int) -> int:
        return 2 * channels if per == "pixel" else channels + 1

    def split(out: jax.Array) -> tuple[jax.Array, jax.Array]:
        out = real(out)
        channels = out.shape[-1] // 2 if per == "pixel" else out.shape[-1] - 1
        logvar = out[..., channels:]
        if per == "image":
            logvar = jnp.mean(logvar, axis=(-3, -2), keepdims=True)
        return out[..., :channels], soft_clip(logvar, *LOGVAR)

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        return _log_normal(x, *split(out))

    def mean(out: jax.Array) -> jax.Array:
        return split(out)[0]

    def sample(key: jax.Array, out: jax.Array) -> jax.Array:
        return _sample_normal(key, *split(out))

    return Likelihood("gaussian_learned", "unit", None, outputs, log_prob, mean, sample)


def gaussian_optimal(*, levels: int | None = None) -> Likelihood:
    r"""σ-VAE: N(x; μ, σ*²) with the variance that is best for this image.

    .. math:: \sigma_*^2 = \frac{1}{HWC} \|x - \mu\|^2 + e^{-12}, \quad
              \log p = -\tfrac{HWC}{2} \big(\log 2\pi\sigma_*^2 + \|x - \mu\|^2 / HWC\sigma_*^2\big)

    Rybkin, Daniilidis & Levine 2021 (arXiv:2006.13202), Section 3. σ*² is computed over the H W C
    values of each image and each sample of z, not over the batch, so that examples stay apart.
    The floor is their bound log σ > -6. σ*² has seen x, so this is a training objective and the
    *maximum* over σ of a density, not itself a density of x: it does not integrate to 1, and its
    bound is not one of log p(x). ``sample`` is the mean, since σ*² needs x.
    """

    def log_prob(out: jax.Array, x: jax.Array) -> jax.Array:
        mu = real(out)
        error = jnp.mean((real(x) - mu) ** 2, axis=(-3, -2, -1), keepdims=True)
        return _log_normal(x, mu, jnp.log(error + math.exp(LOGVAR[0])))

    def sample(key: jax.Array, out: jax.Array) -> jax.Array:
        return real(out)

    return Likelihood("gaussian_optimal", "unit", None, one_output_each, log_prob, real, sample)
