"""What the loop does every N steps: log, validate, save.

An action is called after every call of the program with the step that it reached, the state and the
metrics that are pending; it does nothing where it is not due.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.data import evaluation
from vae_jax.mesh import hosts
from vae_jax.train import clock, optim, step
from vae_jax.train import program as program_lib
from vae_jax.train.checkpoint import Checkpoints
from vae_jax.train.film import Film
from vae_jax.train.guard import Pending, nonfinite_terms
from vae_jax.train.log import MetricsLog
from vae_jax.train.progress import Progress
from vae_jax.train.run import Setup

Row = dict[str, float]


class Member(NamedTuple):
    """A run alone, or one replica of several: where its checkpoints and its rows go."""

    c: ConfigDict
    saved: Checkpoints
    log: MetricsLog | None  # None on a process that does not write it


@dataclasses.dataclass(frozen=True)
class Run:
    """What the loop and its actions share."""

    setup: Setup
    members: Sequence[Member]
    watch: clock.Watch
    progress: Progress
    profile: clock.Profile

    @property
    def c(self) -> ConfigDict:
        return self.setup.c

    @property
    def saved(self) -> list[Checkpoints]:
        return [member.saved for member in self.members]

    def write(self, step: int, split: str, rows: Sequence[Row]) -> None:
        """Write a row of each member, and show them."""
        if not hosts.first():
            return
        with self.watch.part("log"):
            for member, row in zip(self.members, rows, strict=True):
                member.log.write(step, split, row)
            self.progress.row(step, split, rows)

    def poll(self) -> None:
        """Let saves that have ended meanwhile have their manifests."""
        with self.watch.part("checkpoint"):
            for member in self.members:
                member.saved.poll()


def validation_due(c: ConfigDict, step: int) -> bool:
    return step % c.eval.every == 0 or step == c.steps


class Log:
    """Write the metrics' means, every ``log_every`` steps and before validation."""

    def __init__(self, run: Run, names: Sequence[str]) -> None:
        self._run = run
        self._names = names
        self._rates = [optim.learning_rate(m.c.optim, run.c.steps) for m in run.members]
        self._since = run.watch.step_seconds()

    def __call__(self, step: int, state: Any, pending: Pending) -> None:
        c = self._run.c
        if step % c.log_every and not validation_due(c, step):
            return
        rows_SxRxM = pending.take()
        watch = self._run.watch
        watch.tick()
        images = len(rows_SxRxM) * c.batch * len(self._run.members)
        shared = {
            "images_per_s": images / (watch.step_seconds() - self._since),
            "goodput": clock.goodput(watch.clock),
        }
        shared |= watch.skew(len(rows_SxRxM))
        means_RxM = np.ma.masked_invalid(rows_SxRxM).mean(0).filled(np.nan).tolist()
        rows = []
        for means, rate in zip(means_RxM, self._rates, strict=True):
            row = dict(zip(self._names, means, strict=True))
            rows.append(row | {"lr": float(rate(step - 1))} | shared)
        self._run.write(step, "train", rows)
        self._since = watch.step_seconds()


class Save:
    """Save the state of each member, with its validation metrics or without."""

    def __init__(self, run: Run) -> None:
        self._run = run

    def __call__(self, step: int, state: Any, rows: Sequence[Row] | None = None) -> None:
        watch = self._run.watch
        watch.tick()
        with watch.part("checkpoint"):
            for r, member in enumerate(self._run.members):
                if member.log:
                    member.log.flush()
                select = None
                if rows is not None:
                    select = selection(self._run.c, rows[r])
                meta = {"step": step, "clock": watch.clock | {"saved": time.time()}}
                member.saved.save(step, self._state_of(r, state), meta, select=select)

    def _state_of(self, r: int, state: Any) -> Any:
        if len(self._run.members) == 1:
            return state
        return jax.tree.map(lambda leaf: leaf[r], state)


class Validate:
    """Validate, write the rows and save, every ``eval.every`` steps and at the end.

    Raises:
      UserError: a figure is not finite.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._save = Save(run)
        self._film = Film(run.setup, run.saved[0].workdir)
        self._evaluate = evaluation_of(run.setup)
        self._compiled = False

    def __call__(self, step: int, state: Any, pending: Pending) -> None:
        due = validation_due(self._run.c, step)
        if not self._compiled and not due:  # after the first call, whose row is shown before
            with self._run.watch.part("compile"):
                self._evaluate(state, 1)
        self._compiled = True
        if not due:
            return
        with self._run.watch.part("validation"):
            rows = self._evaluate(state)
        for r, row in enumerate(rows):
            if not all(map(math.isfinite, row.values())):
                where = f"{step} of replica {r}" if len(rows) > 1 else step
                raise UserError(f"non-finite validation at step {where}: {nonfinite_terms(row)}")
        self._run.write(step, "validation", rows)
        self._film(step, state)
        self._save(step, state, rows)


def evaluation_of(setup: Setup) -> Callable[..., list[Row]]:
    """``evaluate(state)``: the means over the validation split, a row for each run.

    It takes averaged parameters and the same noise each time. ``evaluate(state, batches)`` looks at
    so many batches only, to compile.
    """
    c = setup.c
    count = config_lib.replica_count(c)

    def metrics(params: Any, batch: dict[str, Any], key: jax.Array) -> Any:
        def of_one(c: ConfigDict, params: Any, key: jax.Array) -> Any:
            terms = step.Objective(c, setup.model, setup.dataset)
            return step.eval_step(params, batch, key, terms=terms)

        return program_lib.over_replicas(c, of_one)(params, key)

    sums_of = program_lib.over_batches(metrics, setup.mesh, whole=bool(count))
    key = program_lib.root(c, "validation")
    fold = jax.vmap(jax.random.fold_in, (0, None)) if count else jax.random.fold_in

    def evaluate(state: Any, batches: int | None = None) -> list[Row]:
        params = step.averaged(state)
        totals = None
        every = evaluation.batches(setup.dataset.validation, c.eval.batch, setup.mesh)
        for i, (batch, _) in enumerate(itertools.islice(every, batches)):
            sums = jax.tree.map(_flat, sums_of(params, batch, fold(key, i)))
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        means = step.divided(totals)
        return [{name: float(mean[r]) for name, mean in means.items()} for r in range(count or 1)]

    return evaluate


def _flat(leaf: jax.Array) -> np.ndarray:
    return hosts.fetch(leaf).astype(np.float64).reshape(-1)


def selection(c: ConfigDict, row: Row) -> float:
    """The metric that names the best checkpoint, signed so that lower is better."""
    value = row[c.eval.select]
    return -value if c.eval.select in ("elbo", "accuracy") else value
