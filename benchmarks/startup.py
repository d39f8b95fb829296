"""Seconds from the command to the first step, with nothing compiled before and with everything; and to --help."""

import os
import subprocess
import sys
import tempfile
import time

import numpy as np

from vae_jax import cli as flags
from vae_jax.config import UserError
from vae_jax.tools import results

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def environment(cache):
    """That of a process whose compiled programs, and Python's compiled sources, are in one folder and nowhere else, and
    which begins as a user's does: this one has begun anew already (``flags.main``)."""
    given = {name: value for name, value in os.environ.items() if name != flags.HUGE_PAGES}
    given["GLIBC_TUNABLES"] = given.get("GLIBC_TUNABLES", "").removesuffix(flags.TUNABLE).rstrip(":")
    return given | {
        "VAE_JAX_CACHE": os.path.join(cache, "programs"),
        "PYTHONPYCACHEPREFIX": os.path.join(cache, "python"),
        "PYTHONDONTWRITEBYTECODE": "",
    }


def first_step(c, words, cache):
    """Seconds until ``train.py`` with these words has done its first call and told its figures.

    Args:
      c: the config that the words make; it names the steps of a call.
      cache: folder of what is compiled: :func:`environment`.
    Raises:
      UserError: it ended before; its last line.
    """
    with tempfile.TemporaryDirectory(prefix="vae_jax_start_") as folder:
        command = [sys.executable, "train.py", *words, f"--config.log_every={c.steps_per_call}"]
        with open(os.path.join(folder, "stderr"), "w+") as said:
            began = time.perf_counter()
            process = subprocess.Popen(
                [*command, f"--workdir={folder}/run"],
                cwd=ROOT,
                env=environment(cache),
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )
            try:
                for line in process.stdout:
                    if line.startswith("step "):
                        return time.perf_counter() - began
            finally:
                process.kill()  # the first step is all that was wanted
                process.communicate()
            said.seek(0)
            last = (said.read().strip().splitlines() or ["no step, no error"])[-1]
            raise UserError(last.removeprefix("error: "))


def answer(cache):
    """Seconds of ``train.py --help``."""
    command = [sys.executable, "train.py", "--help"]
    began = time.perf_counter()
    subprocess.run(command, cwd=ROOT, env=environment(cache), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def measure(c, words, rounds, say=print):
    """{'cold_start', 'warm_start', 'help': results.figure} of a config; warm and help are medians of ``rounds``."""
    with tempfile.TemporaryDirectory(prefix="vae_jax_start_") as cache:
        cold = first_step(c, words, cache)
        say(f"cold {cold:.1f} s")
        warm, answers = [], []
        for _ in range(rounds):
            warm.append(first_step(c, words, cache))
            answers.append(answer(cache))
            say(f"warm {warm[-1]:.2f} s, --help {answers[-1]:.2f} s")
    median = lambda v: results.figure(float(np.median(v)), "s", sd=float(np.std(v)), n=len(v))  # noqa: E731
    return {"cold_start": results.figure(cold, "s", n=1), "warm_start": median(warm), "help": median(answers)}
