"""A generative model as classifier: p(y|x) by Bayes' rule from a bound on log p(x|y)."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax.data import Split, evaluation
from vae_jax.distributions import example_keys, sample_keys
from vae_jax.evaluate import likelihood, recognition
from vae_jax.evaluate.subject import Subject
from vae_jax.models import Model


def label_bounds(
    model: Model, params: dict, x_BxHxWxC: jax.Array, keys_KxB: jax.Array
) -> jax.Array:
    """Importance-weighted bounds on log p(x|y) from K draws, BxY, in nats; labels share noise."""

    def bound(y: jax.Array) -> jax.Array:
        log_w_KxB = model.draw(params, x_BxHxWxC, keys_KxB, y).log_w
        return jax.nn.logsumexp(log_w_KxB, axis=0) - np.log(len(keys_KxB))

    return jax.vmap(bound, out_axes=1)(jnp.arange(model.classes))


def class_evidence(subject: Subject, split: Split, key: jax.Array, *, k: int) -> np.ndarray:
    r"""Bounds on log p(x|y) for every image of a split and every label, NxY, in nats:

    .. math:: \log \tfrac1K \sum_{k=1}^{K} \frac{p(x|y,z_k)\, p(z_k)}{q(z_k|x,y)},
              \quad z_k \sim q(z|x,y)

    (Burda et al. 2016, arXiv:1509.00519, eq. 8, given y). Bayes' rule with uniform p(y) is a
    softmax over Y, and the logsumexp over Y less log Y is log p(x), by which an image that no class
    explains can be rejected (Schott et al. 2018, arXiv:1805.09190). Labels share their noise, which
    is keyed by example, so the result depends on neither the batch size nor the devices.

    Of pixels drawn anew at each step, x is their mean (``evaluation.seen``). Bernoulli log p(x|y,z)
    is linear in x, and the logsumexp convex, so this bounds E log p(x'|y) over draws x' of the
    image: Bayes' rule on all of them at once.
    """
    model = subject.model
    binary = model.likelihood.data == "binary"
    reader = evaluation.seen if binary else evaluation.inputs
    to_x = reader(subject.config, subject.levels)

    def program(params: dict, batch: dict) -> dict:
        keys_KxB = sample_keys(example_keys(key, batch["id"]), jnp.arange(k))
        return {"log_pxy": label_bounds(model, params, to_x(batch), keys_KxB)}

    images, _ = likelihood.call_size(model, subject.mesh, k)
    return likelihood.over_split(subject, program, split, images)["log_pxy"]


def kept_accuracy(log_pxy_NxY: np.ndarray, label_N: np.ndarray, share: float = 0.9) -> float:
    """Accuracy of Bayes' rule on the ``share`` of images of highest log p(x); uniform p(y)."""
    _, accuracy_N = rejection(log_pxy_NxY, label_N)
    return float(accuracy_N[max(1, round(share * len(label_N))) - 1])


def rejection(log_pxy_NxY: np.ndarray, label_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``recognition.rejection`` of Bayes' rule, lowest log p(x) rejected first; uniform p(y)."""
    log_px_N = np.logaddexp.reduce(log_pxy_NxY, axis=1)
    return recognition.rejection(log_px_N, log_pxy_NxY.argmax(1) == label_N)
