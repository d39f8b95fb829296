"""Discovery of objects without labels: the bound of attend-infer-repeat, by two estimators."""

import jax
import jax.numpy as jnp

from vae_jax.config import UserError
from vae_jax.distributions import split_keys
from vae_jax.models.core import Draw, Model, Params
from vae_jax.objectives.terms import Terms, bound, sample_k, with_gradient_of


def air(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 1.0,
    samples: int = 1,
    temperature: float = 1.0,
) -> Terms:
    r"""The evidence lower bound of a model whose number of objects is a latent variable.

    .. math:: -\mathrm{loss} = E_q[\log p(x|z)] - \beta\, KL(q(n, z|x) \| p(n, z))

    In training the presences are relaxed (Maddison et al. 2017, arXiv:1611.00712): the gradient is
    biased, and the terms are no bound. In evaluation they are drawn, and ``elbo`` is the bound.
    ``count_accuracy``: draws with the true number of objects, where the data knows it; nothing
    learns from it. The model: Eslami et al. 2016 (arXiv:1603.08575), section 2.2.
    """
    _check(model, "air")
    if batch.get("step") is None:
        d = sample_k(model, params, batch["image"], keys, samples)
        return _of_draws(model, batch, d, beta)
    d = model.nets.relaxed(params, batch["image"], split_keys(keys, samples), temperature)
    _, log_px, kl = bound(d)
    return Terms(beta * kl - log_px, None, log_px, kl, _counts(model, d, batch))


def air_rloo(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    beta: float = 1.0,
    samples: int = 4,
) -> Terms:
    r"""The loss of :func:`air` with drawn presences, and an unbiased gradient.

    To the gradient of each of K = ``samples`` ≥ 2 draws it adds the score

    .. math:: \Big(f_k - \tfrac{1}{K-1} \sum_{j \ne k} f_j\Big)\, \nabla \log q(n_k|x),
              \qquad f = \log p(x|z) - \beta\, KL

    with the other draws as the baseline (Kool et al. 2019, "Buy 4 REINFORCE samples, get a baseline
    for free!"). Where and what go through the draw.
    """
    _check(model, "air_rloo")
    if samples < 2:
        raise UserError(f"objective.samples={samples}: air_rloo compares draws; want 2 or more")
    d = sample_k(model, params, batch["image"], keys, samples)
    terms = _of_draws(model, batch, d, beta)
    return terms._replace(loss=with_gradient_of(terms.loss, -rloo(d, beta)))


def rloo(d: Draw, beta: float) -> jax.Array:
    """The mean over K draws of what has the gradient of E_q[f], shape B; see :func:`air_rloo`."""
    f = d.log_px - beta * d.kl.sum(-1)
    others = (f.sum(0) - f) / (len(f) - 1)
    advantage = jax.lax.stop_gradient(f - others)
    return jnp.mean(f + advantage * d.extra["log_q_count"], axis=0)


def _of_draws(model: Model, batch: dict, d: Draw, beta: float) -> Terms:
    value, log_px, kl = bound(d)
    return Terms(beta * kl - log_px, value, log_px, kl, _counts(model, d, batch))


def _counts(model: Model, d: Draw, batch: dict) -> dict[str, jax.Array]:
    """The share of draws with the true number of objects, in scenes."""
    if "objects" not in batch:
        return {}
    count = jnp.round(d.z[..., : model.nets.law.steps]).sum(-1)
    return {"count_accuracy": jnp.mean(count == batch["label"], axis=0, dtype=jnp.float32)}


def _check(model: Model, objective: str) -> None:
    if not hasattr(model.nets, "relaxed"):
        raise UserError(f"objective.name={objective}: want model.name=attend_infer_repeat or grid")


air.needs = "objects"
air_rloo.needs = "objects"
