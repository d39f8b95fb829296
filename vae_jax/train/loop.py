"""The only side effects of training: draw, dispatch, log one call late, validate, save, stop."""

import contextlib
import functools
import itertools
import math
import os
import signal
import sys
import time
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import evaluation
from vae_jax.mesh import hosts, store
from vae_jax.mesh import rules as sharding
from vae_jax.mesh.hosts import STOPPED
from vae_jax.train import checkpoint, optim, step
from vae_jax.train import clock as watch
from vae_jax.train import program as compile_lib
from vae_jax.train.log import MetricsLog
from vae_jax.train.run import begin_from, claim, members, setup

__all__ = ["STOPPED", "train"]


class Stop:
    """SIGINT and SIGTERM ask the loop to save and leave; a second one leaves at once.

    Of several processes any one may be asked. SIGTERM is jax's then: it has them agree on a call.
    """

    def __init__(self):
        self.signal, self._several = None, hosts.several()
        numbers = (signal.SIGINT,) if self._several else (signal.SIGINT, signal.SIGTERM)
        self._old = {s: signal.signal(s, self._ask) for s in numbers}

    def asked(self, call):
        """Whether to leave before this call, the same on every process; calls are counted by one."""
        if self._several and multihost_utils.reached_preemption_sync_point(call):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _ask(self, number, _):
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number

    def restore(self):
        for number, handler in self._old.items():
            signal.signal(number, handler)


def guilty(metrics):
    """'loss at ... : kl=inf (log_px=-94.1)' for metrics with a non-finite figure."""
    bad = [f"{k}={v}" for k, v in metrics.items() if not math.isfinite(v)]
    good = [f"{k}={v:.4g}" for k, v in metrics.items() if math.isfinite(v)]
    parts = [b for b in bad if not b.startswith(("loss=", "elbo=", "grad_norm="))] or bad
    return ", ".join(parts) + (f" ({', '.join(good)})" if good else "")


class Progress:
    """A bar on a terminal, plain lines elsewhere."""

    def __init__(self, start, steps):
        self._bar = None
        if sys.stderr.isatty() and hosts.first():
            from tqdm import tqdm

            layout = "{percentage:3.0f}%|{bar:12}| {n}/{total} {remaining} left{postfix}"
            self._bar = tqdm(total=steps, initial=start, dynamic_ncols=True, smoothing=0.1, bar_format=layout)

    def row(self, at, split, rows, steps):
        """One line for a run alone, or for the mean of its replicas."""
        values = {k: sum(row[k] for row in rows) / len(rows) for k in rows[0]}
        shown = [k for k in ("loss", "elbo", "kl", "cross_entropy", "accuracy") if k in values]
        text = f"mean of {len(rows)}  " if len(rows) > 1 else ""
        text += f"{values['images_per_s']:,.0f} images/s  " if "images_per_s" in values else ""
        text += "  ".join(f"{k} {values[k]:,.4g}" for k in shown)
        if self._bar is None:
            print(f"step {at:>6}/{steps}  {split:<10}  {text}", flush=True)
        elif split == "train":
            self._bar.set_postfix_str(text, refresh=False)
        else:
            self._bar.write(f"step {at:>6}  {split}  {text}")

    def advance(self, n):
        if self._bar is not None:
            self._bar.update(n)

    def close(self):
        if self._bar is not None:
            self._bar.close()


class Member(NamedTuple):
    """A run alone, or one replica of several: where its checkpoints and its rows go."""

    c: object
    saved: checkpoint.Checkpoints
    log: MetricsLog | None  # None on a process that does not write it


def train(c, workdir, say=print, profile=None):
    """Train from nothing or from the workdir's last good checkpoint to ``c.steps``.

    ``profile``: the steps (a, b) to trace. Returns True, or False where a signal stopped it.

    Raises:
      UserError: bad input; or a loss that is not finite, with its step and guilty term.
    """
    began = time.time()
    store.check(workdir)
    s = setup(c)
    compile_lib.check(c, s.model, s.mesh)
    parts = members(c, workdir)
    if len(parts) > 1 and jax.process_count() > 1:
        raise UserError(f"processes={jax.process_count()}: replicas are of one process; want --processes=1")
    with contextlib.ExitStack() as held:

        def take():
            for folder, one in ({workdir: c} | {folder: one for one, folder in parts}).items():
                held.callback(os.close, claim(folder, one))

        hosts.agree(take)
        return _train(s, parts, workdir, say if hosts.first() else lambda _: None, began, profile)


