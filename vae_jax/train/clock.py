"""The parts of a run's wall time, reports of stalls, and profiles on demand."""

import collections
import contextlib
import faulthandler
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vae_jax.mesh import hosts, store

LOOP = (
    "data",
    "dispatch",
    "log",
    "validation",
    "checkpoint",
)  # parts of the training loop, beside the steps
PARTS = ("compile", *LOOP, "restart")
CALLS = 10  # that SIGUSR1 profiles
ROW = ("images_per_s", "goodput", "host_skew_ms", "slowest_host")  # of a row, those that time makes


Clock = dict[str, float]


def new_clock() -> Clock:
    """Seconds of the training loop and of each of :data:`PARTS`, which a checkpoint keeps.

    Those of :data:`LOOP` are within the loop; compile and restart are outside it. ``restarts`` is
    how often the run went on from a checkpoint; without one, "restart" is the time to the first
    step.
    """
    return {"seconds": 0.0, "restarts": 0} | {f"{part}_seconds": 0.0 for part in PARTS}


def _wall(clock: Clock) -> float:
    """All seconds of a run."""
    return clock["seconds"] + clock["compile_seconds"] + clock["restart_seconds"]


def goodput(clock: Clock) -> float:
    """The steps' share of the wall time. Repeated steps count as restart."""
    steps = clock["seconds"] - sum(clock[f"{part}_seconds"] for part in LOOP)
    return steps / _wall(clock)


def shares(clock: Clock) -> str:
    """'steps 81 %, compile 12 %, ...' of the wall time, the largest first."""
    parts = {"steps": goodput(clock)}
    for part in PARTS:
        name = part
        if part == "restart" and not clock["restarts"]:
            name = "start-up"
        parts[name] = clock[f"{part}_seconds"] / _wall(clock)
    ranked = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ranked if share >= 0.005)


