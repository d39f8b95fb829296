"""The whole training loop beside its bare compiled step, and where the difference goes."""

import contextlib
import io
import os
import tempfile

import numpy as np

from benchmarks import cells
from vae_jax.tools import results
from vae_jax.train import checkpoint, loop
from vae_jax.train import clock as watch


def looped(c):
    """The clock of one run of the loop, from its first call to its last save: ``watch.new_clock``."""
    with tempfile.TemporaryDirectory(prefix="vae_jax_loop_") as folder:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            loop.train(c, os.path.join(folder, "run"), say=lambda _: None)
        return checkpoint.Checkpoints(os.path.join(folder, "run"), write=False).meta()["clock"]


def measure(c, rounds, seconds, say=print):
    """{name: results.figure}: the bare step in turns with whole runs of the config, ``rounds`` of each.

    A run begins with nothing, ends at ``config.steps``, and logs, validates and saves as the config says; starting
    and compiling are not in it.
    """
    cell = cells.Cell(c, {"key": "all", "fields": {}, "error": ""})
    cells.build(cell)
    lane, share, split = cell.lanes["ours"], [], []
    calls = cells.calls_for(lane, seconds)
    for i in range(rounds):
        before = cells.window(lane, calls)
        spent = looped(c)
        bare = c.steps * (before + cells.window(lane, calls)) / 2
        share.append(bare / spent["seconds"])
        split.append([spent[f"{part}_seconds"] / spent["seconds"] for part in watch.LOOP])
        say(f"round {i + 1} of {rounds}: the loop keeps {share[-1]:.1%}")
    median = lambda v: float(np.median(v))  # noqa: E731
    kept = results.figure(median(share), "of the bare step", sd=float(np.std(share)), n=rounds)
    parts = zip(watch.LOOP, zip(*split, strict=True), strict=True)
    return {"kept": kept} | {part: results.figure(median(v), "of the loop", n=rounds) for part, v in parts}
