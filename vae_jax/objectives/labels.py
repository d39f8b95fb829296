"""Objectives that learn from labels."""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.objectives.terms import Terms, bound, many


def joint(model, params, batch, key, *, beta=1.0, gamma=1.0, samples=1):
    r"""A VAE that also classifies: ELBO + gamma · log p(y|z), one z for both.

    .. math:: -\mathrm{loss} = E_q[\log p(x|z)] - \beta\,KL + \gamma\, E_q[\log p(y|z)]

    The bound of a model in which z generates both x and y (gamma = 1 makes it the bound on
    log p(x, y)). ``elbo`` stays the bound on log p(x). The classifier is judged in evaluation at the
    posterior mean; here ``accuracy`` is at a sample.
    """
    d = many(model, params, batch["image"], key, samples)
    value, log_px, kl = bound(d)
    logits_KxBxY = jax.vmap(lambda z: _classify(model, params, z))(d.z)
    ce, hit = (a.mean(0) for a in jax.vmap(lambda s: cross_entropy(s, batch["label"]))(logits_KxBxY))
    return Terms(beta * kl - log_px + gamma * ce, value, log_px, kl, {"cross_entropy": ce, "accuracy": hit})


def supervised(model, params, batch, key):
    r"""The baseline: the same encoder and classifier, cross-entropy only, nothing sampled.

    .. math:: \mathrm{loss} = -\log p(y | z = \mu(x))
    """
    logits_BxY = _classify(model, params, model.encode(params, batch["image"]).mu)
    ce, hit = cross_entropy(logits_BxY, batch["label"])
    return Terms(loss=ce, extra={"cross_entropy": ce, "accuracy": hit})


def cross_entropy(logits_BxY, label_B):
    """(−log p(y), 1 if the most probable class is y), each of shape B."""
    log_p = jax.nn.log_softmax(logits_BxY.astype(jnp.float32))
    ce = -jnp.take_along_axis(log_p, label_B[:, None], axis=-1)[:, 0]
    return ce, (jnp.argmax(logits_BxY, -1) == label_B).astype(jnp.float32)


def _classify(model, params, z):
    if model.classify is None:
        raise UserError("classifier.name=none: this objective learns from labels; want classifier.name=mlp")
    return model.classify(params, z)
