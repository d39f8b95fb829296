"""A generative model as classifier: p(y|x) by Bayes' rule from a bound on log p(x|y) of every class."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data import evaluation
from vae_jax.distributions import example_keys, sample_keys
from vae_jax.evaluate import likelihood, recognition
from vae_jax.train import program as compile_lib


def label_bounds(model, params, x_BxHxWxC, keys_KxB):
    """The importance-weighted bound on log p(x|y) of every label from K draws, BxY, in nats; labels share noise."""

    def bound(y):
        return jax.nn.logsumexp(model.draw(params, x_BxHxWxC, keys_KxB, y).log_w, axis=0) - np.log(
            len(keys_KxB)
        )

    return jax.vmap(bound, out_axes=1)(jnp.arange(model.classes))


def class_evidence(c, model, params, split, levels, mesh, key, *, k):
    r"""Bounds on log p(x|y) for every image of a split and every label, NxY, in nats:

    .. math:: \log \tfrac1K \sum_{k=1}^{K} \frac{p(x|y,z_k)\, p(z_k)}{q(z_k|x,y)}, \quad z_k \sim q(z|x,y)

    (Burda et al. 2016, arXiv:1509.00519, eq. 8, given y). Bayes' rule with uniform p(y) is a softmax over Y, and the
    logsumexp over Y less log Y is log p(x), by which an image that no class explains can be rejected (Schott et al.
    2018, arXiv:1805.09190). Labels share their noise, which is keyed by example, so the figures depend on neither
    the batch size nor the devices.

    Of pixels drawn anew at each step, x is their mean (``evaluation.seen``). Bernoulli log p(x|y,z) is linear in x, and
    the logsumexp convex, so this bounds E log p(x'|y) over draws x' of the image: Bayes' rule on all of them at once.
    """
    to_x = (evaluation.seen if model.likelihood.data == "binary" else evaluation.inputs)(c, levels)

    def program(params, batch):
        keys_KxB = sample_keys(example_keys(key, batch["id"]), jnp.arange(k))
        return {"log_pxy": label_bounds(model, params, to_x(batch), keys_KxB)}

    images, _ = likelihood.call_size(model, mesh, k)
    run = compile_lib.over_batches(program, mesh)
    rows = [(run(params, batch), real) for batch, real in evaluation.batches(split, images, mesh)]
    return likelihood.gather(rows)["log_pxy"]


def kept_accuracy(log_pxy_NxY, label_N, share=0.9):
    """Accuracy of Bayes' rule on the ``share`` of the images that the model finds most probable; p(y) is uniform."""
    _, accuracy_N = rejection(log_pxy_NxY, label_N)
    return float(accuracy_N[max(1, round(share * len(label_N))) - 1])


def rejection(log_pxy_NxY, label_N):
    """``recognition.rejection`` of Bayes' rule, the least probable images rejected first; p(y) is uniform."""
    return recognition.rejection(
        np.logaddexp.reduce(log_pxy_NxY, axis=1), log_pxy_NxY.argmax(1) == label_N
    )
