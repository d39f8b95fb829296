"""What an objective returns, and the draws that most begin with."""

from typing import Any, NamedTuple

import jax

from vae_jax.distributions import split_keys
from vae_jax.models.core import Draw, Model, Params


class Terms(NamedTuple):
    """The terms of an objective for each example, shape B; None where one has no meaning.

    Where ``batch["labelled"]`` is there, ``labelled`` may hold the terms of its examples. Each part
    is averaged over its own examples, and the sum of the two mean losses is minimised.
    """

    loss: jax.Array
    elbo: jax.Array | None = None  # the beta = 1 bound on log p(x)
    log_px: jax.Array | None = None  # E log p(x|z): minus the distortion
    kl: jax.Array | None = None  # the rate
    extra: dict[str, Any] = {}  # further metrics, shape B; never changed  # noqa: RUF012
    labelled: Any = None  # Terms


def sample_k(
    model: Model,
    params: Params,
    x_BxHxWxC: jax.Array,
    keys_B: jax.Array,
    samples: int,
    y: jax.Array | None = None,
) -> Draw:
    """K independent draws of each example, each leaf with a leading axis K.

    The keys are used up: other noise needs keys that were split off before.
    """
    return model.draw(params, x_BxHxWxC, split_keys(keys_B, samples), y)


def bound(draws: Draw) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(elbo, log_px, kl), each of shape B: the mean over K draws, KL summed over levels."""
    log_px = draws.log_px.mean(0)
    kl = draws.kl.sum(-1).mean(0)
    return log_px - kl, log_px, kl


def with_gradient_of(value: jax.Array, surrogate: jax.Array) -> jax.Array:
    """``value``, with the gradient of ``surrogate``."""
    return surrogate + jax.lax.stop_gradient(value - surrogate)
