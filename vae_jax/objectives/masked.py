"""The masked autoencoder: the decoder predicts pixels that the encoder did not see."""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.distributions.likelihood import Likelihood
from vae_jax.models.core import Model, Params
from vae_jax.objectives.terms import Terms

GREY = 0.5  # in place of a masked pixel: neither black nor white, so that the mask can be seen


def masked(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    patch: int = 4,
    share: float = 0.5,
) -> Terms:
    r"""Square patches of the image are grey; the loss is −log p of their pixels alone.

    .. math:: \mathrm{loss} = -\sum_{i \in M} \log p(x_i \mid z), \qquad
              z = \mu(\tilde x), \quad \tilde x_i = \tfrac12 \text{ for } i \in M, \text{ else } x_i

    The image is a grid of patches of ``patch`` x ``patch`` pixels (smaller at the lower and the
    right edge). ``share`` of them are in M: always as many, chosen by the example's key. The code
    is the mean of q(z|x), without noise; nothing trains q's variance. There is no bound on
    log p(x). ``log_px`` is log p(x|z) of all pixels, those that the encoder saw included;
    ``masked_nats`` is the loss of one masked pixel.

    He et al. 2022 (arXiv:2111.06377), section 3, whose encoder leaves masked patches out. A
    convolution needs a value in their place: Pathak et al. 2016 (arXiv:1604.07379), eq. 1.
    """
    x = batch["image"]
    mask_BxHxW = patches(keys, model.shape[:2], patch, share)
    hidden = jnp.where(mask_BxHxW[..., None], GREY, x)
    z = model.encode(params, hidden).mu
    if model.decode is None:
        raise UserError("decoder.name=none: objective masked predicts pixels; want mlp or conv")
    log_p_BxHxW = pixel_log_prob(model.likelihood, model.decode(params, z), x)
    loss = -jnp.sum(jnp.where(mask_BxHxW, log_p_BxHxW, 0), axis=(1, 2))
    each = loss / jnp.maximum(mask_BxHxW.sum((1, 2)), 1)
    return Terms(loss, None, log_p_BxHxW.sum((1, 2)), None, {"masked_nats": each})


masked.needs = "decoder"


def patches(keys_B: jax.Array, shape: tuple[int, int], patch: int, share: float) -> jax.Array:
    """Which pixels are masked, bool BxHxW: round(share · P) of an image's P patches.

    Raises:
      UserError: that is none of the patches, or all of them.
    """
    height, width = shape
    rows = -(-height // patch)
    columns = -(-width // patch)
    count = round(share * rows * columns)
    if not 0 < count < rows * columns:
        raise UserError(
            f"objective.share={share}: masks {count} of {rows * columns} patches of "
            f"{patch} pixels; want some of them, and not all"
        )

    def of_one(key: jax.Array) -> jax.Array:
        order = jax.random.permutation(key, rows * columns)
        return (order < count).reshape(rows, columns)

    mask_BxRxC = jax.vmap(of_one)(keys_B)
    whole = jnp.repeat(jnp.repeat(mask_BxRxC, patch, axis=1), patch, axis=2)
    return whole[:, :height, :width]


def pixel_log_prob(
    likelihood: Likelihood, out_BxHxWxO: jax.Array, x_BxHxWxC: jax.Array
) -> jax.Array:
    """log p(x_i|z) of each pixel, summed over its channels, BxHxW.

    It is the likelihood of images of one pixel each.

    Raises:
      UserError: p(x|z) is no product over pixels.
    """
    if likelihood.name == "gaussian_optimal":
        raise UserError(
            "likelihood.name=gaussian_optimal: has one variance for all pixels of an image; "
            "objective masked wants one of each pixel, such as gaussian"
        )

    def pixels(a: jax.Array) -> jax.Array:
        return a.reshape(-1, 1, 1, a.shape[-1])

    log_p = likelihood.log_prob(pixels(out_BxHxWxO), pixels(x_BxHxWxC))
    return log_p.reshape(x_BxHxWxC.shape[:-1])
