"""Real runs of train.py and eval.py in processes: resume, signals, kills."""

import json
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import kill_resume
from tests.processes import on_one_device, python, silent, state_bytes
from vae_jax.config import UserError
from vae_jax.evaluate import gradients, likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.tools import assess
from vae_jax.train import checkpoint, loop
from vae_jax.train import run as run_lib
from vae_jax.train import step as step_lib

METRICS = {
    *("n", "accuracy", "cross_entropy_nats", "ece", "brier", "macro_f1"),
    *("elbo_nats", "kl_nats", "reconstruction_nats", "iw_nats", "iw_nats_se", "iw_k"),
    *("bits_per_dim", "knn_accuracy", "active_units"),
    *("mutual_information_nats", "aggregate_kl_nats", "aggregate_kl_nats_se"),
}


def test_a_run_leaves_what_it_promises(finished):
    workdir, printed = finished
    assert "report" in printed
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert next(iter(metrics)) == "n"
    assert metrics["n"] == 359
    assert set(metrics) == METRICS
    assert None not in metrics.values()
    assert metrics["elbo_nats"] == pytest.approx(
        -metrics["reconstruction_nats"] - metrics["kl_nats"]
    )
    assert (workdir / "report" / "index.html").stat().st_size > 10_000
    rows = kill_resume.losses(workdir)
    validated = [row["step"] for row in rows if row["split"] == "validation"]
    assert validated == list(range(20, 201, 20))
    assert {180, 200} <= set(checkpoint.steps(workdir))


def test_a_finished_run_is_not_trained_again(workdir):
    before = (workdir / "metrics.jsonl").read_bytes()
    assert loop.train(on_one_device(workdir), str(workdir), silent)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_eval_stands_alone_and_agrees(workdir, tmp_path):
    first = json.loads((workdir / "metrics.json").read_text())
    (workdir / "metrics.json").unlink()
    done = python("eval.py", f"--workdir={workdir}", f"--results={tmp_path / 'figures.json'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "metrics.json").read_text()) == pytest.approx(first, rel=1e-5)
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["accuracy"]["value"] == pytest.approx(first["accuracy"])


def bound_on(workdir, mesh, shape):
    """IW-8 of each test image, by the saved run on another mesh of this shape (data, model)."""
    s, state, _ = run_lib.restore(str(workdir), mesh=mesh, say=silent)
    assert (s.mesh.shape["data"], s.mesh.shape["model"]) == shape
    key = step_lib.stream(s.c.seed, "test")
    params = step_lib.averaged(state)
    split = s.dataset.test
    subject = Subject(s.c, s.model, params, s.dataset, s.mesh)
    metrics = likelihood.log_likelihood(subject, split, key, k=8)
    return metrics["iw"]


def test_eval_takes_a_mesh_of_its_own(workdir):
    whole = bound_on(workdir, [], (8, 1))
    split = bound_on(workdir, [("mesh.model", "4")], (2, 4))
    np.testing.assert_allclose(split, whole, rtol=1e-5)


@pytest.mark.slow
def test_eval_takes_fewer_images_at_once(workdir):
    first = json.loads((workdir / "metrics.json").read_text())
    done = python("eval.py", f"--workdir={workdir}", "--batch=24")
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "metrics.json").read_text()) == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize(
    ("field", "value", "line"),
    [("mesh.model", "3", "mesh"), ("mesh.modle", "2", "mesh.modle=2: unknown field")],
)
def test_eval_refuses_a_wrong_mesh(workdir, field, value, line):
    with pytest.raises(UserError, match=line):
        assess.assess(str(workdir), assess.Request(mesh=[(field, value)]), say=silent)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_same_command_goes_on_bit_for_bit(finished, tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *kill_resume.COMMAND, f"--workdir={workdir}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    for line in process.stdout:
        if line.startswith("step"):
            break
    process.send_signal(number)
    rest, _ = process.communicate(timeout=120)
    assert process.returncode == loop.STOPPED, rest
    assert "the same command goes on from there" in rest
    assert checkpoint.steps(workdir)[-1] < 200
    lines = []
    assert loop.train(on_one_device(workdir), str(workdir), lines.append)
    assert any("going on from step" in line for line in lines)
    assert kill_resume.losses(workdir)[-1] == kill_resume.losses(finished[0])[-1]
    assert state_bytes(workdir) == state_bytes(finished[0])


def test_kill_9_resumes_bit_for_bit(finished, tmp_path):
    """One killed run in the suite; ``python -m benchmarks.kill_resume`` repeats it twenty times."""
    workdir = str(tmp_path / "run")
    assert kill_resume.kill_once(workdir, random.Random(time.time()))
    assert loop.train(on_one_device(workdir), workdir, silent)
    different, same_rows = kill_resume.compare(finished[0], workdir)
    assert different == []
    assert same_rows


@pytest.mark.slow
def test_the_probe_of_gradient_estimators(workdir):
    gradients.run(
        ["gradients", f"--workdir={workdir}", "--samples=1,4", "--repeats=6", "--batch=8"]
    )
    rows = {}
    for row in json.loads((workdir / "gradients.json").read_text()):
        rows[row["estimator"], row["samples"]] = row
    assert len(rows) == 6
    assert (workdir / "gradients.png").stat().st_size > 5000
    # For one sample, DReG is STL; gradients of the generative part are pathwise for all.
    for side in ("inference", "generative"):
        assert rows["stl", 1][side] == pytest.approx(rows["dreg", 1][side], rel=1e-3)
        for row in rows.values():
            assert row[side]["variance"] > 0
    pathwise = rows["pathwise", 4]["generative"]["variance"]
    assert pathwise == pytest.approx(rows["dreg", 4]["generative"]["variance"], rel=1e-3)
