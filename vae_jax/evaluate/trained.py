"""Whether an objective trains the classifier at all."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import data
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import hosts
from vae_jax.train import program, step

EXAMPLES = 8


def why_unclassified(subject: Subject) -> str | None:
    """None, or why the run classifies nothing."""
    if subject.data.test.label is None:
        return "the data has no labels"
    if subject.model.classify is None:
        return "the model has no classifier"
    if not trains_classifier(subject):
        return "the objective does not train the classifier"
    return None


def trains_classifier(subject: Subject) -> bool:
    """False where the loss has a gradient of exactly zero in the classifier's parameters.

    An objective that reports ``cross_entropy`` with a weight is believed; of others the gradient is
    computed for a few labelled training images. A classifier without parameters of its own (Bayes'
    rule on the prior) counts as trained.
    """
    c = subject.config
    if "classifier" not in subject.params:
        return True
    names = step.check(c, subject.model, subject.data, subject.params)
    if "cross_entropy" in names and c.objective.get("gamma", 1.0):
        return True
    split = data.labelled(subject.data.train)
    rows = np.arange(min(EXAMPLES, len(split.image)))
    batch = {"image": split.image[rows], "label": split.label[rows], "id": rows}
    terms = step.Objective(c, subject.model, subject.data)
    key = step.stream(c.seed, "trained")

    def loss(classifier: dict, others: dict, batch: dict[str, jax.Array]) -> jax.Array:
        parts = step.metrics_of(terms(others | {"classifier": classifier}, batch, key))
        return sum(jnp.mean(part["loss"]) for part in parts)

    gradient = program.simple(jax.grad(loss))
    leaves = jax.tree.leaves(gradient(subject.params["classifier"], dict(subject.params), batch))
    return any(np.any(hosts.fetch(leaf)) for leaf in leaves)
