"""Detection: boxes and classes of objects from scenes whose boxes are known."""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.models import boxes as boxes_lib
from vae_jax.models.core import Model, Params
from vae_jax.objectives.labels import cross_entropy
from vae_jax.objectives.terms import Terms


def detection(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    focus: float = 2.0,
    box: float = 1.0,
    label: float = 1.0,
) -> Terms:
    r"""The loss of a dense head: an objectness for each cell, a box and a class where objects are.

    .. math:: \mathrm{loss} = -\sum_{cells} (1 - p_t)^{\gamma} \log p_t
              + \sum_{objects} \big(b\,(1 - \mathrm{GIoU}) - l \log p(y)\big)

    p_t is the probability of what is true of the cell, an object's cell being that of its centre;
    γ is ``focus``: 0 is cross-entropy (Lin et al. 2017, arXiv:1708.02002, eq. 4). GIoU:
    Rezatofighi et al. 2019 (arXiv:1902.09630). Of two objects in one cell the first is learnt.
    Nothing is random.
    """
    if model.detect is None:
        raise UserError("objective.name=detection: want model.name=detector")
    if "objects" not in batch:
        raise UserError(
            "data.name: detection learns from boxes; want scenes, as scenes:mnist+boxes"
        )
    d = model.detect(params, batch["image"])
    objects = batch["objects"]
    cells = d.logit.shape[-1]
    grid = round(cells**0.5)
    cell_BxM, _ = boxes_lib.encode(objects[..., :4].astype(jnp.float32), grid, model.shape[0])
    real_BxM = (objects[..., 4] >= 0) & _first(cell_BxM, objects[..., 4] >= 0)
    taken_BxG = jnp.any((cell_BxM[..., None] == jnp.arange(cells)) & real_BxM[..., None], axis=1)
    sign = jnp.where(taken_BxG, 1.0, -1.0)
    log_p = jax.nn.log_sigmoid(sign * d.logit)
    objectness = -jnp.sum((1 - jnp.exp(log_p)) ** focus * log_p, axis=-1)
    at_object = cell_BxM[..., None]
    box_BxMx4 = jnp.take_along_axis(d.boxes, at_object, axis=1)
    giou = boxes_lib.generalised_iou(box_BxMx4, objects[..., :4].astype(jnp.float32))
    logits = jnp.take_along_axis(d.class_logits, at_object, axis=1)
    ce, hit = cross_entropy(logits, jnp.maximum(objects[..., 4], 0))
    apart = jnp.where(real_BxM, box * (1 - giou) + label * ce, 0).sum(-1)
    count = jnp.maximum(real_BxM.sum(-1), 1)
    extra = {
        "objectness_loss": objectness,
        "box_giou": jnp.where(real_BxM, giou, 0).sum(-1) / count,
        "object_accuracy": jnp.where(real_BxM, hit, 0).sum(-1) / count,
    }
    return Terms(objectness + apart, extra=extra)


def _first(cell_BxM: jax.Array, real_BxM: jax.Array) -> jax.Array:
    """Whether no real object before this one has its cell."""
    same_BxMxM = cell_BxM[:, :, None] == cell_BxM[:, None, :]
    m = cell_BxM.shape[1]
    earlier_MxM = jnp.arange(m)[None, :] < jnp.arange(m)[:, None]
    return ~jnp.any(same_BxMxM & earlier_MxM & real_BxM[:, None, :], axis=-1)


detection.needs = "objects"
