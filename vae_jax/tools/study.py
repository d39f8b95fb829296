"""Methods x label budgets x seeds on one data set, as one page and one table.

    python -m vae_jax.tools.study --config=configs/study_digits.py --workdir=runs/study [--only=cnn,m2]

The same command goes on with a study that was stopped: what has a file in ``cells/`` is done. With ``--only`` several
processes may share the work of one workdir.

    runs/m2-100-0/      a run as train.py makes it: the method, the budget (all: every label), the seed
    runs/m1/replica_0/  a run of one label set for all seeds is one program, a replica for each
    splits/100-0.json   which examples had labels, and checksums of the images
    cells/              one file of figures for each method, budget and seed: the test set, read once
    report/             index.html, table.md, table.csv, table.tex

A seed draws the parameters, the noise, the order of the batches and, within a budget, which examples have labels. The
last checkpoint is read, none is chosen; validation labels are part of the budget and choose the setting of a probe.
"""

import json
import math
import os
import time
import zlib
from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.evaluate import classification, generative, probes
from vae_jax.evaluate.run import forward
from vae_jax.mesh import store
from vae_jax.tools import assess, results
from vae_jax.tools import study_page as tabulate
from vae_jax.train import checkpoint, log, loop, step
from vae_jax.train import flops as count
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

READ = ("classifier", "bayes", *(f"{x}:{probe}" for x in ("pixels", "code") for probe in probes.PROBES))


class Run(NamedTuple):
    """Something to train."""

    config: Callable  # labels (0: all) → config; the study sets its seeds and its budget
    labels: bool = True  # False: it sees none, and one run serves all budgets
    steps: bool = True  # False: it is left as it begins
    begin: str = ""  # the name of a run without labels whose parameters it begins with


class Method(NamedTuple):
    """A row of the table: what is trained, and how its answer is read."""

    title: str
    run: str
    read: str = "classifier"  # one of READ: q(y|x) or p(y|z); Bayes' rule; a probe on pixels or on posterior means
    budgets: tuple = ()  # of the study's, those that it is asked for; () = all of them


class Study(NamedTuple):
    title: str
    runs: dict  # name → Run
    methods: dict  # name → Method
    budgets: tuple = (10, 100, 1000, 0)  # 0 = every label
    seeds: tuple = (0, 1, 2, 3, 4)
    detail: tuple = (100, 0)  # budgets with all figures, the others have accuracy
    iw_k: int = 50  # importance samples of Bayes' rule


class Cell(NamedTuple):
    """One method with one budget and one seed."""

    method: str
    labels: int
    seed: int
    folder: str  # of its run; '' where nothing is trained
    config: object  # of its run, which is this seed's of those trained together
    together: object  # the config that trains it, which may have replicas; None where nothing is trained

    @property
    def name(self):
        return f"{self.method}-{self.labels or 'all'}-{self.seed}"


def check(study):
    """Raise :class:`UserError` for what cannot be meant."""
    for name, method in study.methods.items():
        if method.run not in study.runs:
            raise UserError(f"methods.{name}: run={method.run}: {config_lib.nearest(method.run, study.runs)}")
        if method.read not in READ:
            raise UserError(f"methods.{name}: read={method.read}: {config_lib.nearest(method.read, READ)}")
        if set(method.budgets) - set(study.budgets):
            raise UserError(f"methods.{name}: budgets={method.budgets}: want some of {study.budgets}")
    for name, run in study.runs.items():
        if run.begin and (run.begin not in study.runs or study.runs[run.begin].labels):
            raise UserError(f"runs.{name}: begin={run.begin}: want the name of a run with labels=False")


def fits(c):
    """Whether the seeds of a config are trained in one program: the same examples have labels, and the device gains
    by it (a CPU loses by convolutions with a weight for each replica, and each by nets that see their label's rows)."""
    conv = "conv" in (c.encoder.name, c.decoder.name) and jax.default_backend() == "cpu"
    return not (c.data.labels or c.init_from or conv or c.objective.name == "apart")


