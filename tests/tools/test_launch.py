"""The launcher of several processes, and the recipes of launch/."""

import importlib
import random
import re
import signal
import subprocess
import sys
import time

import absl.flags
import pytest
import yaml

from benchmarks import kill_resume
from tests.processes import ROOT
from vae_jax.config import UserError
from vae_jax.mesh import hosts
from vae_jax.tools import launch

RECIPES = ROOT / "launch"
train = importlib.import_module("train")


BEGIN = """
import os, pathlib, signal, sys, time
here = pathlib.Path(__file__).parent
"""
# Counts the starts of a process in a file.
TRIES = """
process = sys.argv[-1].partition("=")[2]
tries = here / f"tries{process}"
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
n = len(tries.read_text())
"""
DIES_TWICE = """
print("try", n)
if n < 3 and process == "1":
    os.kill(os.getpid(), signal.SIGKILL)
if n < 3:
    os._exit(1)
"""
WAITS = """
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
(here / sys.argv[-1][-1]).touch()
time.sleep(60)
"""


def launched(tmp_path, body, *flags):
    """Two processes of a script, which needs no jax, under the launcher."""
    script = tmp_path / "script.py"
    script.write_text(BEGIN + body)
    argv = [sys.executable, "-m", "vae_jax.tools.launch", "--processes=2", *flags, "--", script]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def test_a_death_ends_the_others_and_all_begin_again(tmp_path):
    process = launched(tmp_path, TRIES + DIES_TWICE, "--restarts=2")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    for p in (0, 1):
        for n in (1, 2, 3):
            assert f"[{p}] try {n}" in printed
    assert printed.count("all begin again in") == 2


@pytest.mark.parametrize(
    ("code", "ends", "tries"), [(0, 0, 1), (2, 2, 1), (hosts.STOPPED, 75, 1), (3, 3, 2)]
)
def test_the_exit_code_is_the_runs(tmp_path, code, ends, tries):
    process = launched(tmp_path, TRIES + f"sys.exit({code})\n", "--restarts=1")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == ends, printed
    assert (tmp_path / "tries0").read_text() == "x" * tries


def test_sigterm_is_passed_on_and_the_run_ends_as_stopped(tmp_path):
    process = launched(tmp_path, WAITS)
    while not ((tmp_path / "0").exists() and (tmp_path / "1").exists()):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == hosts.STOPPED


def test_a_launcher_without_a_script_is_one_line():
    for argv in (["launch"], ["launch", "--processes=2", "--"]):
        with pytest.raises(UserError, match=r"^launch: want the script after --"):
            launch.run(argv)
    with pytest.raises(UserError, match="processes"):
        launch.run(["launch", "--processes=0", "--", "train.py"])


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("stop", [False, True], ids=["kill", "stop"])
def test_a_job_that_loses_or_stops_one_process_ends_in_the_same_state(stop, tmp_path):
    """Once here; ``python -m benchmarks.kill_resume --processes=2`` repeats it."""
    kill_resume.finish(tmp_path / "reference", processes=2)
    rng = random.Random(time.time())
    for attempt in range(5):  # a job that was done before the signal came says nothing
        folder = tmp_path / str(attempt)
        hits, different, rows, _ = kill_resume.launched(
            tmp_path / "reference", folder, rng, 2, stop, kills=1
        )
        assert different == []
        assert rows
        if hits:
            return
    pytest.fail("five jobs were done before their signal came")


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sbatch"])
def test_a_recipe_is_a_script_that_bash_reads(name):
    subprocess.run(["bash", "-n", RECIPES / name], check=True)


def test_the_recipes_start_what_is_there():
    """A recipe gives flags that train.py has; an #SBATCH line is an option with its value."""
    texts = {path.name: path.read_text() for path in RECIPES.iterdir()}
    assert set(texts) == {"tpu_pod.sh", "slurm.sbatch", "gke_jobset.yaml"}
    values = absl.flags.FlagValues()
    train.define(values)
    flags = {f"--{flag}" for flag in values}
    for name, recipe in texts.items():
        arguments = re.search(r"train\.py[\s,]+(.*)", recipe)[1]
        assert set(re.findall(r"--\w+", arguments)) <= flags, name
    options = re.findall(r"^#SBATCH (.*)$", texts["slurm.sbatch"], re.M)
    assert len(options) > 5
    for option in options:
        assert re.fullmatch(r"--[a-z-]+(=\S+)?", option)


def test_a_jobset_restarts_whole_and_stops_at_bad_input():
    jobset = yaml.safe_load((RECIPES / "gke_jobset.yaml").read_text())["spec"]
    assert jobset["failurePolicy"]
    job = jobset["replicatedJobs"][0]["template"]["spec"]
    assert job["parallelism"] == job["completions"]
    assert job["backoffLimit"] == 0
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert job["template"]["spec"]["containers"][0]["command"][:2] == ["python", "train.py"]
