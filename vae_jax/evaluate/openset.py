"""Open-set recognition: six known classes, four unknown ones, five fixed splits.

    python -m vae_jax.evaluate.openset --config=configs/mnist.py --workdir=runs/openset_mnist \
        --data_dir=~/data

Trains the config once for each split, on its known classes only, into WORKDIR/split_0, …, and goes
on where it was stopped. Each run is judged on the test images of all classes: closed accuracy, the
share of known images that are classified rightly among the known classes, and the AUROC of each OOD
score of ``ood_benchmark``, images of unknown classes being the positive ones. Writes
WORKDIR/openset.json with the mean and standard deviation over the splits. Any config of a data set
of ten classes with a classifier will do, such as configs/mnist_cnn.py for the CNN without a VAE.

    python -m vae_jax.evaluate.openset --workdir=runs/cgdl_mnist --noise

judges one run that knows all its classes against as many images that are none: noise, and test
images on noise. The figure is macro F1 over the classes and "unknown", as CROSR and CGDL count it
(Sun et al. 2020, arXiv:2003.08823), at the threshold that validation images give.
Writes WORKDIR/openset_noise.json.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from ml_collections import ConfigDict

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import predict
from vae_jax.evaluate import command, detection, ood_benchmark, tasks
from vae_jax.evaluate.subject import Subject, restored
from vae_jax.evaluate.trained import why_unclassified
from vae_jax.train import checkpoint, log, loop, program
from vae_jax.train import run as run_lib

SPLITS = "configs/openset_splits.json"
CLASSES = 10
# Whose list of splits a data set takes: the same ten classes, or another set in the same format.
LISTS = {
    "digits": "mnist",
    "mnist": "mnist",
    "fashion_mnist": "mnist",
    "kmnist": "mnist",
    "cifar10": "cifar10",
    "cifar10_20k": "cifar10",
}


def checksum(known: Mapping[str, Sequence[Sequence[int]]]) -> str:
    """SHA-256 of the lists as JSON without spaces, names in alphabetical order."""
    text = json.dumps(known, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def read_splits(name: str, path: str = SPLITS) -> list[tuple[int, ...]]:
    """The known classes of each split of the data set ``name``, in rising order.

    Raises:
      UserError: there are none for it, the file is missing, or it is not what its checksum says.
    """
    try:
        with open(path) as file:
            content = json.load(file)
        known = content["known"]
        good = checksum(known) == content["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"splits={path}: cannot be read ({error})") from None
    if not good:
        raise UserError(f"splits={path}: is not what its sha256 says; want the file as it was")
    if LISTS.get(name) not in known:
        raise UserError(f"data.name={name}: has no open-set splits; want {', '.join(LISTS)}")
    return [tuple(sorted(classes)) for classes in known[LISTS[name]]]


def unknown_of(known: Sequence[int]) -> tuple[int, ...]:
    """The classes that are not known."""
    return tuple(y for y in range(CLASSES) if y not in known)


def config_of(c: ConfigDict, known: Sequence[int]) -> ConfigDict:
    """The config with the unknown classes held out of training, validation and test."""
    c = c.copy_and_resolve_references()
    c.data.hold_out = unknown_of(known)
    return c


def unknown_images(c: ConfigDict) -> data.Split:
    """Test images of the held-out classes.

    ``Dataset.unseen`` has those of training too, which the protocol does not count.
    """
    whole = c.data.copy_and_resolve_references()
    whole.hold_out = ()
    whole.labels = 0
    whole.labelled_batch = 0
    test = data.load(whole).test
    return data.pick(test, np.flatnonzero(np.isin(test.label, c.data.hold_out)))


def judge(subject: Subject, images: int, without: Sequence[str] = ("regret",)) -> dict[str, float]:
    """{'closed_accuracy', SCORE + '_auroc'} of one split; ``images`` of each side at most."""
    test = data.some(subject.data.test, images)
    ref = ood_benchmark.reference(subject, without=without)
    logits = ref.forward(subject.data.test)["logits"]
    figures = {"closed_accuracy": float((logits.argmax(1) == subject.data.test.label).mean())}
    inside = ood_benchmark.scores(ref, test)
    outside = ood_benchmark.scores(ref, data.some(unknown_images(subject.config), images))
    for score, inside_N in inside.items():
        figures[f"{score}_auroc"] = detection.detection(inside_N, outside[score])["auroc"]
    return figures


def summary(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """{figure: mean and standard deviation over the splits}."""
    means = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        means[name] = {"mean": float(np.mean(values)), "sd": float(np.std(values, ddof=1))}
    return means


def check(subject: Subject) -> None:
    """Raise where the run does not classify."""
    why = why_unclassified(subject)
    if why:
        objective = subject.config.objective.name
        raise UserError(f"objective.name={objective}: {why}; want one that learns labels")


def measure(c: ConfigDict, folder: str, splits: Sequence[Sequence[int]], images: int) -> dict:
    """Train and judge every split; the content of openset.json."""
    if c.classifier.name == "none":
        raise UserError("classifier.name=none: open-set recognition classifies; want mlp")
    log.check_writable(os.path.join(folder, "openset.json"))
    setup = run_lib.setup(config_of(c, splits[0]))
    fresh, _ = program.init(setup.c, setup.model, setup.mesh, setup.dataset)
    check(Subject.of(setup, fresh.params))
    rows = []
    for i, known in enumerate(splits):
        workdir = os.path.join(folder, f"split_{i}")
        if not loop.train(config_of(c, known), workdir):
            raise UserError(f"workdir={workdir}: was stopped; give the same command to go on")
        row: dict[str, Any] = {"known": list(known)}
        rows.append(row | judge(restored(workdir, c.data.dir), images))
    figures = []
    for row in rows:
        figures.append({name: value for name, value in row.items() if name != "known"})
    content = {"splits": rows, "summary": summary(figures)}
    checkpoint.write_json(os.path.join(folder, "openset.json"), content)
    return content


# --- Noise as the unknown ---


def noise_sets(image_NxHxWxC: np.ndarray, levels: int, seed: int = 0) -> dict[str, np.ndarray]:
    """{'noise': uniform in every value, 'on_noise': the images added to such noise}."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, levels, image_NxHxWxC.shape)
    added = np.minimum(image_NxHxWxC + noise, levels - 1)
    return {"noise": noise.astype(np.uint8), "on_noise": added.astype(np.uint8)}


