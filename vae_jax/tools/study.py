"""Methods x label budgets x seeds on one data set, as one page and one table.

    python -m vae_jax.tools.study --config=configs/study_digits.py --workdir=runs/study \\
        [--only=cnn,m2]

The same command continues a study that was stopped: a cell with a file in ``cells/`` is not run
again. With ``--only`` several processes may share the work of one workdir.

    runs/m2-100-0/      a run of train.py: the method, the budget (all: every label), the seed
    runs/m1/replica_0/  a run of one label set for all seeds is one program, a replica for each
    splits/100-0.json   which examples had labels, and checksums of the images
    cells/              metrics of each method, budget and seed: the test set, read once
    report/             index.html, table.md, table.csv, table.tex; written after every tenth cell
    report/compare.html the runs of the best methods side by side; written at the end

A seed determines the parameters, the noise, the order of the batches and, within a budget, which
examples have labels. The last checkpoint is evaluated; none is selected. Validation labels are part
of the budget and select the setting of a probe.
"""

import json
import math
import os
import time
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.evaluate import classification, generative, probes
from vae_jax.evaluate.run import forward
from vae_jax.evaluate.subject import Subject
from vae_jax.mesh import store
from vae_jax.tools import assess, compare, results, study_compare
from vae_jax.tools import study_page as tabulate
from vae_jax.tools.study_plan import Cell, Method, Run, Study, Trained, cells, check, fits, needed
from vae_jax.train import checkpoint, log, loop, step
from vae_jax.train import flops as count
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

__all__ = ["Cell", "Method", "Run", "Study", "cells", "check", "fits", "run"]
PAGE_EVERY = 10  # cells between two pages
Say = Callable[[str], None]
Rows = dict[str, dict | None]  # name of a cell → its row; None: not done


def train(cell: Cell, root: str, study: Study, say: Say) -> bool:
    """Train what a cell needs and is not trained; False where a signal came."""
    for folder, c, together in needed(cell, root, study):
        saved = checkpoint.steps(folder)
        if together is None or (saved and saved[-1] >= c.steps):
            continue
        home = folder
        if config_lib.replica_count(together):
            home = os.path.dirname(folder)
        say(f"training {home}")
        if not loop.train(together, home, say=say):
            return False
    return True


def restore(trained: Trained) -> tuple[workdir.Setup, dict, np.ndarray]:
    """(setup, parameters, cost of training: [seconds, images, floating-point operations])."""
    folder, c, together = trained
    if together is None:
        setup = workdir.setup(c)
        state, _ = compile_lib.init(c, setup.model, setup.mesh, setup.dataset)
        return setup, step.averaged(state), np.zeros(3)
    setup, state, meta = workdir.restore(folder, "latest", say=_silent)
    replicas = max(1, config_lib.replica_count(together))
    seconds = meta["latest"]["clock"]["seconds"] / replicas
    flops = count.flops(count.traced(setup.c, setup.model, setup.mesh, setup.dataset))
    images = c.batch + c.data.labelled_batch
    return setup, step.averaged(state), np.array([seconds, c.steps * images, c.steps * flops])


def _silent(_: str) -> None:
    pass


class Reading(NamedTuple):
    """What a cell says of the N test images."""

    logits: np.ndarray | None  # NxY; None where the method gives no probabilities
    predicted: np.ndarray  # N
    metrics: dict[str, object]  # further ones


def read(
    cell: Cell,
    study: Study,
    setup: workdir.Setup,
    params: dict,
    dataset: data.Dataset,
) -> Reading:
    """Classify the test images: all that a cell asks of the test set."""
    c = setup.c
    test = dataset.test
    method = study.methods[cell.method]
    if method.read == "classifier":
        out = forward(Subject(c, setup.model, params, dataset, setup.mesh))(test)
        return Reading(out["logits"], out["logits"].argmax(1), {})
    if method.read == "bayes":
        key = step.stream(cell.seed, "test")
        subject = Subject(c, setup.model, params, dataset, setup.mesh)
        log_pxy = generative.class_evidence(subject, test, key, k=study.iw_k)
        kept = generative.kept_accuracy(log_pxy, test.label)
        return Reading(log_pxy, log_pxy.argmax(1), {"kept_accuracy": kept})
    return _read_probe(method.read, setup, params, dataset)


def _read_probe(name: str, setup: workdir.Setup, params: dict, dataset: data.Dataset) -> Reading:
    where, _, probe = name.partition(":")
    outputs = forward(Subject(setup.c, setup.model, params, dataset, setup.mesh))

    def features(split: data.Split) -> np.ndarray:
        if where == "pixels":
            pixels = np.asarray(split.image[:], np.float32)
            return pixels.reshape(len(pixels), -1) / (dataset.levels - 1)
        out = outputs(split)
        return out["mu"].astype(np.float32)

    examples = []
    for split in (dataset.train, dataset.validation):
        part = data.labelled(split)
        if len(part.label):
            examples.append((features(part), part.label))
        else:
            examples.append(None)
    predict, setting = probes.fit(probe, *examples)
    predicted, p_NxY = predict(features(dataset.test))
    logits = None
    if p_NxY is not None:
        with np.errstate(divide="ignore"):
            logits = np.log(p_NxY)
    return Reading(logits, predicted, {"setting": setting})


