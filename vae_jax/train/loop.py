"""The training loop: restore or begin; dispatch, read, act every N steps; finish."""

import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from ml_collections import ConfigDict

from vae_jax import data
from vae_jax.config import UserError
from vae_jax.mesh import hosts, rules, store
from vae_jax.mesh.hosts import STOPPED
from vae_jax.train import checkpoint, clock, identity, log
from vae_jax.train import program as program_lib
from vae_jax.train.actions import Log, Member, Run, Save, Validate
from vae_jax.train.alive import alive
from vae_jax.train.guard import Guard, Pending
from vae_jax.train.progress import Progress
from vae_jax.train.run import (
    Setup,
    begin_from,
    claim,
    manifest_fields,
    members,
    opening,
    setup,
)

__all__ = ["STOPPED", "train"]

Tell = Callable[[str], Any]  # takes one line for the person


class Stop:
    """SIGINT, SIGTERM and SIGHUP (a lost terminal) ask the loop to save and leave; a second one
    leaves at once.

    Of several processes any one may be asked. SIGTERM is then jax's: it has them agree on a call.
    """

    def __init__(self) -> None:
        self.signal = None
        self._several = hosts.several()
        numbers = [signal.SIGINT]
        if not self._several:
            numbers.append(signal.SIGTERM)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # which nohup sets
            numbers.append(signal.SIGHUP)
        self._old = {number: signal.signal(number, self._ask) for number in numbers}

    def asked(self, call: int) -> bool:
        """Whether to leave before call number ``call``, the same on every process."""
        if self._several and multihost_utils.reached_preemption_sync_point(call):
            self.signal = signal.SIGTERM
        return self.signal is not None

    def _ask(self, number: int, _: Any) -> None:
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self.signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.signal = number

    def restore(self) -> None:
        """Give the signals back to who had them before."""
        for number, handler in self._old.items():
            signal.signal(number, handler)


def train(
    c: ConfigDict,
    workdir: str,
    say: Tell = print,
    profile: tuple[int, int] | None = None,
    accept_changed: bool = False,
) -> bool:
    """Train from nothing or from the workdir's last good checkpoint to ``c.steps``.

    ``say`` takes one line for the person; ``profile``: the steps (a, b) to trace;
    ``accept_changed``: go on though the run's data changed. Returns True, or False where a signal
    stopped it.

    Raises:
      UserError: bad input; or a loss that is not finite, with its step and the term.
    """
    began = time.time()
    store.check(workdir)
    parts = setup(c)
    c = parts.c
    program_lib.check(c, parts.model, parts.mesh)
    folders = members(c, workdir)
    processes = jax.process_count()
    if len(folders) > 1 and processes > 1:
        raise UserError(f"processes={processes}: replicas are of one process; want --processes=1")
    if not hosts.first():
        say = _silent
    with log.output_may_close(), contextlib.ExitStack() as locks:

        def claim_all() -> None:
            configs = {workdir: c} | {folder: one for one, folder in folders}
            for folder, one in configs.items():
                locks.callback(os.close, claim(folder, one, say))
                identity.keep(folder, one, parts.dataset, accept_changed=accept_changed, say=say)

        hosts.agree(claim_all)
        for line in opening(parts):
            say(line)
        with alive("initialising", say):
            start = _restore_or_begin(parts, folders, workdir, say)
        numbers = sum(leaf.size for leaf in jax.tree.leaves(start.state.params))
        say(f"model: {c.model.name}, {numbers:,} parameters, in {workdir}")
        stop = Stop()
        profiler = clock.Profile(workdir, profile, c.steps_per_call, say)
        run = Run(
            parts,
            _open(folders, start),
            clock.Watch(start.clock, start.step, start.since or began),
            Progress(start.step, c.steps),
            profiler,
        )
        with _closing(run, stop):
            step = _loop(run, start, stop, say)
        hosts.agree(lambda: None)  # process 0 has written the last manifest
        if step > start.step:
            say(f"wall time: {clock.shares(run.watch.clock)}")
        if step < c.steps:
            say(f"stopped at step {step} and saved; the same command goes on from there")
        return step >= c.steps


class Start(NamedTuple):
    """Where training begins or goes on."""

    state: Any
    places: Any  # shardings of the state
    step: int
    clock: dict[str, float]
    since: float | None  # when the checkpoint was saved: what was done after it is done again
    saved: list[checkpoint.Checkpoints]


def _silent(line: str) -> None:
    """Another process tells it."""


def _restore_or_begin(
    parts: Setup, folders: Sequence[tuple[ConfigDict, str]], workdir: str, say: Tell
) -> Start:
    """The state of the last good checkpoint, or a fresh one, and the step to go on from."""
    c = parts.c
    state, places = program_lib.init(c, parts.model, parts.mesh, parts.dataset)
    saved = [
        checkpoint.Checkpoints(folder, say, config=manifest_fields(one)) for one, folder in folders
    ]
    spent = clock.new_clock()
    restored = _restore(state, places, saved)
    if restored is not None:
        state, meta = restored
        spent |= meta["clock"]
        spent["restarts"] += 1
        since = spent.pop("saved", None)
        say(f"going on from step {meta['step']} of {c.steps} in {workdir}")
        return Start(state, places, meta["step"], spent, since, saved)
    if any(checkpoint.steps(folder) for _, folder in folders):
        why = "none of its checkpoints fits this code"
        raise UserError(f"workdir={workdir}: {why}; want another workdir")
    if c.init_from:
        state = begin_from(c.init_from, state, places, say)
    return Start(state, places, 0, spent, None, saved)


