"""A mixture of Gaussians with full covariances, such as one that is fitted to codes."""

from typing import NamedTuple

import jax

from vae_jax.distributions.keys import split_keys
from vae_jax.distributions.normal import FullNormal, real


class MixtureOfFullNormals(NamedTuple):
    r"""p(z) = Σ_m π_m N(z; μ_m, L_m L_mᵀ), π = softmax(logits)."""

    logits: jax.Array  # M
    mu: jax.Array  # MxD
    scale_tril: jax.Array  # MxDxD

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        """Nats, shape B."""
        each_BxM = FullNormal(self.mu, self.scale_tril).log_prob(real(z_BxD)[..., None, :])
        return jax.nn.logsumexp(each_BxM + jax.nn.log_softmax(real(self.logits)), axis=-1)

    def sample(self, keys: jax.Array) -> jax.Array:
        """z of shape (*keys.shape, D): a component for each key, then a point of it."""
        component_keys, point_keys = split_keys(keys, 2)

        def component(key: jax.Array) -> jax.Array:
            return jax.random.categorical(key, real(self.logits))

        m = jax.vmap(component)(component_keys.reshape(-1)).reshape(keys.shape)
        return FullNormal(self.mu[m], self.scale_tril[m]).sample(point_keys)

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)
