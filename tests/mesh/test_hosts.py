"""Several processes as one run: real processes, collectives and checkpoints on this machine."""

import importlib
import json
import os
import re

import jax
import numpy as np
import pytest

from tests import processes, tiny
from tests.mesh import tasks
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.mesh import hosts
from vae_jax.mesh import rules as sharding
from vae_jax.train import loop
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir

train = importlib.import_module("train")
# Rows of 12 steps, and the state after them, of another number of devices: float32 sums in another
# order.
TOLERANCE = 1e-6


def start(folder, names, num_processes=2, devices=2):
    """The outcome of each process that did these tasks, and what they printed."""
    launcher = [
        *("-m", "vae_jax.tools.launch", f"--processes={num_processes}"),
        *(f"--devices_per_process={devices}", "--restarts=0", "--"),
    ]
    script = ["-m", "tests.mesh.tasks", f"--folder={folder}", f"--tasks={','.join(names)}"]
    done = processes.python(*launcher, *script)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = []
    for process in range(num_processes):
        path = folder / f"outcome_{num_processes}_{process}.json"
        outcomes.append(json.loads(path.read_text()))
    return outcomes, done.stdout


def in_process(folder, devices, **kwargs):
    assert loop.train(tiny.short(devices, **kwargs), str(folder), processes.silent)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """One process with four devices and with one; then two processes with two each."""
    compile_lib.use_cache()
    folder = tmp_path_factory.mktemp("hosts")
    in_process(folder / "four", 4)
    in_process(folder / "one", 1)
    processes.cut(folder / "one", folder / "from_one", 8)
    lock = workdir.claim(folder / "taken", tiny.short(4))
    outcomes, printed = start(folder, tasks.TASKS)
    os.close(lock)
    return folder, outcomes, printed


def assert_close(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        largest = max(1.0, np.abs(y).max())
        np.testing.assert_allclose(x, y, rtol=0, atol=TOLERANCE * largest)


def assert_same_rows(rows, expected):
    for row, want in zip(rows, expected, strict=True):
        assert row.keys() == want.keys()
        assert (row["step"], row["split"]) == (want["step"], want["split"])
        for name in want.keys() - {"split"}:
            assert row[name] == pytest.approx(want[name], rel=TOLERANCE), (want["step"], name)


def test_two_processes_have_the_trace_of_one(runs):
    """Each host gives its own rows of the batch; one process has the set on its devices."""
    folder, outcomes, _ = runs
    assert [outcome["from_host"] for outcome in outcomes] == [True, True]
    rows = processes.untimed_rows(folder / "from_host")
    assert_same_rows(rows, processes.untimed_rows(folder / "four"))
    assert_close(tasks.state(folder / "from_host", 4)[0], tasks.state(folder / "four", 4)[0])


def test_resume_on_the_same_layout_is_bit_for_bit(runs):
    folder, _, _ = runs
    resumed, _ = tasks.state(folder / "again", 4)
    whole, _ = tasks.state(folder / "from_host", 4)
    jax.tree.map(np.testing.assert_array_equal, resumed, whole)
    rows = processes.untimed_rows(folder / "again")
    assert rows == processes.untimed_rows(folder / "from_host")


def test_what_one_process_began_two_go_on_with(runs):
    """1 x 1 devices to step 8, then 2 x 2."""
    folder, _, _ = runs
    assert_close(tasks.state(folder / "from_one", 1)[0], tasks.state(folder / "one", 1)[0])


@pytest.mark.parametrize("devices", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (4, 8))])
def test_what_two_processes_began_one_goes_on_with(devices, runs, tmp_path):
    """2 x 2 devices to step 8, then 1 x 1, 4 or 8."""
    folder, _, _ = runs
    processes.cut(folder / "from_host", tmp_path / "back", 8)
    in_process(tmp_path / "back", devices)
    assert_close(tasks.state(tmp_path / "back", 1)[0], tasks.state(folder / "one", 1)[0])


