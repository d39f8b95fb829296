"""Objectives that learn from labels."""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.models.core import Model, Params
from vae_jax.objectives.terms import Terms, bound


def joint(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 1.0,
    gamma: float = 1.0,
    samples: int = 1,
) -> Terms:
    r"""A VAE that also classifies: ELBO + gamma · log p(y|z), one z for both.

    .. math:: -\mathrm{loss} = E_q[\log p(x|z)] - \beta\,KL + \gamma\, E_q[\log p(y|z)]

    The bound of a model in which z generates both x and y (gamma = 1 makes it the bound on
    log p(x, y)). ``elbo`` stays the bound on log p(x). Evaluation takes the accuracy at the
    posterior mean; here ``accuracy`` is at a sample.

    With a label budget the loss is the mean of beta · KL − log p(x|z) over the batch, whose labels
    are not used, + gamma times the mean cross-entropy over the labelled examples.
    """
    d = model.draw(params, batch["image"], split_keys(keys, samples))
    value, log_px, kl = bound(d)
    rows, row_keys = examples(batch, keys)
    z_KxBxD = d.z
    if rows is not batch:
        z_KxBxD = model.draw(params, rows["image"], split_keys(row_keys, samples)).z
    _check_classifier(model)

    def of_draw(z_BxD: jax.Array) -> tuple[jax.Array, jax.Array]:
        return cross_entropy(model.head(params, z_BxD), rows["label"])

    ce_KxB, hit_KxB = jax.vmap(of_draw)(z_KxBxD)
    ce = ce_KxB.mean(0)
    extra = {"cross_entropy": ce, "accuracy": hit_KxB.mean(0)}
    if rows is not batch:
        labelled = Terms(gamma * ce, extra=extra)
        return Terms(beta * kl - log_px, value, log_px, kl, labelled=labelled)
    return Terms(beta * kl - log_px + gamma * ce, value, log_px, kl, extra)


def supervised(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
) -> Terms:
    r"""The baseline: the same encoder and classifier, cross-entropy only, nothing sampled.

    .. math:: \mathrm{loss} = -\log p(y | z = \mu(x))

    With a label budget it sees the labelled examples only.
    """
    rows, _ = examples(batch, keys)
    _check_classifier(model)
    logits_BxY = model.classify(params, rows["image"])
    ce, hit = cross_entropy(logits_BxY, rows["label"])
    terms = Terms(loss=ce, extra={"cross_entropy": ce, "accuracy": hit})
    if rows is batch:
        return terms
    return Terms(loss=jnp.zeros(len(batch["image"])), labelled=terms)


def examples(batch: dict, keys: jax.Array) -> tuple[dict, jax.Array]:
    """(examples to learn labels from, their keys).

    They are ``batch["labelled"]``, a stream with keys of its own, or all of a batch where every
    example has a label. In evaluation they are the batch again, with a label of −1 where there is
    none; the metrics of those are not counted.
    """
    rows = batch.get("labelled", batch)
    if rows is None:
        why = "with data.labels this objective learns from a stream of labelled examples"
        wanted = "want their number per step, such as 100"
        raise UserError(f"data.labelled_batch=0: {why}; {wanted}")
    if rows is batch:
        return rows, keys
    return rows, rows["keys"]


def cross_entropy(logits: jax.Array, label_B: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(−log p(y), 1 if the most probable class is y) of logits_BxY or KxBxY; shape B or KxB."""
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    index = jnp.broadcast_to(label_B, logits.shape[:-1])[..., None]
    ce = -jnp.take_along_axis(log_p, index, axis=-1)[..., 0]
    return ce, (jnp.argmax(logits, -1) == label_B).astype(jnp.float32)


def _check_classifier(model: Model) -> None:
    if model.classify is None:
        wanted = "want classifier.name=mlp"
        raise UserError(f"classifier.name=none: this objective learns from labels; {wanted}")