def _restore(
    state: Any, places: Any, saved: Sequence[checkpoint.Checkpoints]
) -> tuple[Any, dict[str, Any]] | None:
    """(state, meta) of the last good step that all replicas have; None: there is none."""
    if len(saved) == 1:
        return saved[0].restore(checkpoint.abstract(state, places))
    device = SingleDeviceSharding(jax.devices()[0])
    first = jax.eval_shape(lambda tree: jax.tree.map(lambda leaf: leaf[0], tree), state)
    shapes = checkpoint.abstract(first, jax.tree.map(lambda _: device, places))
    common = set.intersection(*(set(one.steps()) for one in saved))
    for step in sorted(common, reverse=True):
        restored = [one.restore(shapes, step) for one in saved]
        if None in restored:
            continue
        for one in saved:
            one.drop_after(step)
        states = [state for state, _ in restored]
        stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *states)
        return jax.device_put(stacked, places), restored[0][1]
    return None


def _open(folders: Sequence[tuple[ConfigDict, str]], start: Start) -> list[Member]:
    """The run, or its replicas, each with its checkpoints and its rows."""
    runs = []
    for (c, folder), saved in zip(folders, start.saved, strict=True):
        rows = log.MetricsLog(folder, start.step) if hosts.first() else None
        runs.append(Member(c, saved, rows))
    return runs


def _loop(run: Run, start: Start, stop: Stop, say: Tell) -> int:
    """Train until the steps are done or a signal comes; the step that was reached."""
    c = run.c
    state = start.state
    step = start.step
    if step >= c.steps:
        return step
    if step % c.steps_per_call:
        want = f"want a divisor of {step}, the step where the run stopped"
        raise UserError(f"steps_per_call={c.steps_per_call}: {want}")
    earlier = run.watch.clock["compile_seconds"]
    with run.watch.part("compile"), alive("compiling", say):
        program = program_lib.training(
            c, run.setup.model, run.setup.mesh, run.setup.dataset, state, start.places
        )
    say(f"compiled in {run.watch.clock['compile_seconds'] - earlier:.1f} s")
    source = _sources(run, program, step)
    pending = Pending(Guard(c, program.names, run.saved))
    actions = (Log(run, program.names), Validate(run))
    run.watch.begin()
    while step < c.steps and not stop.asked(step // c.steps_per_call):
        batches = next(source)
        run.profile.before(step, pending.metrics)
        with run.watch.part("dispatch"):
            state, metrics = program.run(state, batches, program.key)
        step += c.steps_per_call
        pending.push(step, metrics)  # the metrics of the call before are read here
        run.poll()
        run.watch.step(step)
        run.progress.advance(c.steps_per_call)
        for action in actions:
            action(step, state, pending)
    pending.drain()
    if step < c.steps and run.saved[0].latest() != step:
        Save(run)(step, state)
    run.watch.tick()
    return step


def _sources(run: Run, program: program_lib.Training, start: int) -> Iterator[Any]:
    """The input of each call: the data on the device, or the batches of its S steps."""
    c = run.c
    mesh = run.setup.mesh
    if program.source is not None:
        while True:
            yield program.source
    batches = data.host_batches(
        run.setup.dataset.train,
        range(start, c.steps),
        seed=c.seed,
        share=functools.partial(hosts.rows, rules.over_batch(mesh)),
        batch=c.batch,
        labelled=c.data.labelled_batch,
    )
    place = rules.over_batch(mesh, leading=1)
    while True:
        with run.watch.part("data"):
            stacked = _stack([next(batches) for _ in range(c.steps_per_call)])
            call = hosts.assemble(stacked, place)
        yield call


def _stack(batches: Sequence[Any]) -> Any:
    """Batches of S steps as one tree of arrays with a leading axis S."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *batches)


@contextlib.contextmanager
def _closing(run: Run, stop: Stop) -> Iterator[None]:
    """Close the files of a run and give back the signals, whatever happens within."""
    failure = None
    try:
        yield
    except BaseException as error:
        failure = error
        raise
    finally:
        _close(run, stop, failure)


def _close(run: Run, stop: Stop, failure: BaseException | None) -> None:
    """Close everything, also where closing fails; no later error hides the first."""
    closers = [run.watch.close, run.profile.close, run.progress.close]
    for member in run.members:
        if member.log:
            closers.append(member.log.close)
        closers.append(functools.partial(member.saved.close, failure))
    closers.append(stop.restore)
    errors = []
    for close in closers:
        try:
            close()
        except Exception as error:
            errors.append(error)
    if errors and failure is None:
        raise errors[0]