def figures(reading: Reading, label_N: np.ndarray, classes: int) -> tuple[dict, np.ndarray]:
    """(metrics, confusion matrix YxY) of a cell.

    A metric is None without probabilities, or where a wrong answer had probability 1.
    """
    predicted = reading.predicted
    counts = classification.confusion(label_N, predicted, classes)
    metrics: dict[str, Any] = dict.fromkeys(("cross_entropy_nats", "ece", "brier"))
    if reading.logits is not None:
        metrics |= classification.figures(reading.logits, label_N)[0]
    metrics["accuracy"] = float((predicted == label_N).mean())
    metrics["macro_f1"] = classification.macro_f1(counts)
    for name, value in metrics.items():
        if value is not None and not math.isfinite(value):
            metrics[name] = None
    return metrics | reading.metrics, counts


def save_split(root: str, cell: Cell, dataset: data.Dataset) -> None:
    """Write which examples have labels.

    Raises:
      UserError: the file is there and holds other examples or other images.
    """
    splits = {"train": dataset.train, "validation": dataset.validation, "test": dataset.test}
    images = {}
    for name, split in splits.items():
        pixels = np.ascontiguousarray(split.image[:])
        images[name] = [len(split.image), zlib.crc32(pixels)]
    content: dict[str, Any] = {"images": images}
    if cell.labels:
        for name in ("train", "validation"):
            content[name] = np.flatnonzero(splits[name].label >= 0).tolist()
    seed = cell.seed if cell.labels else 0
    path = os.path.join(root, "splits", f"{cell.labels or 'all'}-{seed}.json")
    if not os.path.exists(path):
        checkpoint.write_json(path, content)
        return
    with open(path) as file:
        if json.load(file) != content:
            wanted = "want another workdir"
            raise UserError(f"{path}: the data are others than when this study began; {wanted}")


