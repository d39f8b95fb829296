"""The whole training loop beside its bare compiled step, and how its time divides."""

import contextlib
import io
import os
import tempfile
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from benchmarks import cells
from benchmarks.common import FIGURES
from vae_jax.tools import results
from vae_jax.train import checkpoint, clock, loop


def run_loop(c: ConfigDict) -> dict[str, float]:
    """Train once, silently; the loop's clock from its first call to its last save."""
    with tempfile.TemporaryDirectory(prefix="vae_jax_loop_") as folder:
        workdir = os.path.join(folder, "run")
        silence = io.StringIO()
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            loop.train(c, workdir, lambda _: None)
        return checkpoint.Checkpoints(workdir, write=False).meta()["clock"]


def measure(
    c: ConfigDict, rounds: int, seconds: float, log: Callable[[str], None] = print
) -> FIGURES:
    """The bare step in turns with whole runs of the config, ``rounds`` of each.

    A run begins from nothing, ends at ``config.steps``, and logs, validates and saves as the config
    says. Starting and compiling do not count.

    Returns:
      'kept', the share of the bare step in the loop's time, and the shares of ``clock.LOOP``.
    """
    cell = cells.Cell(c, {"key": "all", "fields": {}, "error": ""})
    cells.build(cell)
    lane = cell.lanes["ours"]
    calls = cells.calls_for(lane, seconds)
    kept = []
    shares = {part: [] for part in clock.LOOP}
    for i in range(rounds):
        before = cells.window(lane, calls)
        times = run_loop(c)
        bare = c.steps * (before + cells.window(lane, calls)) / 2
        kept.append(bare / times["seconds"])
        for part in clock.LOOP:
            shares[part].append(times[f"{part}_seconds"] / times["seconds"])
        log(f"round {i + 1} of {rounds}: the loop keeps {kept[-1]:.1%}")
    spread = float(np.std(kept))
    median = float(np.median(kept))
    figures = {"kept": results.figure(median, "of the bare step", sd=spread, n=rounds)}
    for part, values in shares.items():
        figures[part] = results.figure(float(np.median(values)), "of the loop", n=rounds)
    return figures
