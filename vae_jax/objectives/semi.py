"""Semi-supervised objectives: a bound for examples without a label, in which the label is a latent variable."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vae_jax.distributions import split_keys
from vae_jax.mesh import layout
from vae_jax.objectives.labels import cross_entropy, examples
from vae_jax.objectives.terms import Terms, bound, many


def m2(model, params, batch, keys, *, alpha=1.0, labelled=1.0, samples=1):
    r"""M2: p(x|y,z) p(y) p(z) with q(y|x) and q(z|x,y), learnt from examples with and without a label.

    .. math:: L(x, y) = E_{q(z|x,y)}[\log p(x|y,z)] - KL(q(z|x,y) \| p(z)) + \log p(y)
    .. math:: U(x) = \sum_y q(y|x)\, L(x, y) + H(q(y|x))
    .. math:: \mathrm{loss} = -\mathrm{mean}\, U - \lambda\,\mathrm{mean}\, L + \alpha\,\mathrm{mean}\,(-\log q(y|x))

    Kingma et al. 2014 (arXiv:1406.5298), eqs. 6-9. p(y) is uniform. U is over ``batch``, whose labels are not looked
    at; L and the cross-entropy are over the labelled examples: three means, so none depends on how many there are of
    the others. U ≤ log p(x) is ``elbo``; L ≤ log p(x, y) is ``labelled_elbo``. Without a label budget or a labelled
    stream every example is a labelled one, there is no U, and ``elbo`` is L.

    The sum over y is exact, an axis of size Y made by ``vmap``. All y meet the same noise: the sum's expectation does
    not depend on it, and the differences between labels, which q(y|x) learns from, are less noisy.

    The paper minimises *sums* over its N examples and sets the weight of its mean cross-entropy to 0.1 N. Divided by N,
    that is ``alpha`` = 0.1 beside a mean of U over nearly all examples, and ``labelled`` (λ) = N_labelled / N. With few
    labels, λ = 1 makes half of what p(x|y,z) learns from a few images, and it learns these by heart.
    """
    rows, row_keys = examples(batch, keys)
    log_q_BxY = jax.nn.log_softmax(model.classify(params, rows["image"]))
    ce, hit = cross_entropy(log_q_BxY, rows["label"])
    given, log_px, kl = bound(
        many(model, params, rows["image"], row_keys, samples, y=rows["label"])
    )
    value = given - math.log(model.classes)
    extra = {"cross_entropy": ce, "accuracy": hit}
    terms = Terms(alpha * ce - labelled * value, value, log_px, kl, extra)
    if rows is batch:
        return terms

    log_q_BxY = jax.nn.log_softmax(model.classify(params, batch["image"]))

    def draws(y):
        return many(model, params, batch["image"], keys, samples, y=y)

    labels = jnp.arange(model.classes)

    def constrain(tree):  # the labels lie over the mesh axis where the samples do not
        return tree if layout.num_shards(samples) > 1 else layout.constrain(tree, model.classes)

    _, log_px_YxB, kl_YxB = constrain(jax.vmap(lambda y: bound(draws(y)))(constrain(labels)))
    log_px, kl = over_labels(log_q_BxY, log_px_YxB, kl_YxB)
    return Terms(kl - log_px, log_px - kl, log_px, kl, labelled=terms)


m2.conditional = True


def over_labels(log_q_BxY, log_px_YxB, kl_YxB):
    r"""(log_px, kl), shape B each, of an example whose label is latent: U = log_px − kl.

    .. math:: \sum_y q(y|x) \log p(x|y,z_y), \qquad
              \sum_y q(y|x) \big(KL(q(z|x,y) \| p(z)) + \log q(y|x) - \log p(y)\big)

    The entropy of q(y|x) is within the second, in KL(q(y|x) ‖ p(y)). A q(y|x) that underflows to 0 adds 0.
    """
    log_q_YxB = log_q_BxY.T
    q_YxB = jnp.exp(log_q_YxB)
    rate_YxB = kl_YxB + log_q_YxB + math.log(len(log_q_YxB))
    return jnp.sum(q_YxB * log_px_YxB, 0), jnp.sum(q_YxB * rate_YxB, 0)


def adgm(model, params, batch, keys, *, alpha=1.0, labelled=1.0, samples=1):
    r"""The auxiliary deep generative model: p(x|y,z) p(a|x,y,z) p(y) p(z) with q(a|x) q(y|x,a) q(z|x,a,y).

    .. math:: L(x, y) = E_{q(a|x)\, q(z|x,a,y)}\Big[\log \frac{p(x|y,z)\, p(a|x,y,z)\, p(z)}{q(a|x)\, q(z|x,a,y)}\Big]
              + \log p(y)
    .. math:: U(x) = E_{q(a|x)} \sum_y q(y|x,a) \big(L(x, y; a) - \log q(y|x,a)\big)
    .. math:: \mathrm{loss} = -\mathrm{mean}\, U - \lambda\,\mathrm{mean}\, L
              + \alpha\,\mathrm{mean}\,E_{q(a|x)}(-\log q(y|x,a))

    Maaløe et al. 2016 (arXiv:1602.05473), eqs. 6-11; the auxiliary a makes q(y, z|x) richer than M2's and leaves
    p(x, y, z) as it is. The sum over y is exact, all y meet one a and one noise. Weights, the three means and what is
    reported are those of :func:`m2`; L and U are bounds on log p(x, y) and log p(x) for any nets.
    """
    rows, row_keys = examples(batch, keys)

    def judged(x, keys_KxB):
        return jax.nn.log_softmax(model.classify(params, x, keys_KxB))

    keys_KxB = split_keys(row_keys, samples)
    log_q_KxBxY = judged(rows["image"], keys_KxB)
    ce, hit = (a.mean(0) for a in jax.vmap(lambda s: cross_entropy(s, rows["label"]))(log_q_KxBxY))
    given, log_px, kl = bound(model.draw(params, rows["image"], keys_KxB, y=rows["label"]))
    value = given - math.log(model.classes)
    terms = Terms(
        alpha * ce - labelled * value, value, log_px, kl, {"cross_entropy": ce, "accuracy": hit}
    )
    if rows is batch:
        return terms

    keys_KxB = split_keys(keys, samples)
    d = jax.vmap(lambda y: model.draw(params, batch["image"], keys_KxB, y=y))(
        jnp.arange(model.classes)
    )
    pairs = jax.vmap(over_labels, (0, 1, 1))(
        judged(batch["image"], keys_KxB), d.log_px, d.kl.sum(-1)
    )
    log_px, kl = (a.mean(0) for a in pairs)
    return Terms(kl - log_px, log_px - kl, log_px, kl, labelled=terms)


def sdgm(model, params, batch, keys, *, alpha=1.0, labelled=1.0, samples=1):
    """The skip deep generative model: :func:`adgm` with p(x|a,y,z) p(a|y,z), so a is a layer of the generative model.

    Maaløe et al. 2016 (arXiv:1602.05473), section 2.4.
    """
    return adgm(model, params, batch, keys, alpha=alpha, labelled=labelled, samples=samples)


def m1m2(model, params, batch, keys, *, alpha=1.0, labelled=1.0, samples=1):
    """M2 on the latent variable a of an M1 that is trained already: p(x|a) p(a|y,z) p(y) p(z), q(a|x) q(y|a) q(z|a,y).

    Kingma et al. 2014 (arXiv:1406.5298), section 3.1.3: M1's encoder and decoder, from ``config.init_from``, are
    constants; M2's data are samples of q(a|x), new at every step, under a Gaussian p(a|y,z). The equation is
    :func:`adgm`'s, so the bounds reported are on log p(x) of the images, not of the codes.
    """
    return adgm(model, params, batch, keys, alpha=alpha, labelled=labelled, samples=samples)


def apart(model, params, batch, keys, *, alpha=1.0, labelled=1.0, samples=1):
    """:func:`m2` of a model in which each label has nets of its own: p_y(x|z) and q_y(z|x).

    With every label given this trains a VAE for each class side by side, a generative classifier by Bayes' rule (Schott
    et al. 2018, arXiv:1805.09190); q(y|x) is learnt beside it and is in no bound.
    """
    return m2(model, params, batch, keys, alpha=alpha, labelled=labelled, samples=samples)


for _objective in (adgm, sdgm, m1m2, apart):
    _objective.conditional = _objective.__name__  # the model's: see model.SEES


class Enumerated(NamedTuple):
    """One stochastic pass of a conditional model over all labels, with what evaluation reads of a ``Draw``."""

    log_w: jax.Array  # B    an importance weight for p(x)
    log_px: jax.Array  # B   of over_labels
    kl: jax.Array  # Bx1     of over_labels


def enumerated(model, params, x_BxHxWxC, keys_B):
    r"""One :class:`Enumerated` pass: the bound U(x) = log_px − kl of :func:`m2`, and the weight

    .. math:: w = \sum_y p(y)\, \frac{p(x|y,z_y)\, p(z_y)}{q(z_y|x,y)}, \qquad z_y \sim q(z|x,y)

    E[w] = p(x), since each term's expectation is p(x, y). So the log of a mean of K weights is a lower bound on
    log p(x) that rises to it with K (Burda et al. 2016, arXiv:1509.00519, eq. 8). q(y|x) is not in it: a classifier
    that is sure and wrong costs U, not this bound.
    """
    d = jax.vmap(lambda y: model.draw(params, x_BxHxWxC, keys_B, y=y))(jnp.arange(model.classes))
    log_q_BxY = jax.nn.log_softmax(model.classify(params, x_BxHxWxC))
    log_px, kl = over_labels(log_q_BxY, d.log_px, d.kl.sum(-1))
    log_w = jax.nn.logsumexp(d.log_w, axis=0) - math.log(model.classes)
    return Enumerated(log_w, log_px, kl[:, None])
