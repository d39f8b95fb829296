"""Seconds from the command to the first step, cold and warm, and to ``--help``.

Cold: nothing is compiled; warm: everything is.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import numpy as np
from ml_collections import ConfigDict

from benchmarks.common import FIGURES
from vae_jax import cli
from vae_jax.config import UserError
from vae_jax.tools import results

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def environment(cache: str) -> dict[str, str]:
    """The environment of a process that keeps what it compiles, Python's too, in one folder.

    The process starts as a user's does: the variables that ``cli.main`` sets when it restarts a
    program for huge pages are left out.
    """
    env = dict(os.environ)
    tunables = env.get("GLIBC_TUNABLES", "").removesuffix(cli.TUNABLE)
    env["GLIBC_TUNABLES"] = tunables.rstrip(":")
    env["VAE_JAX_CACHE"] = os.path.join(cache, "programs")
    env["PYTHONPYCACHEPREFIX"] = os.path.join(cache, "python")
    env["PYTHONDONTWRITEBYTECODE"] = ""
    return env


def first_step(c: ConfigDict, words: list[str], cache: str) -> float:
    """Seconds until ``train.py`` has run its first call and printed its metrics.

    Args:
      c: the config that the words make; it names the steps of a call.
      words: the arguments of train.py.
      cache: folder of compiled programs; see :func:`environment`.
    Raises:
      UserError: the run ended before; its last line.
    """
    command = [sys.executable, "train.py", *words, f"--config.log_every={c.steps_per_call}"]
    with (
        tempfile.TemporaryDirectory(prefix="vae_jax_start_") as folder,
        open(os.path.join(folder, "stderr"), "w+") as stderr,
    ):
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, f"--workdir={folder}/run"],
            cwd=ROOT,
            env=environment(cache),
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            for line in process.stdout:
                if line.startswith("step "):
                    return time.perf_counter() - began
        finally:
            process.kill()  # the first step is all that is measured
            process.communicate()
        stderr.seek(0)
        lines = stderr.read().strip().splitlines() or ["no step, no error"]
        raise UserError(lines[-1].removeprefix("error: "))


def help_seconds(cache: str) -> float:
    """Seconds of ``train.py --help``."""
    command = [sys.executable, "train.py", "--help"]
    env = environment(cache)
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _median(seconds: list[float]) -> dict:
    spread = float(np.std(seconds))
    return results.figure(float(np.median(seconds)), "s", sd=spread, n=len(seconds))


def measure(
    c: ConfigDict, words: list[str], rounds: int, log: Callable[[str], None] = print
) -> FIGURES:
    """'cold_start', 'warm_start' and 'help' of a config; the last two are medians of ``rounds``."""
    warm = []
    answers = []
    with tempfile.TemporaryDirectory(prefix="vae_jax_start_") as cache:
        cold = first_step(c, words, cache)
        log(f"cold {cold:.1f} s")
        for _ in range(rounds):
            warm.append(first_step(c, words, cache))
            answers.append(help_seconds(cache))
            log(f"warm {warm[-1]:.2f} s, --help {answers[-1]:.2f} s")
    return {
        "cold_start": results.figure(cold, "s", n=1),
        "warm_start": _median(warm),
        "help": _median(answers),
    }
