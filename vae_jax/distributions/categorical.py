r"""Categorical codes: N variables of C codes each, as one-hot rows of one flat z, D = N C numbers.

:class:`Categorical` draws one-hot z and has the exact log-probability and KL; its gradients are
estimates. :class:`RelaxedCategorical` draws from the interior of the simplex and has a density
there; its gradients are exact for the relaxed model, which is another model.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.config import UserError
from vae_jax.distributions.normal import real, register_kl

MOST_CODES = 4096  # joint codes that are enumerated
SMALLEST = 1e-30  # of a relaxed code, so that its logarithm is finite in float32


def gumbel(keys: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard Gumbel noise of this shape for each key; shape (*keys.shape, *shape)."""
    flat = jax.vmap(lambda key: jax.random.gumbel(key, shape))(keys.reshape(-1))
    return flat.reshape(*keys.shape, *shape)


def flat(z: jax.Array) -> jax.Array:
    """z_…xNxC as z_…xD."""
    return z.reshape(*z.shape[:-2], z.shape[-2] * z.shape[-1])


def all_codes(sizes: tuple[int, ...]) -> np.ndarray:
    """Every combination of indices below ``sizes``, shape Mx len(sizes), M = Π sizes.

    Raises:
      UserError: there are more than :data:`MOST_CODES`.
    """
    count = math.prod(sizes)
    if count > MOST_CODES:
        raise UserError(
            f"objective.name=enumerated: {count} codes; want at most {MOST_CODES}, "
            "so fewer or smaller variables"
        )
    return np.indices(sizes).reshape(len(sizes), count).T


class Categorical(NamedTuple):
    r"""P(z) = Π_n π_{n, z_n}, π_n = softmax(logits_n), of one-hot rows z_n.

    A draw is exact, argmax_c (logits_c + g_c) of Gumbel noise g. Its gradient is that of
    softmax((logits + g) / temperature) with the same noise (straight-through Gumbel-softmax, Jang
    et al. 2017, arXiv:1611.01144, section 2.2), or without a temperature that of π itself (Bengio
    et al. 2013, arXiv:1308.3432, section 4). Both are biased where what reads z is not linear.
    """

    logits: jax.Array  # BxNxC; of a prior NxC
    temperature: jax.Array | float | None = None  # > 0; None: the gradient of π

    @property
    def support(self) -> str:
        return f"one-hot({self.size})"

    @property
    def size(self) -> int:
        """C, the number of codes of a variable."""
        return self.logits.shape[-1]

    @property
    def mu(self) -> jax.Array:
        """E z: the probabilities, BxD."""
        return flat(jax.nn.softmax(real(self.logits)))

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Σ_n log π_{n, z_n} in nats, shape B; z_KxBxD gives KxB."""
        rows = real(z).reshape(*z.shape[:-1], *self.logits.shape[-2:])
        return jnp.sum(rows * jax.nn.log_softmax(real(self.logits)), axis=(-2, -1))

    def sample(self, keys: jax.Array) -> jax.Array:
        """One-hot rows for each key, (*keys.shape, D)."""
        noisy = real(self.logits) + gumbel(keys, self.logits.shape[-2:])
        z = jax.nn.one_hot(jnp.argmax(noisy, axis=-1), self.size, dtype=noisy.dtype)
        soft = jax.nn.softmax(real(self.logits))
        if self.temperature is not None:
            soft = jax.nn.softmax(noisy / self.temperature)
        # The difference is 0 to the last bit, so z stays one-hot.
        return flat(z + (soft - jax.lax.stop_gradient(soft)))

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)

    def indices(self, z: jax.Array) -> jax.Array:
        """The code of each variable, int BxN."""
        return jnp.argmax(z.reshape(*z.shape[:-1], *self.logits.shape[-2:]), axis=-1)

    def enumerate(self) -> jax.Array:
        """Every z, MxD with M = C^N."""
        n = self.logits.shape[-2]
        return flat(jax.nn.one_hot(all_codes((self.size,) * n), self.size))


@register_kl(Categorical, Categorical)
def kl_categorical(q: Categorical, p: Categorical) -> jax.Array:
    r"""KL(q ‖ p) = Σ_n Σ_c π_nc (log π_nc − log p_nc); nats, shape B."""
    log_q = jax.nn.log_softmax(real(q.logits))
    log_p = jax.nn.log_softmax(real(p.logits))
    return jnp.sum(jnp.exp(log_q) * (log_q - log_p), axis=(-2, -1))


class RelaxedCategorical(NamedTuple):
    r"""The Concrete density of N independent points of the simplex of C codes.

    .. math:: p(z_n) = (C - 1)!\, \lambda^{C-1} \prod_c
              \frac{\alpha_c z_{nc}^{-\lambda - 1}}{\sum_i \alpha_i z_{ni}^{-\lambda}},
              \qquad \alpha = e^{\mathrm{logits}_n}

    with respect to the area of the first C − 1 coordinates; λ is the temperature. Maddison et al.
    2017 (arXiv:1611.00712), definition 1. It has no KL in closed form.
    """

    logits: jax.Array  # BxNxC; of a prior NxC
    temperature: jax.Array | float

    @property
    def support(self) -> str:
        return f"simplex({self.logits.shape[-1]})"

    @property
    def mu(self) -> jax.Array:
        """The point softmax(logits) that stands for the distribution, BxD."""
        return flat(jax.nn.softmax(real(self.logits)))

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Nats, shape B; z_KxBxD gives KxB."""
        codes = self.logits.shape[-1]
        log_z = jnp.log(real(z).reshape(*z.shape[:-1], *self.logits.shape[-2:]))
        log_alpha = jax.nn.log_softmax(real(self.logits))
        score = log_alpha - self.temperature * log_z
        constant = math.lgamma(codes) + (codes - 1) * jnp.log(self.temperature)
        each_N = jnp.sum(score - log_z, axis=-1) - codes * jax.nn.logsumexp(score, axis=-1)
        return jnp.sum(constant + each_N, axis=-1)

    def sample(self, keys: jax.Array) -> jax.Array:
        """softmax((logits + g) / λ) of Gumbel noise g for each key; coordinates >= 1e-30."""
        noisy = real(self.logits) + gumbel(keys, self.logits.shape[-2:])
        return flat(jnp.maximum(jax.nn.softmax(noisy / self.temperature), SMALLEST))

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)