def perform(cell: Cell, root: str, study: Study, say: Say) -> dict | None:
    """Train, read the test set, write the cell's file; None where a signal came."""
    began = time.perf_counter()
    if not train(cell, root, study, say):
        return None
    runs = [restore(run) for run in needed(cell, root, study)]
    setup, params, _ = runs[-1]
    seconds, images, flops = sum(cost for _, _, cost in runs)
    c = setup.c.data.copy_and_resolve_references()
    c.labels = cell.labels
    c.labels_seed = cell.seed if cell.labels else 0
    dataset = setup.dataset
    if c.labels != setup.c.data.labels:
        dataset = data.load(c)
    save_split(root, cell, dataset)
    start = time.perf_counter()
    reading = read(cell, study, setup, params, dataset)
    metrics, counts = figures(reading, dataset.test.label, len(dataset.classes))
    row = {
        "method": cell.method,
        "labels": cell.labels,
        "seed": cell.seed,
        "figures": metrics,
        "confusion": counts.tolist(),
        "training_seconds": round(seconds, 2),
        "images_per_s": round(images / seconds) if seconds else None,
        "training_flops": int(flops),
        "reading_seconds": round(time.perf_counter() - start, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "device": results.device(),
        "commit": results.commit(),
        "config": config_lib.to_json(cell.config),
    }
    checkpoint.write_json(_path(root, cell), row)
    return row


def _path(root: str, cell: Cell) -> str:
    return os.path.join(root, "cells", f"{cell.name}.json")


def done(cell: Cell, root: str) -> dict | None:
    """The row of a cell that is done, or None.

    Raises:
      UserError: it is of another config.
    """
    path = _path(root, cell)
    try:
        with open(path) as file:
            row = json.load(file)
    except FileNotFoundError:
        return None
    old = config_lib.from_json(row["config"])
    changed = config_lib.differences(old, cell.config, workdir.FREE)
    if changed:
        wanted = "remove it, or another workdir"
        raise UserError(f"{path}: of another config ({'; '.join(changed)}); {wanted}")
    return row


def run(
    study: Study,
    root: str,
    *,
    only: Sequence[str] = (),
    data_dir: str = "",
    publish: str = "",
    say: Say = print,
) -> bool:
    """Do every cell that is not done, then write the page and the tables.

    The page is also written after every tenth cell.

    Returns:
      False where a signal stopped it.
    Raises:
      UserError: the study has a wrong name, or a file in ``root`` is of another study.
    """
    check(study)
    if study.counts != "labels":
        raise UserError(f"config={study.title}: want python -m vae_jax.tools.detection_study")
    study = ready(study, root, only, data_dir)
    for folder in ("runs", "splits", "cells"):
        os.makedirs(os.path.join(root, folder), exist_ok=True)
    table = cells(study, root)
    rows = {cell.name: done(cell, root) for cell in table}
    mine = [cell for cell in table if not only or cell.method in only]
    say(f"{sum(rows[cell.name] is not None for cell in mine)} of {len(mine)} cells are done")
    performed = 0
    for i, cell in enumerate(mine):
        if rows[cell.name] is None:
            rows[cell.name] = done(cell, root)  # by another process, since
        if rows[cell.name] is not None:
            continue
        rows[cell.name] = perform(cell, root, study, say)
        if rows[cell.name] is None:
            say("stopped; the same command goes on from there")
            return False
        say(f"cell {i + 1} of {len(mine)}: {_progress(study, cell, mine[i + 1 :], rows)}")
        performed += 1
        if performed % PAGE_EVERY == 0:
            write_page(study, root, table, rows, say)
    finished = write_page(study, root, table, rows, say, beside=performed > 0)
    if publish:
        _publish(publish, study, finished)
    return True


def ready(study: Study, root: str, only: Sequence[str], data_dir: str) -> Study:
    """The study with its data in ``data_dir``, where that is given.

    Raises:
      UserError: ``root`` is in a store, or ``only`` has a method that is not there.
    """
    if store.remote(root):
        wanted = "a study wants a folder of a disk; each of its runs alone may be in a store"
        raise UserError(f"workdir={root}: {wanted}")
    for name in set(only) - set(study.methods):
        raise UserError(f"only={name}: {config_lib.nearest(name, study.methods)}")
    if not data_dir:
        return study
    return study._replace(runs={n: _at(r, data_dir) for n, r in study.runs.items()})


def _progress(study: Study, cell: Cell, later: list[Cell], rows: Rows) -> str:
    row = rows[cell.name]
    left = sum(_expected(other, rows) for other in later if rows[other.name] is None)
    title = study.methods[cell.method].title
    budget = f"{cell.labels or 'all'} labels, seed {cell.seed}"
    accuracy = f"{row['figures']['accuracy']:.2%}  {row['seconds']:.0f} s"
    return f"{title}, {budget}: {accuracy}; about {left / 60:.0f} min left"


def write_page(
    study: Study,
    root: str,
    table: list[Cell],
    rows: Rows,
    say: Say,
    *,
    beside: bool = False,
) -> list[dict]:
    """Write the page of all cells that are done, by other processes too; returns their rows.

    Args:
      beside: write the page of the runs side by side too, which loads some of them.
    """
    finished = []
    for cell in table:
        row = rows[cell.name] or done(cell, root)
        if row is not None:
            finished.append(row)
    folder = os.path.join(root, "report")
    if beside:
        study_compare.write(study, root, table, finished, command=assess.command())
    path = tabulate.write(folder, study, finished, command=assess.command())
    compare.write_index(os.path.join(root, "runs"))
    say(f"{len(finished)} of {len(table)} cells: {path}")
    return finished


def _publish(path: str, study: Study, finished: list[dict]) -> None:
    results.write(
        path,
        command=assess.command(),
        config=None,
        seed=list(study.seeds),
        seconds=sum(row["seconds"] for row in finished),
        figures=tabulate.published(study, finished),
    )
    log.replace(os.path.splitext(path)[0] + ".png", tabulate.picture(study, finished))


def _at(run: Run, data_dir: str) -> Run:
    """The run with its data in another folder."""

    def located(labels: int) -> config_lib.ConfigDict:
        c = run.config(labels)
        c.data.dir = data_dir
        return c

    return run._replace(config=located)


def _expected(cell: Cell, rows: Rows) -> float:
    """Seconds that a cell is likely to take: the mean of its method's so far, or of all."""
    finished = [row for row in rows.values() if row is not None]
    own = [row["seconds"] for row in finished if row["method"] == cell.method]
    return float(np.mean(own or [row["seconds"] for row in finished]))


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""

    def text(name: str, default: str | None, words: str) -> None:
        flags.DEFINE_string(name, default, words, flag_values=values)

    text("config", "configs/study_digits.py", "a file with get_study()")
    text("workdir", None, "folder of the study; one that holds it goes on")
    flags.DEFINE_list("only", [], "names of methods; the others wait", flag_values=values)
    text("results", "", "also write figures and picture: results/NAME.json, NAME.png")
    text("data_dir", "", "where TFDS data is")


def main(
    argv: list[str],
    define: Callable[[flags.FlagValues], None] = define,
    run: Callable[..., bool] = run,
) -> int:
    """Run the study that the flags name; returns the exit code."""
    values, pairs = flags_lib.parse(argv, define)
    if pairs:
        field = pairs[0][0]
        raise UserError(f"{field}: a study's configs are in its page; it takes no --config.*")
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    study = config_lib.load(values.config, "get_study")
    compile_lib.use_cache()
    finished = run(
        study,
        values.workdir,
        only=values.only,
        data_dir=values.data_dir,
        publish=values.results,
    )
    if finished:
        return 0
    return loop.STOPPED


if __name__ == "__main__":
    flags_lib.main(main)
