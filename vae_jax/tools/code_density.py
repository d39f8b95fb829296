"""Densities of the codes of a trained run: a mixture of Gaussians, a flow, a second VAE.

Each ``fit_…`` takes codes z_NxD and gives a density with ``log_prob(z_BxD)``, nats, and
``sample(keys)``. The mixture is fitted by EM; the other two by Adam, to codes that are shifted and
scaled to mean 0 and variance 1.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vae_jax import config as config_lib
from vae_jax import models, nets
from vae_jax.config import UserError
from vae_jax.distributions import example_keys, split_keys
from vae_jax.distributions.full_mixture import MixtureOfFullNormals
from vae_jax.models.core import Model, Params
from vae_jax.objectives.terms import bound, sample_k
from vae_jax.train import program

NAMES = ("mixture", "realnvp", "two_stage")
STEPS = 5000  # of Adam
BATCH = 256
RATE = 3e-3
WARM = 0.02  # the share of all steps over which Adam's rate, and the weight of KL, rise from 0
WIDTHS = (128, 128)  # of the flow's nets and of the second VAE
SAMPLES = 50  # of the second VAE's importance-weighted bound
CHUNK = 500  # codes whose log_prob is computed at once
LEAST = 1e-6  # of a standard deviation: a dimension that never moves has a density too

# (params, z_BxD, keys_B, the share of all steps that are done) → B
Objective = Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]


class Standardised(NamedTuple):
    """The density of z = mean + sd · u, u of ``inner``."""

    inner: Any
    mean_D: jax.Array
    sd_D: jax.Array

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        """Nats, shape B."""
        u_BxD = (z_BxD - self.mean_D) / self.sd_D
        return self.inner.log_prob(u_BxD) - jnp.log(self.sd_D).sum()

    def sample(self, keys: jax.Array) -> jax.Array:
        return self.mean_D + self.sd_D * self.inner.sample(keys)


class SecondStage(NamedTuple):
    """A VAE whose images are codes, one row of D pixels."""

    model: Model
    params: Params

    def log_prob(self, z_BxD: jax.Array) -> jax.Array:
        """The importance-weighted bound on it with :data:`SAMPLES` draws, nats, shape B."""
        keys_B = example_keys(jax.random.key(0), jnp.arange(len(z_BxD)))
        draws = sample_k(self.model, self.params, as_images(z_BxD), keys_B, SAMPLES)
        return jax.nn.logsumexp(draws.log_w, axis=0) - math.log(SAMPLES)

    def sample(self, keys: jax.Array) -> jax.Array:
        """A code of N(0, I), and a draw of its p(z|u)."""
        prior_keys, pixel_keys = split_keys(keys, 2)
        out = self.model.decode(self.params, self.model.sample(self.params, prior_keys))
        drawn = jax.vmap(lambda key, one: self.model.likelihood.sample(key, one[None])[0])
        return drawn(pixel_keys, out)[:, 0, :, 0]


def as_images(z_BxD: jax.Array) -> jax.Array:
    """Bx1xDx1: what a model of images takes."""
    return z_BxD[:, None, :, None]


def em(z_NxD: np.ndarray, components: int, seed: int, covariance: str) -> Any:
    """The mixture of scikit-learn's EM, started by k-means; ``covariance`` is full or diag.

    1e-4 of the codes' mean variance is added to every variance, so that a dimension that never
    moves has a density.

    Raises:
      UserError: there are fewer codes than components.
    """
    from sklearn.mixture import GaussianMixture

    if len(z_NxD) < components:
        raise UserError(f"components={components}: want at most the {len(z_NxD)} codes")
    ridge = 1e-4 * z_NxD.var(0).mean() + 1e-12
    mixture = GaussianMixture(components, covariance_type=covariance, reg_covar=ridge)
    return mixture.set_params(random_state=seed).fit(z_NxD)


def fit_mixture(z_NxD: np.ndarray, components: int, seed: int) -> MixtureOfFullNormals:
    """:func:`em` with full covariances, as a density of ours (Ghosh et al. 2020, section 4)."""
    mixture = em(z_NxD, components, seed, "full")
    scale_tril = np.linalg.cholesky(mixture.covariances_)
    arrays = (np.log(mixture.weights_), mixture.means_, scale_tril)
    return MixtureOfFullNormals(*(jnp.asarray(array, jnp.float32) for array in arrays))


def fit_prior(z_NxD: np.ndarray, components: int, seed: int) -> dict[str, np.ndarray]:
    """:func:`em` with diagonal covariances, as parameters of the prior ``mixture``."""
    mixture = em(z_NxD, components, seed, "diag")
    log_weights = np.log(mixture.weights_)
    logvar = np.log(mixture.covariances_)
    fields = {"logits": log_weights, "mu": mixture.means_, "logvar": logvar}
    return jax.tree.map(np.float32, fields)


def fit_flow(z_NxD: np.ndarray, seed: int) -> Standardised:
    """RealNVP of six coupling steps (Dinh et al. 2017, arXiv:1605.08803), by maximum likelihood."""
    module = nets.RealNVP(shape=z_NxD.shape[1], steps=6, hidden=WIDTHS)

    def log_prob(params: Params, u_BxD: jax.Array, keys_B: jax.Array, done: jax.Array) -> jax.Array:
        return module.apply({"params": params}).log_prob(u_BxD)

    init_key, key = jax.random.split(jax.random.key(seed))
    u_NxD, mean_D, sd_D = standardise(z_NxD)
    params = ascend(log_prob, module.init(init_key)["params"], u_NxD, key)
    return Standardised(module.apply({"params": params}), mean_D, sd_D)


def fit_second_stage(z_NxD: np.ndarray, seed: int) -> Standardised:
    """A VAE of the codes, by its ELBO (Dai & Wipf 2019, arXiv:1903.05789, section 4).

    u has as many dimensions as the codes; the variance of each of p(z|u) is a net of u, where the
    paper's is one learnt number. The codes of a first VAE fill their space, so that a second can
    fit N(0, I) where the first does not. Without :data:`WARM`, of the rate and of KL, dimensions of
    u go unused, and the fit is hardly better than one Gaussian.
    """
    d = z_NxD.shape[1]
    c = config_lib.default()
    c.latent = d
    c.encoder = config_lib.call("encoder", "mlp", widths=WIDTHS)
    c.decoder = config_lib.call("decoder", "mlp", widths=WIDTHS)
    c.likelihood = config_lib.call("likelihood", "gaussian_learned")
    model = models.build(c, shape=(1, d, 1), levels=256, classes=0, binary=False)

    def elbo(params: Params, u_BxD: jax.Array, keys_B: jax.Array, done: jax.Array) -> jax.Array:
        _, log_px, kl = bound(sample_k(model, params, as_images(u_BxD), keys_B, 1))
        return log_px - jnp.minimum(done / WARM, 1) * kl

    init_key, key = jax.random.split(jax.random.key(seed))
    u_NxD, mean_D, sd_D = standardise(z_NxD)
    params = ascend(elbo, model.init(init_key), u_NxD, key)
    return Standardised(SecondStage(model, params), mean_D, sd_D)


def standardise(z_NxD: np.ndarray) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(codes of mean 0 and variance 1, mean_D, sd_D)."""
    mean_D = z_NxD.mean(0)
    sd_D = np.maximum(z_NxD.std(0), LEAST)
    arrays = ((z_NxD - mean_D) / sd_D, mean_D, sd_D)
    return tuple(jnp.asarray(array, jnp.float32) for array in arrays)


