"""Where a run's wall time goes, what it is doing when it stands still, and profiles on demand."""

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

import jax
import numpy as np
from jax.experimental import multihost_utils

from vae_jax.mesh import hosts, store

LOOP = ("data", "dispatch", "log", "validation", "checkpoint")  # parts of the training loop, beside the steps
PARTS = ("compile", *LOOP, "restart")
CALLS = 10  # that SIGUSR1 profiles
ROW = ("images_per_s", "goodput", "host_skew_ms", "slowest_host")  # of a logged row, what the wall clock made


def new_clock():
    """What a checkpoint keeps of time: ``seconds`` of the training loop and of each of :data:`PARTS`.

    Those of :data:`LOOP` are within the loop; compile and restart are before it.
    """
    return {"seconds": 0.0} | {f"{part}_seconds": 0.0 for part in PARTS}


def goodput(clock):
    """The share of the wall time that steps had. What a death cost, steps done again included, is restart."""
    whole = clock["seconds"] + clock["compile_seconds"] + clock["restart_seconds"]
    return (clock["seconds"] - sum(clock[f"{part}_seconds"] for part in LOOP)) / whole


def shares(clock):
    """'steps 81 %, compile 12 %, ...' of the wall time, the largest first."""
    whole = clock["seconds"] + clock["compile_seconds"] + clock["restart_seconds"]
    parts = {"steps": goodput(clock)} | {part: clock[f"{part}_seconds"] / whole for part in PARTS}
    ranked = sorted(parts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {share:.0%}" for name, share in ranked if share >= 0.005)


class Watch:
    """Adds up a clock's parts, and says when there has been no step for ``times`` the median.

    Each process says it for itself, with its last step and the stack of every thread, once for each stall. Of
    several processes those that wait for another stand in a collective; the one that they wait for does not.

    Args:
      since: when this part of the run began, as ``time.time()``; after a restart, when what it goes on from was saved.
      least: seconds without a step that are never a stall; ten times as many while it compiles, validates or saves.
    """

    def __init__(self, clock, step, since, *, times=20, least=60.0, file=None):
        self.clock, self.last, self.doing = clock, step, "steps"
        self._who = jax.process_index()
        self._since = since - clock["compile_seconds"]
        self._times, self._least, self._file = times, least, file or sys.stderr
        self._took, self._moved, self._over = collections.deque(maxlen=101), time.monotonic(), threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def begin(self):
        """The loop begins; what came before it is compile or restart."""
        self.clock["restart_seconds"] += time.time() - self._since - self.clock["compile_seconds"]
        self._moved, self._alone = time.monotonic(), self._own()

    def step(self, at):
        """A call has been dispatched and the one before it has ended."""
        now = time.monotonic()
        self._took.append(now - self._moved)
        self.last, self._moved = at, now

    def _own(self):
        return sum(self.clock[f"{part}_seconds"] for part in ("data", "log", "checkpoint"))

    def skew(self, steps):
        """How unevenly the processes took the last ``steps`` steps, for a row of the log; nothing for one process.

        A step has collectives, so it takes all processes the same time: those that are done wait. What differs is
        what each does alone, in data, log and checkpoint: ``host_skew_ms`` is the milliseconds a step that it took
        ``slowest_host`` more than the fastest. All processes are to call it together.
        """
        before, self._alone = self._alone, self._own()
        if not hosts.several():
            return {}
        each = multihost_utils.process_allgather(np.float32((self._alone - before) / steps))
        return {"host_skew_ms": 1e3 * float(each.max() - each.min()), "slowest_host": int(each.argmax())}

    @contextlib.contextmanager
    def part(self, name):
        began, self.doing = time.monotonic(), name
        try:
            yield
        finally:
            self._moved, self.doing = time.monotonic(), "steps"
            self.clock[f"{name}_seconds"] += self._moved - began

    def _look(self):
        said = None
        while not self._over.wait(self._least / 10):
            moved, quiet = self._moved, time.monotonic() - self._moved
            usual = statistics.median(list(self._took) or [0.0])
            limit = max(self._least, self._times * usual) * (1 if self.doing == "steps" else 10)
            if quiet > limit and moved != said:
                said = moved
                where = f"process {self._who}: no step for {quiet:.0f} s (median {usual:.2g} s)"
                print(f"{where}: last step {self.last}, in {self.doing}", file=self._file, flush=True)
                faulthandler.dump_traceback(self._file, all_threads=True)

    def close(self):
        self._over.set()


class Profile:
    """Traces of ``jax.profiler`` into ``workdir/profile/PROCESS``, for TensorBoard or Perfetto.

    Of the steps ``span`` = (a, b), and of the next calls whenever this process gets SIGUSR1.
    """

    def __init__(self, workdir, span, per_call, say):
        self._folder = self._into = os.path.join(workdir, "profile", str(jax.process_index()))
        if store.remote(workdir):
            self._folder = os.path.join(tempfile.gettempdir(), f"vae_jax-profile-{os.getpid()}")
        self._span, self._per_call, self._say, self._on, self._asked = span, per_call, say, False, False
        self._old = signal.signal(signal.SIGUSR1, self._ask)

    def _ask(self, *_):
        self._asked = True

    def before(self, at, pending):
        """Begin or end before the call that follows step ``at``; ``pending``: what the call before gives."""
        if self._on and at >= self._span[1]:
            self.end(pending)
        if self._asked and not self._on:
            self._asked, self._span = False, (at + 1, at + CALLS * self._per_call)
        if self._span and not self._on and self._span[0] <= at + self._per_call and at < self._span[1]:
            jax.block_until_ready(pending)
            jax.profiler.start_trace(self._folder)
            self._on = True

    def end(self, pending):
        if self._on:
            jax.block_until_ready(pending)
            jax.profiler.stop_trace()
            if self._into != self._folder:
                store.copy(self._folder, self._into)
            self._say(f"profiled steps {self._span[0]}-{self._span[1]}: {self._into}")
            self._on, self._span = False, None

    def close(self):
        self.end(None)
        signal.signal(signal.SIGUSR1, self._old)
