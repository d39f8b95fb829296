"""The cells of a study: method, labels and seed, and the runs that each of them needs."""

import itertools
import math
import os
from collections.abc import Callable
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.evaluate import probes

PROBES = tuple(map(":".join, itertools.product(("pixels", "code"), probes.PROBES)))
READ = ("classifier", "bayes", *PROBES)
CONVOLUTIONS = ("conv", "residual", "vdvae")


class Run(NamedTuple):
    """Something to train."""

    config: Callable[[int], ConfigDict]  # labels (0: all) → config; seeds are set later
    labels: bool = True  # False: it sees none, and one run serves all budgets
    steps: bool = True  # False: the model keeps its initial parameters
    begin: str = ""  # the name of a run without labels whose parameters are the initial ones


class Method(NamedTuple):
    """A row of the table: what is trained, and how it classifies."""

    title: str
    run: str
    read: str = "classifier"  # one of READ: the classifier, Bayes' rule, a probe on pixels or codes
    budgets: tuple[int, ...] = ()  # those of the study's that apply; () = all of them


class Study(NamedTuple):
    """A table: every method with every label budget and seed."""

    title: str
    runs: dict[str, Run]
    methods: dict[str, Method]
    budgets: tuple[int, ...] = (10, 100, 1000, 0)  # 0 = every label
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    detail: tuple[int, ...] = (100, 0)  # budgets with all metrics, the others have accuracy
    iw_k: int = 50  # importance samples of Bayes' rule
    counts: str = "labels"  # of a budget; or "canvases", which a run's config names in its data


class Trained(NamedTuple):
    """A run of one seed: where it is, and how it is trained."""

    folder: str  # '' where nothing is trained
    config: ConfigDict  # this seed's
    together: ConfigDict | None  # trains it, perhaps with replicas; None: nothing is trained


class Cell(NamedTuple):
    """One method with one budget and one seed."""

    method: str
    labels: int
    seed: int
    folder: str  # see Trained
    config: ConfigDict
    together: ConfigDict | None

    @property
    def name(self) -> str:
        return f"{self.method}-{self.labels or 'all'}-{self.seed}"

    @property
    def trained(self) -> Trained:
        return Trained(self.folder, self.config, self.together)


def check(study: Study) -> None:
    """Raise :class:`UserError` for a name or budget that the study does not have."""
    nearest = config_lib.nearest
    for name, method in study.methods.items():
        where = f"methods.{name}"
        if method.run not in study.runs:
            raise UserError(f"{where}: run={method.run}: {nearest(method.run, study.runs)}")
        if method.read not in READ:
            raise UserError(f"{where}: read={method.read}: {nearest(method.read, READ)}")
        if set(method.budgets) - set(study.budgets):
            raise UserError(f"{where}: budgets={method.budgets}: want some of {study.budgets}")
    for name, run in study.runs.items():
        if run.begin and (run.begin not in study.runs or study.runs[run.begin].labels):
            wanted = "want the name of a run with labels=False"
            raise UserError(f"runs.{name}: begin={run.begin}: {wanted}")


def fits(c: ConfigDict) -> bool:
    """Whether the seeds of a config are trained in one program.

    They are where the same examples have labels and the device gains by it: a CPU loses with
    convolutions that have weights for each replica, and with nets that see one class each.
    """
    nets = {c.encoder.name, c.decoder.name, c.classifier.name}
    slow = bool(nets & set(CONVOLUTIONS)) and jax.default_backend() == "cpu"
    return not (c.data.labels or c.init_from or slow or c.model.name == "per_class")


def _trained(root: str, study: Study, name: str, labels: int, seed: int) -> Trained:
    run = study.runs[name]
    if not run.labels:
        labels = 0
    c = run.config(labels)
    c.seed = seed
    if study.counts == "labels":
        c.data.labels = labels
        c.data.labels_seed = seed if labels else 0
    c.mesh.data = math.gcd(c.batch, c.data.labelled_batch, jax.device_count())
    if run.begin:
        c.init_from = _trained(root, study, run.begin, 0, seed).folder
    if not run.steps:
        return Trained("", c, None)
    folder = os.path.join(root, "runs", name)
    if run.labels:
        folder = f"{folder}-{labels or 'all'}"
    if len(study.seeds) == 1 or not fits(c):
        return Trained(f"{folder}-{seed}", c, c)
    together = c.copy_and_resolve_references()
    together.seed = study.seeds[0]
    together.mesh.data = math.gcd(len(study.seeds), jax.device_count())
    config_lib.replicate(together, "seed", study.seeds)
    replica = os.path.join(folder, f"replica_{study.seeds.index(seed)}")
    return Trained(replica, c, together)


def cells(study: Study, root: str) -> list[Cell]:
    """Every :class:`Cell`, budget by budget.

    A probe on pixels with every label is the same for all seeds, so that it is one cell.
    """
    table = []
    for labels in study.budgets:
        for name, method in study.methods.items():
            if labels not in (method.budgets or study.budgets):
                continue
            seeds = study.seeds
            if not labels and method.read.startswith("pixels"):
                seeds = seeds[:1]
            for seed in seeds:
                trained = _trained(root, study, method.run, labels, seed)
                table.append(Cell(name, labels, seed, *trained))
    return table


def needed(cell: Cell, root: str, study: Study) -> list[Trained]:
    """The run that a cell's run is initialised from, if any, then its own."""
    begin = study.runs[study.methods[cell.method].run].begin
    if not begin:
        return [cell.trained]
    return [_trained(root, study, begin, 0, cell.seed), cell.trained]
