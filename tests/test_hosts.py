"""Several processes as one run: real processes, real collectives, real checkpoints on this machine."""

import importlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time

import absl.flags
import jax
import numpy as np
import pytest
import yaml

from benchmarks import kill_resume
from tests import several
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.mesh import hosts
from vae_jax.mesh import rules as sharding
from vae_jax.tools import launch
from vae_jax.train import loop
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

train = importlib.import_module("train")
RECIPES = pathlib.Path(__file__).parents[1] / "launch"
# Rows of 12 steps, and the state after them, of another number of devices: float32 sums in another order.
TOLERANCE = 1e-6


def start(folder, tasks, processes=2, devices=2):
    argv = [
        "-m",
        "vae_jax.tools.launch",
        f"--processes={processes}",
        f"--devices_per_process={devices}",
        "--restarts=0",
        "--",
    ]
    argv += ["-m", "tests.several", f"--folder={folder}", f"--tasks={','.join(tasks)}"]
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = [
        json.loads((folder / f"outcome_{processes}_{p}.json").read_text()) for p in range(processes)
    ]
    return outcomes, done.stdout


def in_process(folder, devices, **kwargs):
    assert loop.train(several.config(devices, **kwargs), str(folder), lambda _: None)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process with four devices and with one; then two processes with two each, and what they did."""
    compile_lib.use_cache()
    folder = tmp_path_factory.mktemp("hosts")
    in_process(folder / "four", 4)
    in_process(folder / "one", 1)
    several.cut(folder / "one", folder / "from_one", 8)
    lock = workdir.claim(folder / "taken", several.config(4))
    outcomes, printed = start(
        folder, ["fed", "again", "from_one", "count", "taken", "skew", "preempted"]
    )
    os.close(lock)
    return folder, outcomes, printed


def close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE * max(1.0, np.abs(y).max()))


def same_rows(a, b):
    assert [(r["step"], r["split"]) for r in a] == [(r["step"], r["split"]) for r in b]
    for mine, its in zip(a, b, strict=True):
        assert mine.keys() == its.keys()
        for name in its.keys() - {"split"}:
            assert mine[name] == pytest.approx(its[name], rel=TOLERANCE), (its["step"], name)


def test_two_processes_have_the_trace_of_one(runs):
    """Batches from the hosts, each process its own rows, beside a training set that lives on the devices."""
    folder, outcomes, _ = runs
    assert [o["fed"] for o in outcomes] == [True, True]
    same_rows(several.rows(folder / "fed"), several.rows(folder / "four"))
    close(several.state(folder / "fed", 4)[0], several.state(folder / "four", 4)[0])


def test_resume_on_the_same_layout_is_bit_for_bit(runs):
    folder, _, _ = runs
    a, b = (several.state(folder / name, 4)[0] for name in ("again", "fed"))
    assert all(np.array_equal(x, y) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True))
    assert several.rows(folder / "again") == several.rows(folder / "fed")


def test_what_one_process_began_two_go_on_with(runs):
    folder, _, _ = runs
    close(
        several.state(folder / "from_one", 1)[0], several.state(folder / "one", 1)[0]
    )  # 1 x 1 to step 8, then 2 x 2


@pytest.mark.parametrize("devices", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8))])
def test_what_two_processes_began_one_goes_on_with(devices, runs, tmp_path):
    folder, _, _ = runs
    several.cut(folder / "fed", tmp_path / "back", 8)  # 2 x 2 to step 8, then 1 x 1, 4 or 8
    in_process(tmp_path / "back", devices)
    close(several.state(tmp_path / "back", 1)[0], several.state(folder / "one", 1)[0])


def test_sigterm_to_one_process_saves_the_same_step_on_all(runs):
    folder, outcomes, printed = runs
    (done, step), other = (o["preempted"] for o in outcomes)
    assert [done, step] == other and not done
    assert several.EVERY <= step < 100_000
    assert several.state(folder / "preempted", 1)[1] == step
    assert printed.count("the same command goes on from there") == 1, "one process speaks"


@pytest.fixture(scope="module")
def counted():
    c = several.config(1)
    return several.figures(c, sharding.make_mesh(c.mesh, jax.devices()[:1]), data.load(c.data))


@pytest.mark.parametrize("processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_each_example_counts_once_on_any_number_of_processes(processes, counted, request, tmp_path):
    """37 images in batches of 24: noise is keyed by example, so what counts one twice or leaves one out shows."""
    if processes == 2:
        outcomes = request.getfixturevalue("runs")[1]
    else:
        outcomes, _ = start(tmp_path, ["count"], processes, devices=1)
    want = counted
    assert len(want["iw"]) == several.IMAGES
    for outcome in outcomes:
        np.testing.assert_allclose(outcome["count"]["iw"], want["iw"], rtol=1e-5)
        assert outcome["count"]["validation"] == pytest.approx(want["validation"], rel=1e-5)


def test_two_runs_on_one_workdir(runs):
    folder, outcomes, _ = runs
    assert outcomes[0]["taken"] == f"UserError: workdir={folder / 'taken'}: another run is using it"
    assert outcomes[1]["taken"] == "SystemExit: 2", "one process says it, all end"


def test_the_log_names_the_process_that_the_others_wait_for(runs):
    folder, outcomes, _ = runs
    for outcome in outcomes:
        (slow, even) = outcome["skew"]
        assert slow["slowest_host"] == 1 and 49 < slow["host_skew_ms"] < 80, "0.2 s in four steps"
        assert 0 <= even["host_skew_ms"] < 1, "since it was asked last"
    lines = (folder / "fed" / "metrics.jsonl").read_text().splitlines()
    for row in map(json.loads, lines):
        assert ("host_skew_ms" in row) == (row["split"] == "train"), (
            "one process has none, and a validation"
        )


def test_a_process_reads_only_its_rows_and_all_together_the_batch():
    c = several.config(4, fed=True)
    dataset = data.load(c.data)
    whole = next(data.host_batches(dataset.train, start=3, steps=1, batch=c.batch, seed=0))
    parts = []
    for rows in (np.arange(0, 16), np.arange(16, 32)):
        feed = data.host_batches(
            dataset.train, start=3, steps=1, batch=c.batch, seed=0, share=lambda _, r=rows: r
        )
        parts.append(next(feed))
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([p[name] for p in parts]), values)
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:4])
    np.testing.assert_array_equal(
        hosts.rows(sharding.over_batch(mesh), c.batch), np.arange(c.batch)
    )


# --- joining ---


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--processes=2"], r"^coordinator: want all of"),
        (["--coordinator=localhost", "--processes=2", "--process=0"], r"^coordinator: want all of"),
        (["--coordinator=localhost:1", "--processes=2", "--process=2"], r"^process=2: want 0 to 1"),
    ],
)
def test_wrong_flags_are_one_line(flags, line):
    with pytest.raises(UserError, match=line):
        train.run(["train.py", "--workdir=unused", *flags])


@pytest.mark.parametrize(
    ("process", "line"),
    [
        (1, r"error: coordinator=localhost:\d+: cannot be reached after 2 s; want .*\n"),
        (0, r"error: coordinator=localhost:\d+: not all processes came in 2 s; want 2, .*\n"),
    ],
    ids=["unreachable", "alone"],
)
def test_a_process_that_meets_nobody_says_so_and_ends(process, line, tmp_path):
    at = [
        f"--coordinator=localhost:{free_port()}",
        "--processes=2",
        f"--process={process}",
        "--wait=2",
    ]
    argv = [sys.executable, "train.py", f"--workdir={tmp_path / 'run'}", *at]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and re.fullmatch(line, done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


def free_port():
    import socket

    with socket.socket() as s:
        s.bind(("localhost", 0))
        return s.getsockname()[1]


@pytest.mark.parametrize(
    ("variables", "found"),
    [
        ({}, None),
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": "1",
                "SLURM_PROCID": "0",
                "SLURM_STEP_NODELIST": "a",
            },
            None,
        ),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, None),  # the batch script itself, outside srun
        (
            {
                "SLURM_JOB_ID": "7",
                "SLURM_NTASKS": "4",
                "SLURM_PROCID": "0",
                "SLURM_STEP_NODELIST": "a[1-4]",
            },
            "SLURM",
        ),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "GKE"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod alone
    ],
)
def test_only_a_launcher_of_several_processes_is_joined(variables, found, monkeypatch):
    for name in [
        n
        for n in os.environ
        if n.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_"))
    ]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts.cluster() == found


# --- the launcher, with scripts that need no jax ---


def launched(tmp_path, body, *flags, **kwargs):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, pathlib, signal, sys, time\nhere = pathlib.Path(__file__).parent\n" + body
    )
    argv = [
        sys.executable,
        "-m",
        "vae_jax.tools.launch",
        "--processes=2",
        *flags,
        "--",
        str(script),
    ]
    return subprocess.Popen(
        argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )


TRIES = """
process = sys.argv[-1].partition("=")[2]
tries = here / f"tries{process}"
tries.write_text(tries.read_text() + "x" if tries.exists() else "x")
n = len(tries.read_text())
"""


def test_a_death_ends_the_others_and_all_begin_again(tmp_path):
    body = TRIES + "print('try', n)\n"
    body += (
        "if n < 3 and process == '1': os.kill(os.getpid(), signal.SIGKILL)\nif n < 3: os._exit(1)\n"
    )
    process = launched(tmp_path, body, "--restarts=2")
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 0, printed
    for p in (0, 1):
        assert [f"[{p}] try {n}" in printed for n in (1, 2, 3)] == [True] * 3
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
    body = "signal.signal(signal.SIGTERM, lambda *_: os._exit(75))\n(here / sys.argv[-1][-1]).touch()\ntime.sleep(60)\n"
    process = launched(tmp_path, body)
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


# --- the slow ones: whole runs of train.py under the launcher, killed or asked to stop ---


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
        assert different == [] and rows
        if hits:
            return
    pytest.fail("five jobs were done before their signal came")


# --- recipes ---


@pytest.mark.parametrize("name", ["tpu_pod.sh", "slurm.sbatch"])
def test_a_recipe_is_a_script_that_bash_reads(name):
    subprocess.run(["bash", "-n", RECIPES / name], check=True)


def test_the_recipes_start_what_is_there():
    """Each flag of train.py that a recipe gives is one, and each #SBATCH line is an option with its value."""
    text = {path.name: path.read_text() for path in RECIPES.iterdir()}
    assert set(text) == {"tpu_pod.sh", "slurm.sbatch", "gke_jobset.yaml"}
    values = absl.flags.FlagValues()
    train.define(values)
    for name, recipe in text.items():
        given = re.search(r"train\.py[\s,]+(.*)", recipe)[1]
        known = {f"--{flag}" for flag in values}
        assert set(re.findall(r"--\w+", given)) <= known, name
    options = re.findall(r"^#SBATCH (.*)$", text["slurm.sbatch"], re.M)
    assert len(options) > 5 and all(re.fullmatch(r"--[a-z-]+(=\S+)?", option) for option in options)
    jobset = yaml.safe_load(text["gke_jobset.yaml"])["spec"]
    job = jobset["replicatedJobs"][0]["template"]["spec"]
    assert (
        job["parallelism"] == job["completions"]
        and job["backoffLimit"] == 0
        and jobset["failurePolicy"]
    )
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert job["template"]["spec"]["containers"][0]["command"][:2] == ["python", "train.py"]
