"""Priors p(z) beside the standard normal: a mixture of Gaussians and a label-conditional one."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.distributions.keys import split_keys
from vae_jax.distributions.normal import LOG_2PI, Normal, real


class MixtureOfNormals(NamedTuple):
    r"""p(z) = Σ_m π_m N(z; μ_m, diag σ_m²), π = softmax(logits).

    With logits of zero and (μ, log σ²) = encode(pseudo-inputs) it is the VampPrior's density
    (Tomczak & Welling 2018, arXiv:1705.07120, eq. 9).
    """

    logits: jax.Array  # M
    mu: jax.Array  # MxD
    logvar: jax.Array  # MxD

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        r"""logsumexp_m (log π_m + log N(z; μ_m, diag σ_m²)); z_KxBxD gives KxB.

        The squares Σ_d (z_d - μ_md)² / σ_md² are summed dimension by dimension, so the largest
        array is KxBxM, backward as well. Expanded into matrix products they would be 2 (forward)
        to 6 (gradient) times faster on a CPU, but lose about 1e-7 (μ/σ)² nats to cancellation in
        each dimension: everything where a σ is small.
        """
        mu = real(self.mu)
        logvar = real(self.logvar)
        z = real(z_BxD)

        @jax.checkpoint  # keep z and mu for the backward pass, not D arrays of KxBxM
        def squares(z_KxB: jax.Array, mu_M: jax.Array, logvar_M: jax.Array) -> jax.Array:
            return ((z_KxB[..., None] - mu_M) * jnp.exp(-0.5 * logvar_M)) ** 2

        def add(total_KxBxM: jax.Array, dimension: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
            return total_KxBxM + squares(*dimension), None

        zero = jnp.zeros((*z.shape[:-1], mu.shape[0]), jnp.promote_types(z.dtype, mu.dtype))
        total, _ = jax.lax.scan(add, zero, (jnp.moveaxis(z, -1, 0), mu.T, logvar.T))
        log_scale_M = jnp.sum(LOG_2PI + logvar, axis=-1)
        log_pi_M = jax.nn.log_softmax(real(self.logits))
        return jax.nn.logsumexp(log_pi_M - 0.5 * (log_scale_M + total), axis=-1)

    def sample(self, keys: jax.Array) -> jax.Array:
        """z of shape (*keys.shape, D): a component for each key, then a point of it."""
        component_keys, point_keys = split_keys(keys, 2)
        logits_M = real(self.logits)

        def component(key: jax.Array) -> jax.Array:
            return jax.random.categorical(key, logits_M)

        m = jax.vmap(component)(component_keys.reshape(-1)).reshape(keys.shape)
        return Normal(self.mu[m], self.logvar[m]).sample(point_keys)

    def sample_and_log_prob(self, keys: jax.Array) -> tuple[jax.Array, jax.Array]:
        z = self.sample(keys)
        return z, self.log_prob(z)


def label_normal(y_B: jax.Array, mu_YxD: jax.Array, logvar_YxD: jax.Array) -> Normal:
    """p(z|y) = N(z; μ_y, diag σ_y²), one row of the tables for each label (0 ≤ y < Y)."""
    return Normal(mu_YxD[y_B], logvar_YxD[y_B])
