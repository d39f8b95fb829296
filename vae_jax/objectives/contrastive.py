"""Contrastive learning: two views of an image have similar codes, views of other images do not."""

import jax
import jax.numpy as jnp

from vae_jax import nets
from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.models.core import Model, Params
from vae_jax.objectives.terms import Terms

HIDDEN = 128  # units of the projection head
PROJECTED = 64  # dimensions in which views are compared


def contrastive(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    temperature: float = 0.5,
    crop: float = 0.4,
    intensity: float = 0.3,
) -> Terms:
    r"""SimCLR: each of the 2B views of a batch picks its partner among the 2B − 1 others.

    .. math:: \ell_{ij} = -\log \frac{\exp(s_{ij} / \tau)}{\sum_{k \ne i} \exp(s_{ik} / \tau)},
              \qquad s_{ij} = \frac{g_i \cdot g_j}{\lVert g_i\rVert \lVert g_j\rVert}

    g is a projection head of two layers, ``params["objective"]``, on the mean of q(z|x), which is
    what other runs take from this one (``config.init_from``); the head stays behind. The loss of an
    example is the mean of its two views', so the batch's mean is the paper's. Nothing trains q's
    variance, and the decoder is not used: there is no bound. ``pair_accuracy`` is the share of
    views whose partner is the nearest.

    The whole batch is in the equation, so programs that see a shard or a microbatch at a time are
    refused (``models.build``). Rows that fill a batch up (``batch["mask"]``) are in no sum.
    :func:`view` makes the views; ``crop`` and ``intensity`` are its numbers.

    Chen et al. 2020 (arXiv:2002.05709), eq. 1 and algorithm 1.
    """
    if temperature <= 0:
        raise UserError(f"objective.temperature={temperature}: want a number > 0")
    if crop >= 1:
        raise UserError(f"objective.crop={crop}: want 0 <= value < 1")
    projected = []
    for keys_B in split_keys(keys, 2):
        views = jax.vmap(lambda key, x: view(key, x, crop, intensity))(keys_B, batch["image"])
        code = model.encode(params, views).mu
        projected.append(_head().apply({"params": params["objective"]}, code))
    real_B = batch.get("mask", jnp.ones(len(batch["image"]), bool))
    loss, hit = nt_xent(*projected, real_B, temperature)
    return Terms(loss, extra={"pair_accuracy": hit})


contrastive.needs = "batch"


def _head() -> nets.MLPClassifier:
    return nets.MLPClassifier(outputs=PROJECTED, widths=(HIDDEN,))


def _init_head(key: jax.Array, model: Model) -> Params:
    return _head().init(key, jnp.zeros((1, model.latent)))["params"]


contrastive.init = _init_head
contrastive.stationary = True  # the head minimises the loss that all minimise: it may select


def nt_xent(
    first_BxD: jax.Array, second_BxD: jax.Array, real_B: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """(loss in nats, share of views that are nearest to their partner), shape B each.

    Rows where ``real_B`` is false are nobody's rivals; what is said of them means nothing.
    """
    g_VxD = jnp.concatenate([first_BxD, second_BxD]).astype(jnp.float32)
    g_VxD /= jnp.sqrt(jnp.sum(g_VxD**2, axis=-1, keepdims=True) + 1e-12)
    views = len(g_VxD)
    rival_VxV = jnp.tile(real_B, 2)[None] & ~jnp.eye(views, dtype=bool)
    similarity_VxV = jnp.matmul(g_VxD, g_VxD.T, precision="highest") / temperature
    logits_VxV = jnp.where(rival_VxV, similarity_VxV, -jnp.inf)
    partner_V = (jnp.arange(views) + views // 2) % views
    own_V = similarity_VxV[jnp.arange(views), partner_V]
    loss_V = jax.nn.logsumexp(logits_VxV, axis=1) - own_V
    hit_V = (jnp.argmax(logits_VxV, axis=1) == partner_V).astype(jnp.float32)
    return loss_V.reshape(2, -1).mean(0), hit_V.reshape(2, -1).mean(0)


def view(key: jax.Array, x_HxWxC: jax.Array, crop: float, intensity: float) -> jax.Array:
    """A random view of one image in [0, 1], of its shape.

    A window with sides of 1 − ``crop`` to 1 + ``crop`` times the image's, anywhere inside the image
    or, where it is larger, around it: that moves and scales the image, whose border is repeated.
    Then each channel is multiplied by a number in 1 ± ``intensity``, and one in ± ``intensity`` is
    added; values beyond [0, 1] are clipped.
    """
    side_key, place_key, tone_key = jax.random.split(key, 3)
    side = jax.random.uniform(side_key, (), minval=1 - crop, maxval=1 + crop)
    start_2 = jax.random.uniform(place_key, (2,)) * (1 - side)
    rows = resampling(x_HxWxC.shape[0], start_2[0], side)
    columns = resampling(x_HxWxC.shape[1], start_2[1], side)
    window = jnp.einsum("ih,jw,hwc->ijc", rows, columns, x_HxWxC)
    shape = (2, x_HxWxC.shape[2])
    gain_C, offset_C = jax.random.uniform(tone_key, shape, minval=-intensity, maxval=intensity)
    return jnp.clip((1 + gain_C) * window + offset_C, 0, 1)


def resampling(pixels: int, start: jax.Array, length: jax.Array) -> jax.Array:
    """W [pixels, pixels]: W v is the part of a row v from ``start`` on, ``length`` long.

    Bilinear. Both are in units of the row; beyond its ends the outermost pixels are repeated.
    """
    centre = (start + (jnp.arange(pixels) + 0.5) / pixels * length) * pixels - 0.5
    centre = jnp.clip(centre, 0, pixels - 1)
    return jnp.maximum(0, 1 - jnp.abs(centre[:, None] - jnp.arange(pixels)))
