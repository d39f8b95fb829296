"""Class-incremental learning with a VAE for each class, and Bayes' rule by the number of samples.

    python -m vae_jax.evaluate.incremental --workdir=runs/per_class_mnist --samples=1,10,100 \
        --baseline=configs/mnist_cnn.py

van de Ven et al. 2021 (arXiv:2104.10093). In a run of ``model.name=per_class`` the parameters of a
class meet images of this class alone, so to train all classes side by side is to train them one
after the other with nothing kept; what has been learnt after t classes is the first t VAEs, and
Bayes' rule among these is the classifier. ``--baseline`` is a config whose classifier is fine-tuned
on one class after another (:func:`fine_tuned`). ``--unit_gaussian`` weighs samples as the authors'
code does (:func:`with_unit_gaussian`). Writes incremental.json into the run's folder.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import flags
from ml_collections import ConfigDict

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data, models
from vae_jax.config import UserError
from vae_jax.data import evaluation
from vae_jax.distributions import example_keys, sample_keys
from vae_jax.evaluate import command, likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.models.core import Draw, Model, Params
from vae_jax.train import program as program_lib
from vae_jax.train import step

CHUNK = 100  # samples of an image and class in one call, at most


def accuracies(log_pxy_NxY: np.ndarray, label_N: np.ndarray) -> np.ndarray:
    """Accuracy after each class is learnt, shape Y: of images of the first t classes among these.

    Labels are uniform a priori, so the highest log p(x|y) is Bayes' rule.
    """
    values = []
    for t in range(1, log_pxy_NxY.shape[1] + 1):
        known = label_N < t
        right = log_pxy_NxY[known, :t].argmax(1) == label_N[known]
        values.append(right.mean() if len(right) else np.nan)
    return np.array(values)


def evidence(
    subject: Subject, split: data.Split, key: jax.Array, samples: Sequence[int]
) -> dict[int, np.ndarray]:
    r"""{S: bounds on log p(x|y), NxY in nats}, of one pass: the first S samples for each S.

    .. math:: \log \tfrac1S \sum_{s=1}^{S} \frac{p(x|y,z_s)\, p(z_s)}{q(z_s|x,y)},
              \quad z_s \sim q(z|x,y)

    van de Ven et al. 2021, eq. 5. As in ``generative.class_evidence``, x of pixels drawn anew in
    training is their mean: the binary cross-entropy of the grey image. Memory does not grow with S.
    """
    model = subject.model
    binary = model.likelihood.data == "binary"
    reader = evaluation.seen if binary else evaluation.inputs
    to_x = reader(subject.config, subject.levels)

    def program(
        params: dict, batch: dict, first: int, sum_BxY: jax.Array, mask_K: jax.Array
    ) -> jax.Array:
        x = to_x(batch)
        numbers = first + jnp.arange(len(mask_K))
        keys_KxB = sample_keys(example_keys(key, batch["id"]), numbers)

        def add(y: jax.Array, sum_B: jax.Array) -> jax.Array:
            log_w_KxB = model.draw(params, x, keys_KxB, y).log_w
            kept = jnp.where(mask_K[:, None], log_w_KxB, -jnp.inf)
            return jnp.logaddexp(sum_B, jax.nn.logsumexp(kept, axis=0))

        return jax.vmap(add, (0, 1), 1)(jnp.arange(model.classes), sum_BxY)

    size = min(CHUNK, max(samples))
    images, _ = likelihood.call_size(model, subject.mesh, size)
    run = program_lib.over_batches(program, subject.mesh)
    rows = []
    for batch, real in evaluation.batches(split, images, subject.mesh):
        total = np.full((len(batch["id"]), model.classes), -np.inf, np.float32)
        marks = {}
        first = 0
        for upto in sorted(samples):
            while first < upto:
                count = min(size, upto - first)
                mask_K = np.arange(size) < count
                total = run(subject.params, batch, first, total, mask_K)
                first += count
            marks[str(upto)] = total
        rows.append((marks, real))
    sums = likelihood.gather(rows)
    return {upto: sums[str(upto)] - np.log(upto) for upto in samples}


def with_unit_gaussian(model: Model) -> Model:
    """The model whose importance weights have log N(x; E[x|y, z], I) in the place of its own log p.

    So the published figures were computed, of nets that were trained by cross-entropy (the
    authors' code, models/vae.py, ``estimate_loglikelihood_single``).
    """

    def draw(params: Params, x: jax.Array, keys: jax.Array, y: jax.Array | None = None) -> Draw:
        d = model.draw(params, x, keys, y)
        out = model.decode(params, d.z.reshape(-1, d.z.shape[-1]), y)
        mean = model.likelihood.mean(out).reshape(*d.log_px.shape, *x.shape[1:])
        log_px = jax.scipy.stats.norm.logpdf(x, mean).sum((-3, -2, -1))
        return d._replace(log_px=log_px, log_w=d.log_w - d.log_px + log_px)

    return model._replace(draw=draw)


def fine_tuned(c: ConfigDict, dataset: data.Dataset, steps: int, rate: float = 1e-3) -> np.ndarray:
    """Accuracy after each class, shape Y, of a classifier trained on one class after another.

    ``steps`` of Adam for each class, on batches of ``c.batch`` of its images alone; nothing is kept
    but the parameters. Answers are among the classes so far, as those of :func:`accuracies`.
    """
    model = models.build_for(c, dataset)
    if model.classify is None:
        raise UserError(f"baseline={c.objective.name}: want a config with a classifier")
    to_x = evaluation.seen(c, dataset.levels)
    adam = optax.adam(rate)

    @program_lib.simple
    def update(
        params: dict, state: optax.OptState, batch: dict, label: int
    ) -> tuple[dict, optax.OptState]:
        def loss(params: dict) -> jax.Array:
            log_p = jax.nn.log_softmax(model.classify(params, to_x(batch)))
            return -log_p[:, label].mean()

        change, state = adam.update(jax.grad(loss)(params), state)
        return optax.apply_updates(params, change), state

    @program_lib.simple
    def logits(params: dict, batch: dict) -> jax.Array:
        return model.classify(params, to_x(batch))

    params = program_lib.simple(model.init)(step.stream(c.seed, "init"))
    state = program_lib.simple(adam.init)(params)
    values = []
    for y in range(model.classes):
        rows = np.flatnonzero(dataset.train.label == y)
        rng = np.random.default_rng((c.seed, y))
        for _ in range(steps):
            index = rng.choice(rows, c.batch)
            batch = {"image": jnp.asarray(dataset.train.image[index]), "id": jnp.asarray(index)}
            params, state = update(params, state, batch, y)
        parts = []
        for index, mask in data.eval_batches(len(dataset.test.label), c.eval.batch):
            batch = {"image": jnp.asarray(dataset.test.image[index]), "id": jnp.asarray(index)}
            parts.append(np.asarray(logits(params, batch))[mask])
        values.append(accuracies(np.concatenate(parts), dataset.test.label)[y])
    return np.array(values)


def measure(subject: Subject, samples: Sequence[int], images: int | None = None) -> dict[str, Any]:
    """{'accuracy': {S: of all classes}, 'by_classes': {S: after each class}, 'images'}."""
    if subject.config.model.name != "per_class":
        name = subject.config.model.name
        raise UserError(f"model.name={name}: classes share its nets; want a run of per_class")
    test = subject.data.test
    if images is not None:
        test = data.some(test, images)
    key = step.stream(subject.config.seed, "test")
    accuracy = {}
    by_classes = {}
    for upto, log_pxy in evidence(subject, test, key, samples).items():
        values = accuracies(log_pxy, test.label)
        accuracy[str(upto)] = float(values[-1])
        by_classes[str(upto)] = [float(value) for value in values]
    return {"images": len(test.image), "accuracy": accuracy, "by_classes": by_classes}


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    command.define(values)
    flags.DEFINE_list("samples", ["1", "10", "100"], "numbers S of samples", flag_values=values)
    flags.DEFINE_integer("images", 0, "test images; 0 = all", lower_bound=0, flag_values=values)
    flags.DEFINE_bool("unit_gaussian", False, "p(x|y, z) = N(E[x|y, z], I)", flag_values=values)
    flags.DEFINE_string("baseline", "", "config of a classifier", flag_values=values)
    flags.DEFINE_integer(
        "baseline_steps", 1000, "for each class", lower_bound=1, flag_values=values
    )


def run(argv: list[str]) -> int:
    """Measure the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    if not values.samples:
        raise UserError("samples=: want one or more, such as 1,10,100")
    for word in values.samples:
        if not word.isdecimal() or int(word) < 1:
            raise UserError(f"samples={word}: want whole numbers >= 1, such as 1,10,100")
    samples = sorted({int(word) for word in values.samples})
    subject = command.subject_of(values, "incremental.json")
    if values.unit_gaussian:
        subject = dataclasses.replace(subject, model=with_unit_gaussian(subject.model))
    baseline = config_lib.load(values.baseline) if values.baseline else None
    content = measure(subject, samples, values.images or None)
    if baseline is not None:
        tuned = fine_tuned(baseline, subject.data, values.baseline_steps)
        content["fine_tuned"] = [float(value) for value in tuned]
    command.write(values, "incremental.json", content)
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