def macro_f1(label_N: np.ndarray, predicted_N: np.ndarray) -> float:
    """The mean F1 over the classes in ``label``, "unknown" being one of them."""
    values = []
    for y in np.unique(label_N):
        hits = np.sum((label_N == y) & (predicted_N == y))
        values.append(2 * hits / (np.sum(label_N == y) + np.sum(predicted_N == y)))
    return float(np.mean(values))


def either(scores: ood_benchmark.Scores, validation: ood_benchmark.Scores) -> np.ndarray:
    """The rule of CGDL as one score: unusual by ``class_kl`` or by ``reconstruction``, N."""
    levels = np.linspace(0, 1, 1001)
    names = ("class_kl", "reconstruction")
    quantiles = {name: np.quantile(validation[name], levels) for name in names}
    return 1 - predict.smallest_rank(scores, quantiles)


def judge_noise(
    subject: Subject, images: int, rate: float = 0.05, without: Sequence[str] = ("regret",)
) -> dict[str, dict[str, float]]:
    """{set: {score: macro F1}}; ``rate``: of false alarms, for the thresholds."""
    check(subject)
    ref = ood_benchmark.reference(subject, without=without)
    test = data.some(subject.data.test, images)
    unknown = len(subject.data.classes)
    validation = ood_benchmark.scores(ref, data.some(subject.data.validation, images))

    def scored(split: data.Split) -> tuple[ood_benchmark.Scores, np.ndarray]:
        scores = ood_benchmark.scores(ref, split)
        if "class_kl" in scores:
            scores["either"] = either(scores, validation)
        return scores, ref.forward(split)["logits"].argmax(1)

    inside, known = scored(test)
    if "class_kl" in validation:
        validation["either"] = either(validation, validation)
    figures: dict[str, dict[str, float]] = {}
    for name, image in noise_sets(test.image, subject.levels).items():
        outside, guess = scored(test._replace(image=image, label=None))
        label = np.concatenate([test.label, np.full(len(guess), unknown)])
        figures[name] = {}
        for score, inside_N in inside.items():
            limit = detection.threshold(validation[score], rate)
            alarm = np.concatenate([inside_N, outside[score]]) > limit
            predicted = np.where(alarm, unknown, np.concatenate([known, guess]))
            figures[name][score] = macro_f1(label, predicted)
    return figures


def run_noise(values: flags.FlagValues) -> int:
    """``--noise``; the exit code."""
    subject = command.subject_of(values, "openset_noise.json")
    figures = judge_noise(subject, values.images)
    command.write(values, "openset_noise.json", figures)
    return 0


# --- The command ---


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    flags.DEFINE_string("config", None, "config file", flag_values=values)
    command.define(values)
    flags.DEFINE_boolean("noise", False, "judge the run of --workdir on noise", flag_values=values)
    flags.DEFINE_string("splits", SPLITS, "file of the splits", flag_values=values)
    flags.DEFINE_integer(
        "images", tasks.IMAGES, "of each side, at most", lower_bound=20, flag_values=values
    )


def run(argv: list[str]) -> int:
    """Measure what the flags name; the exit code."""
    values, pairs = flags_lib.parse(argv, define)
    if values.noise:
        for given in (*(field for field, _ in pairs), *filter(None, [values.config])):
            raise UserError(f"noise: judges a run as it is, not {given}; want --workdir alone")
        return run_noise(values)
    for name in ("config", "workdir"):
        if not values[name].value:
            raise UserError(f"{name}: want --{name}=PATH")
    c = flags_lib.apply(config_lib.load(values.config), pairs)
    if values.data_dir:
        c.data.dir = values.data_dir
    splits = read_splits(c.data.name, values.splits)
    content = measure(c, values.workdir, splits, values.images)
    for name, figure in content["summary"].items():
        print(f"{name:<24} {figure['mean']:.4f} ± {figure['sd']:.4f}")
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
