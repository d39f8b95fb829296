"""The loss of the VQ-VAE."""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.distributions.codebook import VectorQuantised, as_tokens, squared_distances
from vae_jax.distributions.normal import real
from vae_jax.models.core import Model, Params
from vae_jax.objectives.terms import Terms, bound, sample_k


def vq(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 0.25,
    codebook: float = 1.0,
    revive: float = 0.1,
) -> Terms:
    r"""Reconstruction, code length, and the distances between features h and their codes e.

    .. math:: \mathrm{loss} = -\log p(x|e) - \log p(e) + c \lVert \mathrm{sg}(h) - e\rVert^2
              + \beta \lVert h - \mathrm{sg}(e)\rVert^2 + r \sum_{k\ \mathrm{unused}}
              \lVert \mathrm{sg}(h_k) - e_k\rVert^2

    c is ``codebook`` and r ``revive``. The decoder's gradient goes straight through to h. The
    squares have the unit of h², not nats. Codes that no example of the batch takes are drawn
    to the tokens h_k that are farthest from their codes (:func:`unused_distance`), so that they
    come to be used; the paper has no such term. That sum is one number for the batch, added to
    every example's loss.

    van den Oord et al. 2017 (arXiv:1711.00937), eq. 3; log p(e) is their second stage, here of
    independent tokens, learned with the rest and without an effect on it.

    Raises:
      UserError: the model has no codebook.
    """
    q = model.encode(params, batch["image"])
    if not isinstance(q, VectorQuantised):
        raise UserError("objective.name=vq: the model has no codebook; want model.name=vq")
    value, log_px, kl = bound(sample_k(model, params, batch["image"], keys, 1))
    distance, commitment = q.distances()
    mask = batch.get("mask", jnp.ones(len(kl), bool))
    unused = unused_distance(q, mask)
    loss = kl - log_px + codebook * distance + beta * commitment + revive * unused
    return Terms(loss, value, log_px, kl, {"commitment": commitment})


def unused_distance(q: VectorQuantised, mask_B: jax.Array) -> jax.Array:
    """Σ_k ‖sg(h_k) − e_k‖² over codes that no example takes, one number.

    h_k is the token with the largest distance to its code for the first such k, the one with the
    second largest for the next, and so on.
    """
    tokens = as_tokens(jax.lax.stop_gradient(real(q.features)), q.codebook)
    error_BxP = squared_distances(tokens, jax.lax.stop_gradient(q.codebook)).min(-1)
    error_T = jnp.where(mask_B[:, None], error_BxP, -jnp.inf).reshape(-1)
    count = min(q.size, len(error_T))
    _, worst = jax.lax.top_k(error_T, count)
    index_BxP = jnp.where(mask_B[:, None], q.indices(q.features), q.size)
    unused_K = jnp.bincount(index_BxP.reshape(-1), length=q.size) == 0
    there = jnp.minimum(count, mask_B.sum() * error_BxP.shape[-1])  # tokens that are no padding
    rank_K = (jnp.cumsum(unused_K) - 1) % there
    target_KxG = tokens.reshape(len(error_T), -1)[worst[rank_K]]
    return jnp.sum(unused_K[:, None] * (target_KxG - q.codebook) ** 2)


vq.needs = "codebook"