def _folder(root, study, name, labels, seed):
    """(folder of the run of a seed, its own config, the config that trains it)."""
    run = study.runs[name]
    labels = labels if run.labels else 0
    c = run.config(labels)
    c.seed, c.data.labels, c.data.labels_seed = seed, labels, seed if labels else 0
    c.mesh.data = math.gcd(c.batch, c.data.labelled_batch, jax.device_count())
    if run.begin:
        c.init_from = _folder(root, study, run.begin, 0, seed)[0]
    if not run.steps:
        return "", c, None
    folder = os.path.join(root, "runs", f"{name}-{labels or 'all'}" if run.labels else name)
    if len(study.seeds) == 1 or not fits(c):
        return f"{folder}-{seed}", c, c
    together = c.copy_and_resolve_references()
    together.seed, together.mesh.data = study.seeds[0], math.gcd(len(study.seeds), jax.device_count())
    config_lib.replicate(together, "seed", study.seeds)
    return os.path.join(folder, f"replica_{study.seeds.index(seed)}"), c, together


def cells(study, root):
    """Every :class:`Cell`, budget by budget. Pixels with every label are the same for all seeds, so that is one."""
    found = []
    for labels in study.budgets:
        for name, method in study.methods.items():
            if labels not in (method.budgets or study.budgets):
                continue
            same = not labels and method.read.startswith("pixels")
            for seed in study.seeds[: 1 if same else None]:
                found.append(Cell(name, labels, seed, *_folder(root, study, method.run, labels, seed)))
    return found


def needed(cell, root, study):
    """(folder, config, config that trains it) of the run that a cell's begins with, if any, and of its own."""
    begin = study.runs[study.methods[cell.method].run].begin
    first = [_folder(root, study, begin, 0, cell.seed)] if begin else []
    return [*first, (cell.folder, cell.config, cell.together)]


def train(cell, root, study, say):
    """Train what a cell needs and is not trained; False where a signal came."""
    for folder, c, together in needed(cell, root, study):
        saved = checkpoint.steps(folder)
        if together is None or (saved and saved[-1] >= c.steps):
            continue
        home = os.path.dirname(folder) if config_lib.replica_count(together) else folder
        say(f"training {home}")
        if not loop.train(together, home, say=say):
            return False
    return True


def restore(folder, c, together):
    """(Setup, parameters, what its training took: seconds, images, floating-point operations) of one of ``needed``."""
    if together is None:
        s = workdir.setup(c)
        state, _ = compile_lib.init(c, s.model, s.mesh, s.dataset)
        return s, step.averaged(state), np.zeros(3)
    s, state, meta = workdir.restore(folder, "latest", say=lambda _: None)
    seconds = meta["latest"]["clock"]["seconds"] / max(1, config_lib.replica_count(together))
    each = np.array([c.batch + c.data.labelled_batch, count.flops(count.traced(s.c, s.model, s.mesh, s.dataset))])
    return s, step.averaged(state), np.array([seconds, *c.steps * each])


def read(cell, method, s, params, dataset, k):
    """(logits_NxY or None, predicted_N, further figures) of the test images: all that a cell asks of the test set."""
    c, test = s.c, dataset.test
    if method.read == "classifier":
        logits = forward(c, s.model, params, test, dataset.levels, s.mesh)["logits"]
        return logits, logits.argmax(1), {}
    if method.read == "bayes":
        key = step.stream(cell.seed, "test")
        log_pxy = generative.class_evidence(c, s.model, params, test, dataset.levels, s.mesh, key, k=k)
        return log_pxy, log_pxy.argmax(1), {"kept_accuracy": generative.kept_accuracy(log_pxy, test.label)}
    where, _, probe = method.read.partition(":")

    def features(split):
        if where == "pixels":
            return np.asarray(split.image[:], np.float32).reshape(len(split.image), -1) / (dataset.levels - 1)
        return forward(c, s.model, params, split, dataset.levels, s.mesh)["mu"].astype(np.float32)

    known = [data.labelled(split) for split in (dataset.train, dataset.validation)]
    predict, setting = probes.fit(probe, *((features(p), p.label) if len(p.label) else None for p in known))
    predicted, p = predict(features(test))
    with np.errstate(divide="ignore"):
        logits = None if p is None else np.log(p)
    return logits, predicted, {"setting": setting}


