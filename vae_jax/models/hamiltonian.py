"""A VAE whose draws are moved by Hamiltonian dynamics towards the model's own posterior."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax import distributions
from vae_jax.config import UserError
from vae_jax.distributions import split_keys, standard_normal
from vae_jax.distributions.normal import LOG_2PI
from vae_jax.mesh import layout
from vae_jax.models.build import build_vae
from vae_jax.models.core import Array, Draw, Model, Params, over_samples
from vae_jax.models.nets import Given
from vae_jax.models.vae import log_likelihood


class Start(NamedTuple):
    """q(z0|x), where the dynamics begin.

    An objective whose equation needs the density of z itself, which nobody knows here, asks for a
    Normal and refuses this one.
    """

    base: Any  # a distribution

    @property
    def mu(self) -> Array:
        return self.base.mu

    def sample(self, keys: Array) -> Array:
        return self.base.sample(keys)

    def log_prob(self, z_BxD: Array) -> Array:
        return self.base.log_prob(z_BxD)

    def sample_and_log_prob(self, keys: Array) -> tuple[Array, Array]:
        return self.base.sample_and_log_prob(keys)


@dataclasses.dataclass(frozen=True)
class Dynamics:
    r"""K leapfrog steps of size ε on the potential −log p(x, z), with tempering.

    .. math:: \tilde\rho = \rho + \tfrac\epsilon2 \nabla_z \log p(x, z), \quad
              z' = z + \epsilon\tilde\rho, \quad
              \rho' = \frac{\sqrt{\beta_{k-1}}}{\sqrt{\beta_k}}
                      \big(\tilde\rho + \tfrac\epsilon2 \nabla_z \log p(x, z')\big)

    1/√β_k goes from 1/√β_0 to 1 as k²/K² does: the momentum begins large and cools. A leapfrog step
    keeps volume; so log|det| of all of it is ½ D log β_0.

    Caterini, Doucet & Sejdinovic 2018 (arXiv:1805.11328), section 3.2 and algorithm 1.
    """

    model: Model
    steps: int  # K
    step_size: float  # ε
    beta0: float

    def move(
        self, params: Params, x: Array, z: Array, momentum: Array, y: Array | None = None
    ) -> tuple[Array, Array]:
        """(z, ρ) after K steps; of shape BxD or KxBxD."""

        def log_joint(z: Array) -> Array:
            return jnp.sum(self.model.log_joint(params, x, z, y))

        score = jax.grad(log_joint)
        force = score(z)
        for factor in self.cooling():
            momentum = momentum + 0.5 * self.step_size * force
            z = z + self.step_size * momentum
            force = score(z)
            momentum = factor * (momentum + 0.5 * self.step_size * force)
        return z, momentum

    def cooling(self) -> list[float]:
        """√β_{k−1} / √β_k of each step; their product is √β_0."""
        first = self.beta0**-0.5
        inverse = []
        for k in range(self.steps + 1):
            inverse.append((1 - first) * (k / self.steps) ** 2 + first)
        return [inverse[k + 1] / inverse[k] for k in range(self.steps)]

    def draw(self, params: Params, x: Array, keys: Array, y: Array | None = None) -> Draw:
        """One pass; ``kl`` is log q(z0|x) N(γ) − log p(z) N(ρ) of the draw, its ρ being part of it.

        γ ~ N(0, I) and ρ_0 = γ / √β_0: the density of ρ_0 has the factor that the determinant has,
        and the two cancel.
        """
        model = self.model
        start_keys, momentum_keys = split_keys(keys, 2)
        q = model.encode(params, x, y)
        z, log_q = over_samples(q.sample_and_log_prob, start_keys)
        noise = standard_normal(momentum_keys, z.shape[-1])
        if keys.ndim == 2:
            z, log_q, noise = layout.constrain((z, log_q, noise), len(keys))
        z, momentum = self.move(params, x, z, self.beta0**-0.5 * noise, y)
        log_px = log_likelihood(model.spec, model.decode, params, x, z, y)
        log_p = model.prior(params).log_prob(z) + _log_momentum(momentum)
        kl = log_q + _log_momentum(noise) - log_p
        return Draw(log_px, kl[..., None], log_px - kl, z)


def _log_momentum(momentum: Array) -> Array:
    """log N(ρ; 0, I)."""
    return -0.5 * jnp.sum(LOG_2PI + momentum**2, axis=-1)


def _no_density(*arguments: Any) -> Array:
    raise UserError(
        "model.name=hamiltonian: log q(z|x) is not known; want an objective that needs draws alone,"
        " such as elbo, or iwae with objective.estimator=pathwise"
    )


def hamiltonian(model: Model, steps: int, step_size: float, beta0: float) -> Model:
    r"""The one-layer ``model`` with draws that K leapfrog steps have moved.

    .. math:: \log p(x) \ge E\Big[\log \frac{p(x, z_K)\, N(\rho_K; 0, I)}
              {q(z_0|x)\, N(\gamma; 0, I)}\Big], \quad z_0 \sim q(z|x), \; \gamma \sim N(0, I)

    The quotient's mean is p(x) whatever K, ε and β_0 are, so its logarithm is a lower bound in the
    mean, and K of them make an importance-weighted one. ``encode`` is q(z0|x); ``log_posterior``
    does not exist. The gradient goes through the leapfrog steps, K + 1 gradients of the decoder.

    Without tempering, β_0 = 1, exact dynamics keep the KL of (z, ρ) to the model's posterior, and
    the bound is that of q(z0|x). With it, a q(z0|x) that is wider than the posterior gains.

    Caterini et al. 2018 (arXiv:1805.11328), eq. 9 to 11.
    """
    dynamics = Dynamics(model, steps, step_size, beta0)

    def encode(params: Params, x: Array, y: Array | None = None) -> Start:
        return Start(model.encode(params, x, y))

    return model._replace(draw=dynamics.draw, encode=encode, log_posterior=_no_density)


def build_hamiltonian(
    given: Given, *, steps: int = 5, step_size: float = 0.1, beta0: float = 0.9
) -> Model:
    """The Hamiltonian VAE of a config (Caterini et al. 2018, arXiv:1805.11328).

    Raises:
      UserError: the decoder has levels, z is not real, or a number is out of its range.
    """
    c = given.config
    if given.hierarchical:
        name = c.decoder.name
        raise UserError(f"decoder.name={name}: model hamiltonian has one level; want mlp or conv")
    space = distributions.support(given.module("posterior", shape=c.latent))
    if space != "real":
        name = c.posterior.name
        raise UserError(
            f"posterior.name={name}: model hamiltonian moves real z; want gaussian, not {space} z"
        )
    if step_size <= 0:
        raise UserError(f"model.step_size={step_size}: want a number > 0, such as 0.05")
    if not 0 < beta0 <= 1:
        raise UserError(f"model.beta0={beta0}: want 0 < beta0 <= 1, 1 for no tempering")
    return hamiltonian(build_vae(given), steps, step_size, beta0)