def test_sigterm_to_one_process_saves_the_same_step_on_all(runs):
    folder, outcomes, printed = runs
    done, step = outcomes[0]["preempted"]
    assert outcomes[1]["preempted"] == [done, step]
    assert not done
    assert tiny.EVERY <= step < 100_000
    assert tasks.state(folder / "preempted", 1)[1] == step
    assert printed.count("the same command goes on from there") == 1, "one process speaks"


@pytest.fixture(scope="module")
def counted():
    c = tiny.short(1)
    return tasks.metrics(c, sharding.make_mesh(c.mesh, jax.devices()[:1]), data.load(c.data))


@pytest.mark.parametrize("num_processes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_each_example_counts_once_on_any_number_of_processes(
    num_processes, counted, request, tmp_path
):
    """37 images in batches of 24.

    Noise is keyed by example, so one that counts twice or not at all changes the numbers.
    """
    if num_processes == 2:
        outcomes = request.getfixturevalue("runs")[1]
    else:
        outcomes, _ = start(tmp_path, ["count"], num_processes, devices=1)
    assert len(counted["iw"]) == tasks.IMAGES
    for outcome in outcomes:
        np.testing.assert_allclose(outcome["count"]["iw"], counted["iw"], rtol=1e-5)
        assert outcome["count"]["validation"] == pytest.approx(counted["validation"], rel=1e-5)


def test_two_runs_on_one_workdir(runs):
    folder, outcomes, _ = runs
    assert outcomes[0]["taken"] == f"UserError: workdir={folder / 'taken'}: another run is using it"
    assert outcomes[1]["taken"] == "SystemExit: 2", "one process says it, all end"


def test_the_log_names_the_process_that_the_others_wait_for(runs):
    folder, outcomes, _ = runs
    for outcome in outcomes:
        slow, even = outcome["skew"]
        assert slow["slowest_host"] == 1
        assert 49 < slow["host_skew_ms"] < 80, "0.2 s in four steps"
        assert 0 <= even["host_skew_ms"] < 1, "since it was asked last"
    for row in processes.rows(folder / "from_host"):
        # A single process has no skew, and neither has a validation.
        assert ("host_skew_ms" in row) == (row["split"] == "train")


def test_a_process_reads_only_its_rows_and_all_together_the_batch():
    c = tiny.short(4, from_host=True)
    train_split = data.load(c.data).train

    def first_batch(share=None):
        options = {} if share is None else {"share": share}
        feed = data.host_batches(train_split, range(3, 4), batch=c.batch, seed=0, **options)
        return next(feed)

    whole = first_batch()
    first = first_batch(lambda batch: np.arange(0, 16))
    second = first_batch(lambda batch: np.arange(16, 32))
    for name, values in whole.items():
        np.testing.assert_array_equal(np.concatenate([first[name], second[name]]), values)
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:4])
    rows = hosts.rows(sharding.over_batch(mesh), c.batch)
    np.testing.assert_array_equal(rows, np.arange(c.batch))


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
    flags = [f"--workdir={tmp_path / 'run'}", f"--coordinator=localhost:{processes.free_port()}"]
    flags += ["--processes=2", f"--process={process}", "--wait=2"]
    done = processes.python("train.py", *flags, timeout=60)
    assert done.returncode == 1
    assert re.fullmatch(line, done.stderr), done.stderr
    assert not (tmp_path / "run").exists()


def slurm(job_tasks, **more):
    return {"SLURM_JOB_ID": "7", "SLURM_NTASKS": job_tasks, **more}


@pytest.mark.parametrize(
    ("variables", "launcher"),
    [
        ({}, None),
        (slurm("1", SLURM_PROCID="0", SLURM_STEP_NODELIST="a"), None),
        (slurm("4"), None),  # the batch script itself, outside srun
        (slurm("4", SLURM_PROCID="0", SLURM_STEP_NODELIST="a[1-4]"), "SLURM"),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "Open MPI"),
        ({"TPU_WORKER_HOSTNAMES": "a"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, "GKE"),
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, None),  # a pod alone
    ],
)
def test_only_a_launcher_of_several_processes_is_joined(variables, launcher, monkeypatch):
    for name in list(os.environ):
        if name.startswith(("SLURM_", "OMPI_", "TPU_", "MEGASCALE_", "KUBERNETES_")):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts.cluster() == launcher