def figures(logits, predicted, label_N, classes):
    """(figures, counts_YxY) of a cell; None where there are no probabilities, or where one of them was 0 and wrong."""
    counts = classification.confusion(label_N, predicted, classes)
    found = dict.fromkeys(("cross_entropy_nats", "ece", "brier"))
    if logits is not None:
        found |= classification.figures(logits, label_N)[0]
    found |= {"accuracy": float((predicted == label_N).mean()), "macro_f1": classification.macro_f1(counts)}
    return {k: v if v is None or math.isfinite(v) else None for k, v in found.items()}, counts


def save_split(root, cell, dataset):
    """Write which examples have labels; where the file is there, hold the data against it."""
    crc = lambda split: zlib.crc32(np.ascontiguousarray(split.image[:]))  # noqa: E731
    parts = {"train": dataset.train, "validation": dataset.validation}
    found = {"images": {name: [len(p.image), crc(p)] for name, p in {**parts, "test": dataset.test}.items()}}
    if cell.labels:
        found |= {name: np.flatnonzero(p.label >= 0).tolist() for name, p in parts.items()}
    path = os.path.join(root, "splits", f"{cell.labels or 'all'}-{cell.seed if cell.labels else 0}.json")
    if not os.path.exists(path):
        checkpoint.write_json(path, found)
        return
    with open(path) as file:
        if json.load(file) != found:
            raise UserError(f"{path}: the data are others than when this study began; want another workdir")


def perform(cell, root, study, say):
    """Train, read the test set, write the cell's file; None where a signal came."""
    began = time.perf_counter()
    if not train(cell, root, study, say):
        return None
    method = study.methods[cell.method]
    found = [restore(*run) for run in needed(cell, root, study)]
    (s, params, _), (seconds, images, flops) = found[-1], sum(took for _, _, took in found)
    c = s.c.data.copy_and_resolve_references()
    c.labels, c.labels_seed = cell.labels, cell.seed if cell.labels else 0
    dataset = s.dataset if c.labels == s.c.data.labels else data.load(c)
    save_split(root, cell, dataset)
    reading = time.perf_counter()
    logits, predicted, more = read(cell, method, s, params, dataset, study.iw_k)
    found, counts = figures(logits, predicted, dataset.test.label, len(dataset.classes))
    row = {
        "method": cell.method,
        "labels": cell.labels,
        "seed": cell.seed,
        "figures": found | more,
        "confusion": counts.tolist(),
        "training_seconds": round(seconds, 2),
        "images_per_s": round(images / seconds) if seconds else None,
        "training_flops": int(flops),
        "reading_seconds": round(time.perf_counter() - reading, 2),
        "seconds": round(time.perf_counter() - began, 2),
        "device": results.device(),
        "commit": results.commit(),
        "config": config_lib.to_json(cell.config),
    }
    checkpoint.write_json(_path(root, cell), row)
    return row


def _path(root, cell):
    return os.path.join(root, "cells", f"{cell.name}.json")


def done(cell, root):
    """The row of a cell that is done, or None.

    Raises:
      UserError: it is of another config.
    """
    try:
        with open(_path(root, cell)) as file:
            row = json.load(file)
    except FileNotFoundError:
        return None
    changed = config_lib.differences(config_lib.from_json(row["config"]), cell.config, workdir.FREE)
    if changed:
        raise UserError(f"{_path(root, cell)}: of another config ({'; '.join(changed)}); remove it, or another workdir")
    return row