def _train(s, parts, workdir, say, began, span):
    c = s.c
    state, places = compile_lib.init(c, s.model, s.mesh, s.dataset)
    saved = [checkpoint.Checkpoints(folder, say) for _, folder in parts]
    clock = watch.new_clock()
    found = _restore(state, places, saved)
    if found is None and any(checkpoint.steps(folder) for _, folder in parts):
        raise UserError(f"workdir={workdir}: none of its checkpoints fits this code; want another workdir")
    at = 0
    if found is None and c.init_from:
        state = begin_from(c.init_from, state, places)
    if found is not None:
        state, meta = found
        at = meta["step"]
        clock |= meta["clock"]
        began = clock.pop("saved", began)  # what was done since is done again
        say(f"going on from step {at} of {c.steps} in {workdir}")
    stop = Stop()
    logs = [MetricsLog(folder, at) if hosts.first() else None for _, folder in parts]
    runs = [Member(one, kept, log) for (one, _), kept, log in zip(parts, saved, logs, strict=True)]
    progress = Progress(at, c.steps)
    seen, profile = watch.Watch(clock, at, began), watch.Profile(workdir, span, c.steps_per_call, say)
    failed, reached = None, at
    try:
        at = _run(s, state, places, at, runs, progress, stop, seen, profile)
    except BaseException as error:
        failed = error
        raise
    finally:
        seen.close()
        profile.close()
        progress.close()
        for run in runs:
            if run.log:
                run.log.close()
            run.saved.close(failed)
        stop.restore()
    hosts.agree(lambda: None)  # process 0 has written the last manifest
    if at > reached:
        say(f"wall time: {watch.shares(clock)}")
    if at < c.steps:
        say(f"stopped at step {at} and saved; the same command goes on from there")
    return at >= c.steps


def _restore(state, places, saved):
    """(state, meta) of the last good step; with replicas, of the last that all of them have. None: there is none."""
    if len(saved) == 1:
        return saved[0].restore(checkpoint.abstract(state, places))
    whole = jax.tree.map(lambda _: SingleDeviceSharding(jax.devices()[0]), places)
    alone = checkpoint.abstract(jax.eval_shape(lambda t: jax.tree.map(lambda a: a[0], t), state), whole)
    for at in sorted(set.intersection(*(set(one.steps()) for one in saved)), reverse=True):
        found = [one.restore(alone, at) for one in saved]
        if None not in found:
            for one in saved:
                one.drop_after(at)
            states, metas = zip(*found, strict=True)
            return jax.device_put(jax.tree.map(lambda *a: np.stack(a), *states), places), metas[0]
    return None


