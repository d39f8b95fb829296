"""Semi-supervised learning: where an example has no label, the label is a latent variable."""

import math

import jax
import jax.numpy as jnp

from vae_jax.distributions import split_keys
from vae_jax.models.core import Model, Params
from vae_jax.objectives.labels import cross_entropy, examples
from vae_jax.objectives.terms import Terms, bound


def m2(
    model: Model,
    params: Params,
    batch: dict,
    keys: jax.Array,
    *,
    alpha: float = 1.0,
    labelled: float = 1.0,
    samples: int = 1,
) -> Terms:
    r"""A model of p(x|y, ·) p(y) with q(y|x), learnt from examples with and without a label.

    .. math:: L(x, y) = E_{q(z|x,y)}[\log p(x|y,z)] - KL(q(z|x,y) \| p(z)) + \log p(y)
    .. math:: U(x) = \sum_y q(y|x)\, L(x, y) + H(q(y|x))
    .. math:: \mathrm{loss} = -\mathrm{mean}\, U - \lambda\,\mathrm{mean}\, L
              + \alpha\,\mathrm{mean}\,(-\log q(y|x))

    Kingma et al. 2014 (arXiv:1406.5298), eqs. 6-9; with ``model.name=adgm`` or ``sdgm`` Maaløe et
    al. 2016 (arXiv:1602.05473), eqs. 6-11, where q(y|x, a) is at the a of the draw; with ``m1m2``
    Kingma et al.'s section 3.1.3; with ``per_class`` a VAE for each class, a generative classifier
    by Bayes' rule (Schott et al. 2018, arXiv:1805.09190).

    p(y) is uniform. U is over ``batch``, whose labels are not read; L and the cross-entropy are
    over the labelled examples: three means, so none depends on how many there are of the others.
    U ≤ log p(x) is ``elbo``; L ≤ log p(x, y) is ``labelled_elbo``. Without a label budget or a
    labelled stream every example is a labelled one, there is no U, and ``elbo`` is L. The sum over
    y is exact; all y share the same noise, so the differences between labels, which q(y|x) learns
    from, are less noisy.

    The paper minimises *sums* over its N examples and sets the weight of its mean cross-entropy to
    0.1 N. Divided by N, that is ``alpha`` = 0.1 beside a mean of U over nearly all examples, and
    ``labelled`` (λ) = N_labelled / N. With few labels, λ = 1 takes half of the gradient of p(x|y,z)
    from a few images, and the model overfits them.
    """
    rows, row_keys = examples(batch, keys)
    keys_KxB = split_keys(row_keys, samples)
    # BxY, or KxBxY where q(y|·) is of a draw.
    logits = model.classify(params, rows["image"], keys_KxB)
    ce, hit = cross_entropy(logits, rows["label"])
    ce = mean_over_draws(ce)
    value, log_px, kl = bound(model.draw(params, rows["image"], keys_KxB, rows["label"]))
    value = value - math.log(model.classes)
    extra = {"cross_entropy": ce, "accuracy": mean_over_draws(hit)}
    terms = Terms(alpha * ce - labelled * value, value, log_px, kl, extra)
    if rows is batch:
        return terms
    value, log_px, kl = bound(model.draw(params, batch["image"], split_keys(keys, samples)))
    return Terms(-value, value, log_px, kl, labelled=terms)


m2.needs = "labels"


def mean_over_draws(values: jax.Array) -> jax.Array:
    """B, or KxB → B."""
    return values if values.ndim == 1 else jnp.mean(values, axis=0)