def ascend(objective: Objective, params: Params, u_NxD: jax.Array, key: jax.Array) -> Params:
    """The parameters after :data:`STEPS` steps of Adam that raise the mean of the objective."""
    tx = optax.adam(optax.warmup_cosine_decay_schedule(0.0, RATE, round(WARM * STEPS), STEPS))

    def loss(params: Params, u_BxD: jax.Array, key: jax.Array, done: jax.Array) -> jax.Array:
        return -objective(params, u_BxD, jax.random.split(key, BATCH), done).mean()

    def step(carry: tuple, at: tuple[jax.Array, jax.Array]) -> tuple[tuple, None]:
        params, state = carry
        key, done = at
        row_key, noise_key = jax.random.split(key)
        rows_B = jax.random.randint(row_key, (BATCH,), 0, len(u_NxD))
        grads = jax.grad(loss)(params, u_NxD[rows_B], noise_key, done)
        updates, state = tx.update(grads, state)
        return (optax.apply_updates(params, updates), state), None

    def run(params: Params) -> Params:
        carry = (params, tx.init(params))
        steps = (jax.random.split(key, STEPS), jnp.arange(STEPS) / STEPS)
        return jax.lax.scan(step, carry, steps)[0][0]

    return program.simple(run)(params)


def fit(name: str, z_NxD: np.ndarray, components: int, seed: int) -> Any:
    """The density of this name, one of :data:`NAMES`; ``components`` are of the mixture."""
    if name == "mixture":
        return fit_mixture(z_NxD, components, seed)
    if name == "realnvp":
        return fit_flow(z_NxD, seed)
    return fit_second_stage(z_NxD, seed)


def mean_log_prob(density: Any, z_NxD: np.ndarray) -> float:
    """The mean of ``log_prob`` over codes, nats."""
    log_prob = program.simple(density.log_prob)
    parts = [log_prob(jnp.asarray(z_NxD[i : i + CHUNK])) for i in range(0, len(z_NxD), CHUNK)]
    return float(np.concatenate(parts).mean())