def _run(s, state, places, at, runs, progress, stop, seen, profile):
    """Steps from ``at`` on, until they are done or a signal comes; the step reached."""
    c, several, clock = s.c, len(runs) > 1, seen.clock
    if at >= c.steps:
        return at
    if at % c.steps_per_call:
        raise UserError(f"steps_per_call={c.steps_per_call}: want a divisor of {at}, the step where the run stopped")
    with seen.part("compile"):
        program = compile_lib.training(c, s.model, s.mesh, s.dataset, state, places)
        validate = _validator(s)
    rates = [optim.learning_rate(run.c.optim, c.steps) for run in runs]
    per_call = c.steps_per_call
    feed = None
    if program.source is None:
        # One element of the feed per step; S of them are stacked for a call.
        sizes = {"batch": c.batch, "labelled": c.data.labelled_batch}
        place, over_calls = sharding.over_batch(s.mesh), sharding.over_batch(s.mesh, leading=1)
        share = functools.partial(hosts.rows, place)
        feed = data.host_batches(s.dataset.train, start=at, steps=c.steps - at, seed=c.seed, share=share, **sizes)
    seen.begin()
    first = at + per_call
    began, offset = time.perf_counter(), clock["seconds"]
    window, window_began, pending = [], began, None
    row = np.zeros(len(runs), int)  # how many steps in a row were left out

    def settle(pending):
        """Read the metrics of the call before: the device is already busy with the next one."""
        last, values = pending
        rows_SxRxM = np.asarray(values, np.float64).reshape(per_call, len(runs), -1)
        good_SxR = np.isfinite(rows_SxRxM).all(-1)
        if c.optim.skip:
            rows_SxRxM, skipped_SxR = leave_out(rows_SxRxM, last)
            good_SxR |= skipped_SxR
        for i, r in np.argwhere(~good_SxR)[:1]:
            figures = dict(zip(program.names, rows_SxRxM[i, r], strict=True))
            latest = runs[r].saved.latest()
            raise UserError(
                f"non-finite loss at step {last - per_call + i + 1}{f' of replica {r}' if several else ''}: "
                f"{guilty(figures)}; last good checkpoint: {latest if latest is not None else 'none'}"
            )
        window.append(rows_SxRxM)

    def leave_out(rows_SxRxM, last):
        """(figures with NaN for those of steps left out, which were); stops where there are too many in a row."""
        at = program.names.index("skipped")
        skipped_SxR = rows_SxRxM[..., at] > 0
        for i, bad_R in enumerate(skipped_SxR):
            row[:] = np.where(bad_R, row + 1, 0)
            if row.max() > c.optim.skip:
                figures, latest = rows_SxRxM[i, row.argmax()], runs[row.argmax()].saved.latest()
                raise UserError(
                    f"optim.skip={c.optim.skip}: {row.max()} bad steps in a row up to step {last - per_call + i + 1}"
                    f"{f' of replica {row.argmax()}' if several else ''}: "
                    f"{guilty(dict(zip(program.names, figures, strict=True)))}; last good checkpoint: "
                    f"{latest if latest is not None else 'none'}"
                )
        shown = np.where(skipped_SxR[..., None], np.nan, rows_SxRxM)
        shown[..., at] = skipped_SxR
        return shown, skipped_SxR

    def tick():
        clock["seconds"] = offset + time.perf_counter() - began

    def save(figures=None):
        tick()
        with seen.part("checkpoint"):
            for r, run in enumerate(runs):
                alone = jax.tree.map(lambda a, r=r: a[r], state) if several else state
                select = None if figures is None else _selected(c, figures[r])
                if run.log:
                    run.log.flush()
                run.saved.save(at, alone, {"step": at, "clock": clock | {"saved": time.time()}}, select=select)

    def write(split, rows):
        if not hosts.first():
            return
        with seen.part("log"):
            for run, row in zip(runs, rows, strict=True):
                run.log.write(at, split, row)
            progress.row(at, split, rows, c.steps)

    while at < c.steps and not stop.asked(at // per_call):
        source = program.source
        if feed is not None:
            with seen.part("data"):
                source = hosts.assemble(_stack([next(feed) for _ in range(per_call)]), over_calls)
        profile.before(at, pending)
        with seen.part("dispatch"):
            state, values = program.run(state, source, program.key)
        if pending is not None:
            settle(pending)
        with seen.part("checkpoint"):
            for run in runs:
                run.saved.poll()
        at += per_call
        pending = (at, values)
        seen.step(at)
        progress.advance(per_call)
        validating = at % c.eval.every == 0 or at == c.steps
        if at % c.log_every == 0 or validating:
            settle(pending)
            pending = None
            seconds = time.perf_counter() - window_began
            images = sum(map(len, window)) * c.batch * len(runs)
            tick()
            figures_SxRxM = np.ma.masked_invalid(np.concatenate(window))
            means_RxM = figures_SxRxM.mean(0).filled(np.nan).tolist()
            rows = [dict(zip(program.names, means, strict=True)) for means in means_RxM]
            of_clock = {"images_per_s": images / seconds, "goodput": watch.goodput(clock)}
            of_clock |= seen.skew(len(window) * per_call)
            write("train", [m | {"lr": float(f(at - 1))} | of_clock for m, f in zip(rows, rates, strict=True)])
            window = []
            if validating:
                with seen.part("validation"):
                    figures = validate(state)
                for r, one in enumerate(figures):
                    if not all(map(math.isfinite, one.values())):
                        raise UserError(
                            f"non-finite validation at step {at}{f' of replica {r}' if several else ''}: {guilty(one)}"
                        )
                write("validation", figures)
                save(figures)
            window_began = time.perf_counter()
        if at == first and not validating:  # the first call's figures were told before the validation's program is made
            since = time.perf_counter()
            with seen.part("compile"):
                validate(state, 1)
            took = time.perf_counter() - since
            began, window_began = began + took, window_began + took
    if pending is not None:
        settle(pending)
    tick()
    if at < c.steps and runs[0].saved.latest() != at:
        save()
    return at


def _stack(batches):
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


def _validator(s):
    """validate(state) → figures over the validation split for each run: averaged parameters, fixed noise.

    ``most``: batches, where it is only to be compiled.
    """
    c, count = s.c, config_lib.replica_count(s.c)

    def figures(params, batch, key):
        one = lambda c, p, k: step.eval_step(p, batch, k, terms=step.make_terms(c, s.model, s.dataset))  # noqa: E731
        return compile_lib.over_replicas(c, one)(params, key)

    run = compile_lib.over_batches(figures, s.mesh, whole=bool(count))
    key = compile_lib.root(c, "validation")
    fold = jax.vmap(jax.random.fold_in, (0, None)) if count else jax.random.fold_in

    def validate(state, most=None):
        params, totals = step.averaged(state), None
        batches = evaluation.batches(s.dataset.validation, c.eval.batch, s.mesh)
        for i, (batch, _) in enumerate(itertools.islice(batches, most)):
            sums = jax.tree.map(hosts.fetch, run(params, batch, fold(key, i)))
            sums = jax.tree.map(lambda a: a.astype(np.float64).reshape(-1), sums)
            totals = sums if totals is None else jax.tree.map(np.add, totals, sums)
        means = step.divided(totals)
        return [{name: float(mean[r]) for name, mean in means.items()} for r in range(max(1, count))]

    return validate


def _selected(c, figures):
    """The validation figure that names the best checkpoint, signed so that lower is better."""
    value = figures[c.eval.select]
    return -value if c.eval.select in ("elbo", "accuracy") else value
