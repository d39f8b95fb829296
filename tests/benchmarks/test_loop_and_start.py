"""The loop beside its bare step, the start, and what a run compiles."""

import dataclasses
import os
import pathlib
import re
import subprocess
import sys

import pytest

from benchmarks import startup, whole
from tests.benchmarks.tiny import DIGITS, ROOT, TINY
from vae_jax import cli, config
from vae_jax.train import clock

LOOP = {"steps": "20", "log_every": "10", "eval.every": "10", "optim.warmup": "0"}
SHORT = TINY | {
    "steps_per_call": "5",
    "log_every": "10",
    "eval.every": "20",
    "optim.warmup": "0",
}


def test_the_loop_says_where_its_time_goes() -> None:
    fields = TINY | LOOP | {"mesh.data": "1"}
    c = cli.apply(config.load(DIGITS), list(fields.items()))
    figures = whole.measure(c, rounds=1, seconds=0.01)
    assert figures["kept"]["value"] > 0
    parts = [figures[part]["value"] for part in clock.LOOP]
    assert min(parts) >= 0 < max(parts) and sum(parts) < 1


def test_help_waits_for_no_jax() -> None:
    code = (
        "import runpy, sys\n"
        "sys.argv = ['train.py', '--help']\n"
        "try: runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit as done: assert not done.code, done.code\n"
        "seen = {name.split('.')[0] for name in sys.modules}\n"
        "assert 'absl' in seen\n"
        "slow = {'jax', 'jaxlib', 'flax', 'optax', 'orbax', 'tensorflow', 'matplotlib'}\n"
        "assert not seen & slow, seen\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "--workdir" in done.stdout, done.stderr


@dataclasses.dataclass
class Home:
    """A user's home folder with an empty cache, and runs of a tiny config in it."""

    path: pathlib.Path

    def run(self, name: str, steps: int) -> tuple[int, set[str]]:
        """(how many programs a run has, the names of those that it added to the cache)."""
        env = {k: v for k, v in os.environ.items() if k != "VAE_JAX_CACHE"}
        env |= {"HOME": str(self.path), "JAX_LOG_COMPILES": "1"}
        command = [sys.executable, "train.py", *map(word, SHORT.items())]
        command += [f"--config.steps={steps}", f"--workdir={self.path}/{name}"]
        before = self.cached()
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        line = r"^(?:WARNING:\S+:)?Finished XLA compilation of (\S+)"
        programs = re.findall(line, done.stderr, re.M)
        return len(programs), self.cached() - before

    def cached(self) -> set[str]:
        """The files of the user's cache, without their suffix."""
        folder = self.path / ".cache" / "vae_jax" / "xla"
        return {path.name.removesuffix("-cache") for path in folder.glob("*-cache")}


def word(field: tuple[str, str]) -> str:
    return f"--config.{field[0]}={field[1]}"


@pytest.mark.slow
def test_a_run_compiles_each_program_once_and_the_next_takes_them_from_the_cache(
    tmp_path: pathlib.Path,
) -> None:
    """A second process compiles nothing of the same run. Three times the steps, with as many more
    logs, validations and saves, have no more programs; the step's differs by the schedule."""
    home = Home(tmp_path)
    first, added = home.run("first", 20)
    assert first >= len(added) > 10
    again, added = home.run("again", 20)
    assert again == first and not added
    longer, added = home.run("longer", 60)
    assert longer == first
    assert any(name.startswith("jit_run_steps-") for name in added)


@pytest.mark.slow
def test_the_start_is_measured() -> None:
    words = ["--config=configs/digits.py"]
    figures = startup.measure(config.load(DIGITS), words, rounds=1)
    assert set(figures) == {"cold_start", "warm_start", "help"}
    assert all(f["value"] > 0 for f in figures.values())