class Watch:
    """Adds up a clock's parts, and reports a stall: no step for ``times`` the median.

    Each process reports its own, with its last step and the stack of every thread, once for each
    stall. Of several processes those that wait for another stand in a collective; the slow one does
    not.

    Args:
      since: when this part of the run began, as ``time.time()``; after a restart, when its
        checkpoint was saved.
      least: seconds without a step that are never a stall; ten times as many while it compiles,
        validates or saves.
    """

    def __init__(
        self,
        clock: Clock,
        step: int,
        since: float,
        *,
        times: float = 20,
        least: float = 60.0,
        file: IO[str] | None = None,
    ) -> None:
        self.clock = clock
        self.last = step
        self.doing = "steps"
        self._process = jax.process_index()
        self._since = since - clock["compile_seconds"]
        self._times = times
        self._least = least
        self._file = file or sys.stderr
        self._durations = collections.deque(maxlen=101)  # seconds between steps
        self._moved = time.monotonic()
        self._alone = 0.0
        self._zero = None  # when the loop would have begun without a restart or a compilation
        self._over = threading.Event()
        threading.Thread(target=self._report_stalls, daemon=True).start()

    def begin(self) -> None:
        """The loop begins; the time before it is compile or restart."""
        lost = time.time() - self._since - self.clock["compile_seconds"]
        self.clock["restart_seconds"] += max(0.0, lost)  # a clock that was ahead when it was saved
        self._moved = time.monotonic()
        self._zero = self._moved - self.clock["seconds"]
        self._alone = self._seconds("data", "log", "checkpoint")

    def step(self, at: int) -> None:
        """A call has been dispatched and the one before it has ended."""
        now = time.monotonic()
        self._durations.append(now - self._moved)
        self.last = at
        self._moved = now

    def tick(self) -> None:
        """Bring the seconds of the loop up to date."""
        if self._zero is not None:
            self.clock["seconds"] = time.monotonic() - self._zero

    def step_seconds(self) -> float:
        """Seconds of the loop but for those that log, validate and save."""
        self.tick()
        return self.clock["seconds"] - self._seconds("log", "validation", "checkpoint")

    def _seconds(self, *parts: str) -> float:
        return sum(self.clock[f"{part}_seconds"] for part in parts)

    def skew(self, steps: int) -> dict[str, float]:
        """How unevenly the processes spent the last ``steps`` steps; nothing for one process.

        A step has collectives, so it takes all processes the same time: the fast ones wait. The
        difference is in what each does alone, in data, log and checkpoint: ``host_skew_ms`` is the
        milliseconds a step that ``slowest_host`` took more than the fastest. All processes are to
        call it together.
        """
        before = self._alone
        self._alone = self._seconds("data", "log", "checkpoint")
        if not hosts.several():
            return {}
        each = multihost_utils.process_allgather(np.float32((self._alone - before) / steps))
        return {
            "host_skew_ms": 1e3 * float(each.max() - each.min()),
            "slowest_host": int(each.argmax()),
        }

    @contextlib.contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Add the time inside to a part of the clock; compiling is no time of the loop."""
        began = time.monotonic()
        self.doing = name
        try:
            yield
        finally:
            self._moved = time.monotonic()
            self.doing = "steps"
            seconds = self._moved - began
            self.clock[f"{name}_seconds"] += seconds
            if name not in LOOP and self._zero is not None:
                self._zero += seconds

    def _report_stalls(self) -> None:
        reported = None
        while not self._over.wait(self._least / 10):
            moved = self._moved
            quiet = time.monotonic() - moved
            median = statistics.median(list(self._durations) or [0.0])
            patience = 1 if self.doing == "steps" else 10
            if quiet > patience * max(self._least, self._times * median) and moved != reported:
                reported = moved
                with contextlib.suppress(OSError, ValueError):  # a terminal that is gone
                    self._report(quiet, median)

    def _report(self, quiet: float, median: float) -> None:
        what = f"process {self._process}: no step for {quiet:.0f} s (median {median:.2g} s)"
        print(f"{what}: last step {self.last}, in {self.doing}", file=self._file, flush=True)
        faulthandler.dump_traceback(self._file, all_threads=True)

    def close(self) -> None:
        self._over.set()


class Profile:
    """Traces of ``jax.profiler`` into ``workdir/profile/PROCESS``, for TensorBoard or Perfetto.

    It traces the steps ``span`` = (a, b), and the next calls whenever this process gets SIGUSR1.
    """

    def __init__(
        self,
        workdir: str,
        span: tuple[int, int] | None,
        per_call: int,
        say: Callable[[str], Any],
    ) -> None:
        self._target = os.path.join(workdir, "profile", str(jax.process_index()))
        self._folder = self._target
        if store.remote(workdir):
            name = f"vae_jax-profile-{os.getpid()}"
            self._folder = os.path.join(tempfile.gettempdir(), name)
        self._span = span
        self._per_call = per_call
        self._say = say
        self._on = False
        self._asked = False
        self._old = signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, *_: Any) -> None:
        self._asked = True

    def before(self, at: int, pending: jax.Array | None) -> None:
        """Begin or end after step ``at``; ``pending``: the metrics of the last call."""
        if self._on and at >= self._span[1]:
            self.end(pending)
        if self._asked and not self._on:
            self._asked = False
            self._span = (at + 1, at + CALLS * self._per_call)
        if not self._span or self._on:
            return
        first, last = self._span
        if first <= at + self._per_call and at < last:
            jax.block_until_ready(pending)
            jax.profiler.start_trace(self._folder)
            self._on = True

    def end(self, pending: jax.Array | None) -> None:
        """Write the trace. One that cannot be written does not end the run."""
        if not self._on:
            return
        first, last = self._span
        self._on = False
        self._span = None
        jax.block_until_ready(pending)
        try:
            jax.profiler.stop_trace()
            if self._target != self._folder:
                store.copy(self._folder, self._target)
        except (OSError, RuntimeError) as error:  # jax's own errors are RuntimeErrors
            why = str(error).splitlines()[0]
            self._say(f"steps {first}-{last} are not profiled: {self._target}: {why}")
            return
        self._say(f"profiled steps {first}-{last}: {self._target}")

    def close(self) -> None:
        try:
            self.end(None)
        finally:
            signal.signal(signal.SIGUSR1, self._old)
