r"""Vector quantisation: each token of z is the nearest of K learned vectors of G numbers.

van den Oord et al. 2017 (arXiv:1711.00937). z is flat, BxD, with P = D / G tokens side by side.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.distributions.categorical import all_codes
from vae_jax.distributions.normal import real, register_kl


def as_tokens(z: jax.Array, codebook_KxG: jax.Array) -> jax.Array:
    """z_…xD as z_…xPxG."""
    return z.reshape(*z.shape[:-1], -1, codebook_KxG.shape[-1])


def squared_distances(token_TxG: jax.Array, codebook_KxG: jax.Array) -> jax.Array:
    """‖t − e‖² of each token and each code, …xK."""
    products = jnp.einsum("...g,kg->...k", token_TxG, codebook_KxG, precision="highest")
    squares = jnp.sum(token_TxG**2, axis=-1, keepdims=True) + jnp.sum(codebook_KxG**2, axis=-1)
    return squares - 2 * products


def nearest(z: jax.Array, codebook_KxG: jax.Array) -> jax.Array:
    """The code of each token of z_…xD, int …xP; it has no gradient."""
    codebook = jax.lax.stop_gradient(real(codebook_KxG))
    tokens = as_tokens(jax.lax.stop_gradient(real(z)), codebook)
    return jnp.argmin(squared_distances(tokens, codebook), axis=-1)


class VectorQuantised(NamedTuple):
    """q(z|x) = 1 at the codes nearest to the features h(x), so that log q = 0."""

    features: jax.Array  # BxD
    codebook: jax.Array  # KxG

    support = "codebook"

    @property
    def size(self) -> int:
        """K."""
        return self.codebook.shape[0]

    @property
    def codes(self) -> jax.Array:
        """The vectors nearest to the features, BxD; their gradient is the codebook's."""
        z = real(self.codebook)[nearest(self.features, self.codebook)]
        return z.reshape(self.features.shape)

    @property
    def mu(self) -> jax.Array:
        """The codes, with the gradient of the features (straight-through)."""
        features = real(self.features)
        return jax.lax.stop_gradient(self.codes) + (features - jax.lax.stop_gradient(features))

    def distances(self) -> tuple[jax.Array, jax.Array]:
        """(‖sg(h) − e‖², ‖h − sg(e)‖²), the codebook's and the commitment term of eq. 3; B each."""
        features = real(self.features)
        codes = self.codes
        codebook_term = jnp.sum((jax.lax.stop_gradient(features) - codes) ** 2, axis=-1)
        commitment = jnp.sum((features - jax.lax.stop_gradient(codes)) ** 2, axis=-1)
        return codebook_term, commitment

    def log_prob(self, z: jax.Array) -> jax.Array:
        """0 at the point, −∞ elsewhere; shape B, z_KxBxD gives KxB."""
        same = nearest(z, self.codebook) == nearest(self.features, self.codebook)
        return jnp.where(same.all(-1), 0.0, -jnp.inf)

    def sample(self, keys: jax.Array) -> jax.Array:
        """The point itself for each key."""
        return jnp.broadcast_to(self.mu, (*keys.shape, self.features.shape[-1]))

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        return self.sample(keys), jnp.zeros(keys.shape)

    def indices(self, z: jax.Array) -> jax.Array:
        """The code of each token, int BxP."""
        return nearest(z, self.codebook)


class CodebookPrior(NamedTuple):
    """P(z) = Π_p π_{p, z_p} over tokens p, π_p = softmax(logits_p)."""

    logits: jax.Array  # PxK
    codebook: jax.Array  # KxG

    support = "codebook"

    @property
    def mu(self) -> jax.Array:
        """The most probable point, D."""
        return self.codebook[jnp.argmax(self.logits, axis=-1)].reshape(-1)

    def log_prob(self, z: jax.Array) -> jax.Array:
        """Nats, shape B; z_KxBxD gives KxB. Constant in z and in the codebook."""
        log_pi_PxK = jax.nn.log_softmax(real(self.logits))
        index = nearest(z, self.codebook)
        return jnp.sum(log_pi_PxK[jnp.arange(index.shape[-1]), index], axis=-1)

    def sample(self, keys: jax.Array) -> jax.Array:
        """A point for each key, (*keys.shape, D)."""
        logits = real(self.logits)
        draw = jax.vmap(lambda key: jax.random.categorical(key, logits))
        index = draw(keys.reshape(-1))
        return self.codebook[index].reshape(*keys.shape, -1)

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)

    def enumerate(self) -> jax.Array:
        """Every z, MxD."""
        tokens, size = self.logits.shape
        index = all_codes((size,) * tokens)
        return self.codebook[index].reshape(len(index), -1)


@register_kl(VectorQuantised, CodebookPrior)
def kl_codebook(q: VectorQuantised, p: CodebookPrior) -> jax.Array:
    """KL(q ‖ p) = −log p(z): what the codes of x cost under the prior; nats, shape B."""
    return -p.log_prob(q.features)
