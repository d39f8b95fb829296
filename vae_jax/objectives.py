"""Objectives: (model, params, batch, key, *, its own numbers) → Terms, one number per example.

``batch`` holds image_BxHxWxC in [0, 1] and, where the data has them, label_B. Everything is in nats,
summed over pixels and latent dimensions, one number per example: nothing here averages over the batch
(:func:`vae_jax.step.masked_mean` does, once). The loss and the bound are two things: ``loss`` is what
is minimised; ``elbo`` is always the bound with beta = 1.

A new objective is a function like these and its line in ``OBJECTIVES``; or, with no line at all,
``--config.objective.name=my_file:my_loss``. Its keyword arguments are the fields of
``config.objective``.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.config import UserError


class Terms(NamedTuple):
    """What an objective says of each example, shape B each; None where a figure has no meaning."""

    loss: jax.Array
    elbo: jax.Array | None = None  # the beta = 1 bound on log p(x)
    log_px: jax.Array | None = None  # E log p(x|z): minus the distortion
    kl: jax.Array | None = None  # the rate
    extra: dict[str, Any] = {}  # any further figures, shape B  # noqa: RUF012


def many(model, params, x_BxHxWxC, key, samples, **kwargs):
    """K independent draws, each leaf with a leading axis K. The encoder runs once: vmap maps only what
    depends on the key."""
    keys = jax.random.split(key, samples)
    return jax.vmap(lambda k: model.draw(params, x_BxHxWxC, k, **kwargs))(keys)


def elbo(model, params, batch, key, *, beta=1.0, samples=1):
    r"""The evidence lower bound; with ``beta`` ≠ 1 the beta-VAE.

    .. math:: -\mathrm{loss} = \tfrac1K \sum_k \log p(x|z_k) - \beta\, KL(q(z|x) ‖ p(z)), z_k \sim q(z|x)

    Kingma & Welling 2014 (arXiv:1312.6114), eq. 3 and 10; beta: Higgins et al. 2017, eq. 4.
    """
    d = many(model, params, batch["image"], key, samples)
    log_px, kl = d.log_px.mean(0), d.kl.sum(-1).mean(0)
    return Terms(loss=beta * kl - log_px, elbo=log_px - kl, log_px=log_px, kl=kl)


def joint(model, params, batch, key, *, beta=1.0, gamma=1.0, samples=1):
    r"""A VAE that also classifies: ELBO + gamma · log p(y|z), one z for both.

    .. math:: -\mathrm{loss} = E_q[\log p(x|z)] - \beta\,KL + \gamma\, E_q[\log p(y|z)]

    The bound of a model in which z generates both x and y (gamma = 1 makes it the bound on
    log p(x, y)). ``elbo`` stays the bound on log p(x). The classifier is judged in evaluation at the
    posterior mean; here ``accuracy`` is at a sample.
    """
    d = many(model, params, batch["image"], key, samples)
    log_px, kl = d.log_px.mean(0), d.kl.sum(-1).mean(0)
    logits_KxBxY = jax.vmap(lambda z: _classify(model, params, z))(d.z)
    ce, hit = (a.mean(0) for a in jax.vmap(lambda s: cross_entropy(s, batch["label"]))(logits_KxBxY))
    loss = beta * kl - log_px + gamma * ce
    return Terms(loss, log_px - kl, log_px, kl, {"cross_entropy": ce, "accuracy": hit})


def supervised(model, params, batch, key):
    r"""The baseline: the same encoder and classifier, cross-entropy only, nothing sampled.

    .. math:: \mathrm{loss} = -\log p(y | z = \mu(x))
    """
    ce, hit = cross_entropy(_classify(model, params, model.encode(params, batch["image"]).mu), batch["label"])
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


OBJECTIVES = {f.__name__: f for f in (elbo, joint, supervised)}