def run(study, root, *, only=(), data_dir="", publish="", say=print):
    """Do every cell that is not done, then write the page and the tables; False where a signal stopped it.

    Raises:
      UserError: the study cannot be meant, or a file in ``root`` is of another.
    """
    check(study)
    if store.remote(root):
        raise UserError(f"workdir={root}: a study wants a folder of a disk; each of its runs alone may be in a store")
    for name in set(only) - set(study.methods):
        raise UserError(f"only={name}: {config_lib.nearest(name, study.methods)}")
    if data_dir:
        study = study._replace(runs={n: r._replace(config=_at(r.config, data_dir)) for n, r in study.runs.items()})
    for folder in ("runs", "splits", "cells"):
        os.makedirs(os.path.join(root, folder), exist_ok=True)
    every = cells(study, root)
    rows = {cell.name: done(cell, root) for cell in every}
    mine = [cell for cell in every if not only or cell.method in only]
    say(f"{sum(rows[cell.name] is not None for cell in mine)} of {len(mine)} cells are done")
    for i, cell in enumerate(mine):
        if rows[cell.name] is None:
            rows[cell.name] = done(cell, root)  # by another process, since
        if rows[cell.name] is not None:
            continue
        row = rows[cell.name] = perform(cell, root, study, say)
        if row is None:
            say("stopped; the same command goes on from there")
            return False
        left = sum(_expected(cell, rows) for cell in mine[i + 1 :] if rows[cell.name] is None)
        title, what = study.methods[cell.method].title, f"{cell.labels or 'all'} labels, seed {cell.seed}"
        accuracy = f"{row['figures']['accuracy']:.2%}  {row['seconds']:.0f} s"
        say(f"cell {i + 1} of {len(mine)}: {title}, {what}: {accuracy}; about {left / 60:.0f} min left")
    finished = [row for cell in every if (row := rows[cell.name] or done(cell, root)) is not None]
    path = tabulate.write(os.path.join(root, "report"), study, finished, command=assess.command())
    say(f"{len(finished)} of {len(every)} cells: {path}")
    if publish:
        seconds = sum(row["seconds"] for row in finished)
        made = tabulate.published(study, finished)
        results.write(
            publish, command=assess.command(), config=None, seed=list(study.seeds), seconds=seconds, figures=made
        )
        log.replace(os.path.splitext(publish)[0] + ".png", tabulate.picture(study, finished))
    return True


def _at(config, data_dir):
    def located(labels):
        c = config(labels)
        c.data.dir = data_dir
        return c

    return located


def _expected(cell, rows):
    """Seconds that a cell is likely to take: as its method's took so far, or as all did."""
    known = [row for row in rows.values() if row is not None]
    own = [row["seconds"] for row in known if row["method"] == cell.method]
    return float(np.mean(own or [row["seconds"] for row in known]))


def define(values):
    flags.DEFINE_string("config", "configs/study_digits.py", "a page with get_study()", flag_values=values)
    flags.DEFINE_string("workdir", None, "folder of the study; one that holds it goes on", flag_values=values)
    flags.DEFINE_list("only", [], "names of methods; the others wait", flag_values=values)
    flags.DEFINE_string(
        "results", "", "also write figures and picture: results/NAME.json, NAME.png", flag_values=values
    )
    flags.DEFINE_string("data_dir", "", "where TFDS data is", flag_values=values)


def main(argv):
    values, pairs = flags_lib.parse(argv, define)
    if pairs:
        raise UserError(f"{pairs[0][0]}: a study's configs are in its page; it takes no --config.*")
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    study = config_lib.load(values.config, "get_study")
    compile_lib.use_cache()
    done = run(study, values.workdir, only=values.only, data_dir=values.data_dir, publish=values.results)
    return 0 if done else loop.STOPPED


if __name__ == "__main__":
    flags_lib.main(main)
