"""The only side effects of training: draw, dispatch, log one call late, validate, save, stop."""

import math
import os
import signal
import sys
import time

import jax
import numpy as np

from vae_jax import checkpoint, data, optim, report, sharding, step
from vae_jax import compile as compile_lib
from vae_jax.config import UserError
from vae_jax.evaluate import likelihood
from vae_jax.workdir import claim, setup

STOPPED = 75  # exit code: stopped on request, the same command goes on (EX_TEMPFAIL)


class Stop:
    """SIGINT and SIGTERM ask the loop to save and leave; a second one leaves at once."""

    def __init__(self):
        self.signal = None
        self._old = {s: signal.signal(s, self._ask) for s in (signal.SIGINT, signal.SIGTERM)}

    def _ask(self, number, _):
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
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True, smoothing=0.1)

    def row(self, at, split, values, steps):
        shown = [k for k in ("loss", "elbo", "kl", "cross_entropy", "accuracy", "images_per_s") if k in values]
        text = "  ".join(
            f"{k} {values[k]:,.4g}" if k != "images_per_s" else f"{values[k]:,.0f} images/s" for k in shown
        )
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


def train(c, workdir, say=print):
    """Train from nothing or from the workdir's last good checkpoint to ``c.steps``.

    Returns (Setup, the run's facts for the report), or None where a signal stopped it.

    Raises:
      UserError: bad input; or a loss that is not finite, with its step and guilty term.
    """
    s = setup(c)
    sharding.check_batch(c.batch, s.mesh)
    lock = claim(workdir, c)
    state, places = compile_lib.init(c, s.model, s.tx, s.mesh, s.dataset)
    saved = checkpoint.Checkpoints(workdir, say)
    clock = {"seconds": 0.0, "compile_seconds": 0.0}
    found = saved.restore(checkpoint.abstract(state, places))
    if found is None and checkpoint.steps(workdir):
        raise UserError(f"workdir={workdir}: none of its checkpoints fits this code; want another workdir")
    if found is not None:
        state, meta = found
        clock |= meta["clock"]
        say(f"going on from step {meta['step']} of {c.steps} in {workdir}")
    at = int(state.step)
    stop = Stop()
    log = report.MetricsLog(workdir, at)
    progress = Progress(at, c.steps)
    broken = True
    try:
        state, finished = _run(s, state, places, at, saved, log, progress, stop, clock)
        broken = False
    finally:
        progress.close()
        log.close()
        saved.close(broken)
        stop.restore()
        os.close(lock)
    if not finished:
        say(f"stopped at step {int(state.step)} and saved; the same command goes on from there")
        return None
    return s, clock


def _run(s, state, places, at, saved, log, progress, stop, clock):
    c = s.c
    if at >= c.steps:
        return state, True
    if at % c.steps_per_call:
        raise UserError(f"steps_per_call={c.steps_per_call}: want a divisor of {at}, the step where the run stopped")
    program = compile_lib.training(c, s.model, s.tx, s.mesh, s.dataset, state, places)
    validate = _validator(s)
    clock["compile_seconds"] += program.seconds
    lr = optim.learning_rate(c.optim, c.steps)
    per_call = c.steps_per_call
    feed = None
    if program.source is None:
        # One element of the feed per step; S of them are stacked for a call.
        feed = data.host_batches(s.dataset.train, start=at, steps=c.steps - at, batch=c.batch, seed=c.seed)
    began, offset = time.perf_counter(), clock["seconds"]
    window, window_began, pending = [], began, None

    def settle(pending):
        """Read the metrics of the call before: the device is already busy with the next one."""
        last, values_SxM = pending
        rows = np.asarray(values_SxM, np.float64)
        for i, row in enumerate(rows):
            if not np.isfinite(row).all():
                figures = dict(zip(program.names, row, strict=True))
                raise UserError(
                    f"non-finite loss at step {last - per_call + i + 1}: {guilty(figures)}; "
                    f"last good checkpoint: {saved.latest() if saved.latest() is not None else 'none'}"
                )
        window.append(rows)

    while at < c.steps and stop.signal is None:
        source = program.source if feed is None else _stack([next(feed) for _ in range(per_call)])
        state, values = program.run(state, source, program.key)
        if pending is not None:
            settle(pending)
        saved.poll()
        at += per_call
        pending = (at, values)
        progress.advance(per_call)
        validating = at % c.eval.every == 0 or at == c.steps
        if at % c.log_every == 0 or validating:
            settle(pending)
            pending = None
            now = time.perf_counter()
            row = dict(zip(program.names, np.concatenate(window).mean(0).tolist(), strict=True))
            row |= {"lr": float(lr(at - 1)), "images_per_s": sum(map(len, window)) * c.batch / (now - window_began)}
            log.write(at, "train", row)
            progress.row(at, "train", row, c.steps)
            window = []
            if validating:
                figures = validate(state)
                if not all(map(math.isfinite, figures.values())):
                    raise UserError(f"non-finite validation at step {at}: {guilty(figures)}")
                log.write(at, "validation", figures)
                progress.row(at, "validation", figures, c.steps)
                clock["seconds"] = offset + time.perf_counter() - began
                saved.save(at, state, {"step": at, "clock": dict(clock)}, select=_selected(c, figures))
            window_began = time.perf_counter()
    if pending is not None:
        settle(pending)
    clock["seconds"] = offset + time.perf_counter() - began
    if at < c.steps and saved.latest() != at:
        saved.save(at, state, {"step": at, "clock": dict(clock)})
    return state, at >= c.steps


def _stack(batches):
    return {name: np.stack([b[name] for b in batches]) for name in batches[0]}


def _validator(s):
    """validate(state) → figures over the validation split, averaged parameters, fixed noise."""
    c = s.c
    terms = step.make_terms(c, s.model, s.dataset)
    run = compile_lib.over_batches(lambda params, batch, key: step.eval_step(params, batch, key, terms=terms), s.mesh)
    key = step.stream(c.seed, "validation")

    def validate(state):
        params, totals = step.averaged(state), {}
        for i, (batch, _) in enumerate(likelihood.batches(s.dataset.validation, c.eval.batch, s.mesh)):
            for name, value in run(params, batch, jax.random.fold_in(key, i)).items():
                totals[name] = totals.get(name, 0.0) + float(value)
        n = totals.pop("n")
        return {name: total / n for name, total in totals.items()}

    return validate


def _selected(c, figures):
    """The validation figure that names the best checkpoint, signed so that lower is better."""
    value = figures[c.eval.select]
    return -value if c.eval.select in ("elbo", "accuracy") else value
