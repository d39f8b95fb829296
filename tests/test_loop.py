"""Real runs of train.py and eval.py in processes: resume, signals, damage, refusal, non-finite losses."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from benchmarks import kill_resume
from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.evaluate import likelihood
from vae_jax.evaluate.subject import Subject
from vae_jax.tools import assess
from vae_jax.train import checkpoint, log, loop
from vae_jax.train import run as workdir_lib
from vae_jax.train import step as step_lib

TINY = kill_resume.COMMAND


def run(*argv, **kwargs):
    return subprocess.run(
        [sys.executable, *argv], capture_output=True, text=True, timeout=280, **kwargs
    )


def rows(workdir):
    return kill_resume.losses(workdir)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """One finished run, shared: (workdir, what it printed)."""
    workdir = tmp_path_factory.mktemp("finished") / "run"
    done = run(*TINY, f"--workdir={workdir}")
    assert done.returncode == 0, done.stderr
    return workdir, done.stdout


def copy(workdir, tmp_path):
    import shutil

    return shutil.copytree(workdir, tmp_path / "run")


def alone(workdir):
    """The config of a run, on one device of this process as in one of its own."""
    c = workdir_lib.read_config(str(workdir))
    c.mesh.data = 1
    return c


def test_a_run_leaves_what_it_promises(finished):
    workdir, printed = finished
    assert "report" in printed
    metrics = json.loads((workdir / "metrics.json").read_text())
    assert next(iter(metrics)) == "n" and metrics["n"] == 359
    wanted = {
        "accuracy",
        "cross_entropy_nats",
        "ece",
        "elbo_nats",
        "kl_nats",
        "reconstruction_nats",
        "iw_nats",
    }
    wanted |= {
        "brier",
        "macro_f1",
        "iw_nats_se",
        "iw_k",
        "bits_per_dim",
        "knn_accuracy",
        "active_units",
    }
    wanted |= {"mutual_information_nats", "aggregate_kl_nats"}
    assert set(metrics) == {"n", *wanted}
    assert None not in metrics.values()
    assert metrics["elbo_nats"] == pytest.approx(
        -metrics["reconstruction_nats"] - metrics["kl_nats"]
    )
    assert (workdir / "report" / "index.html").stat().st_size > 10_000
    assert [r["step"] for r in rows(workdir) if r["split"] == "validation"] == list(
        range(20, 201, 20)
    )
    assert 200 in checkpoint.steps(workdir) and 180 in checkpoint.steps(workdir)


def test_a_finished_run_is_not_trained_again(finished, tmp_path):
    workdir = copy(finished[0], tmp_path)
    before = (workdir / "metrics.jsonl").read_bytes()
    assert loop.train(alone(workdir), str(workdir), lambda line: None)
    assert (workdir / "metrics.jsonl").read_bytes() == before


def test_eval_stands_alone_and_agrees(finished, tmp_path):
    workdir = copy(finished[0], tmp_path)
    first = json.loads((workdir / "metrics.json").read_text())
    (workdir / "metrics.json").unlink()
    done = run("eval.py", f"--workdir={workdir}", f"--results={tmp_path / 'figures.json'}")
    assert done.returncode == 0, done.stderr
    assert json.loads((workdir / "metrics.json").read_text()) == pytest.approx(first, rel=1e-5)
    figures = json.loads((tmp_path / "figures.json").read_text())["figures"]
    assert figures["accuracy"]["value"] == pytest.approx(first["accuracy"])


def test_eval_takes_a_mesh_of_its_own(finished, tmp_path):
    folder = str(copy(finished[0], tmp_path))
    found = []
    for mesh, shape in (([], (8, 1)), ([("mesh.model", "4")], (2, 4))):
        s, state, _ = workdir_lib.restore(folder, mesh=mesh, say=lambda line: None)
        assert (s.mesh.shape["data"], s.mesh.shape["model"]) == shape
        key, split = step_lib.stream(s.c.seed, "test"), s.dataset.test
        subject = Subject(s.c, s.model, step_lib.averaged(state), s.dataset, s.mesh)
        found.append(likelihood.log_likelihood(subject, split, key, k=8))
    np.testing.assert_allclose(found[1]["iw"], found[0]["iw"], rtol=1e-5)
    for mesh, said in (
        (("mesh.model", "3"), "mesh"),
        (("mesh.modle", "2"), "mesh.modle=2: unknown field"),
    ):
        with pytest.raises(UserError, match=said):
            assess.assess(folder, assess.Request(mesh=[mesh]), say=lambda line: None)


@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
def test_a_signal_saves_and_the_same_command_goes_on_bit_for_bit(finished, tmp_path, number):
    workdir = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, *TINY, f"--workdir={workdir}"],
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
    said = []
    assert loop.train(alone(workdir), str(workdir), said.append)
    assert any("going on from step" in line for line in said)
    assert rows(workdir)[-1] == rows(finished[0])[-1]
    assert last_state(workdir) == last_state(finished[0])


def last_state(workdir):
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(os.path.join(os.path.abspath(workdir), "checkpoints")) as manager:
        restored = manager.restore(200, args=ocp.args.Composite(state=ocp.args.StandardRestore()))
    import jax

    return {
        jax.tree_util.keystr(p): np.asarray(x).tobytes()
        for p, x in jax.tree_util.tree_leaves_with_path(restored["state"])
    }


def test_kill_9_resumes_bit_for_bit(finished, tmp_path):
    """One killed run in the suite; ``python -m benchmarks.kill_resume`` repeats it twenty times."""
    workdir = str(tmp_path / "run")
    assert kill_resume.kill_once(workdir, random.Random(time.time()))
    assert loop.train(alone(workdir), workdir, lambda line: None)
    different, same_rows = kill_resume.compare(finished[0], workdir)
    assert different == [] and same_rows


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest"])
def test_a_damaged_step_is_named_and_the_one_before_is_used(finished, tmp_path, damage):
    workdir = copy(finished[0], tmp_path)
    folder = workdir / "checkpoints" / "200"
    victim = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(victim.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 1
        victim.write_bytes(content)
    elif damage == "truncate":
        victim.write_bytes(content[: len(content) // 2])
    elif damage == "remove":
        victim.unlink()
    else:
        (workdir / "manifests" / "200.json").unlink()
    said = []
    saved = checkpoint.Checkpoints(workdir, said.append)
    assert saved.latest() == 180
    saved.close()
    assert len(said) == 1 and "\n" not in said[0]
    assert re.match(r"checkpoint 200: .*(checksum|missing|not finished)", said[0])
    assert (workdir / "damaged" / "200").is_dir(), "set aside, not deleted"


def test_every_file_of_a_checkpoint_is_under_the_checksum(finished, tmp_path):
    workdir = copy(finished[0], tmp_path)
    folder = workdir / "checkpoints" / "200"
    files = [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]
    assert len(files) >= 5
    for victim in files:
        content = bytearray(victim.read_bytes())
        content[-1] ^= 1
        victim.write_bytes(content)
        assert victim.name in checkpoint.fault(workdir, 200)
        content[-1] ^= 1
        victim.write_bytes(content)
    assert checkpoint.fault(workdir, 200) is None


def test_a_resumed_run_trains_over_a_damaged_step(finished, tmp_path):
    workdir = copy(finished[0], tmp_path)
    victim = next(
        p
        for p in (workdir / "checkpoints" / "200" / "state").rglob("*")
        if p.is_file() and p.stat().st_size
    )
    victim.write_bytes(b"x" * victim.stat().st_size)
    said = []
    assert loop.train(alone(workdir), str(workdir), said.append)
    assert any("going on from step 180" in line for line in said)
    assert last_state(workdir) == last_state(finished[0])
    assert rows(workdir) == rows(finished[0])


def test_the_best_and_the_latest_are_kept_apart(tmp_path):
    import jax
    import jax.numpy as jnp

    saved = checkpoint.Checkpoints(tmp_path)
    state = {"w": jnp.arange(4.0)}
    for step, value in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 5.0), (5, 4.0)):
        saved.save(
            step,
            jax.tree.map(lambda a, s=step: a * s, state),
            {"step": step, "clock": {}},
            select=value,
        )
    saved.save(6, state, {"step": 6, "clock": {}})  # on request: without a figure
    saved.seal()
    assert checkpoint.steps(tmp_path) == [2, 5, 6]
    assert (saved.latest(), saved.best()) == (6, 2)
    shapes = {"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=state["w"].sharding)}
    best, meta = saved.restore(shapes, "best")
    assert meta["step"] == 2
    np.testing.assert_array_equal(best["w"], 2 * np.arange(4.0))
    assert saved.restore(shapes)[1]["step"] == 6
    with pytest.raises(UserError, match=r"checkpoint=3: no such step; there are \[2, 5, 6\]"):
        saved.restore(shapes, 3)
    saved.close()


def test_another_config_is_refused_with_the_fields_that_differ(finished):
    c = workdir_lib.read_config(finished[0])
    with c.unlocked():
        c.optim.lr, c.latent, c.log_every = 0.5, 3, 20
    with pytest.raises(UserError) as error:
        workdir_lib.claim(finished[0], c)
    message = str(error.value)
    assert (
        "latent: 16 -> 3" in message and "optim.lr: 0.002 -> 0.5" in message and "\n" not in message
    )
    assert "log_every" not in message, "what changes no number may change"


def test_two_runs_on_one_workdir(tmp_path):
    c = config_lib.default()
    lock = workdir_lib.claim(tmp_path / "run", c)
    with pytest.raises(UserError, match="another run is using it"):
        workdir_lib.claim(tmp_path / "run", c)
    os.close(lock)
    os.close(workdir_lib.claim(tmp_path / "run", c))


def test_a_loss_that_is_not_finite_stops_with_step_and_term(tmp_path):
    page = tmp_path / "explode.py"
    page.write_text(
        "import jax.numpy as jnp\n"
        "from vae_jax.objectives import Terms, many\n"
        "def loss(model, params, batch, key):\n"
        "    d = many(model, params, batch['image'], key, 1)\n"
        "    kl = d.kl[0].sum(-1)\n"
        "    bad = jnp.where(batch['step'] == 70, jnp.inf, kl)\n"
        "    return Terms(bad - d.log_px[0], d.log_px[0] - kl, d.log_px[0], bad)\n"
    )
    c = config_lib.default()
    c.steps, c.log_every, c.eval.every, c.latent = 80, 20, 20, 2
    c.encoder = config_lib.call("encoder", "mlp", widths=(4,))
    c.objective = config_lib.ConfigDict({"name": f"{page}:loss"})
    want = r"^non-finite loss at step 71: kl=inf \(.*log_px=.*\); last good checkpoint: 60$"
    with pytest.raises(UserError, match=want):
        loop.train(c, str(tmp_path / "run"), say=lambda _: None)
    assert checkpoint.steps(tmp_path / "run")[-1] == 60


def test_bad_steps_are_left_out_and_too_many_in_a_row_stop_the_run(tmp_path):
    page = tmp_path / "stumble.py"
    page.write_text(
        "import jax.numpy as jnp\n"
        "from vae_jax.objectives import Terms\n"
        "def loss(model, params, batch, key):\n"
        "    step = -1 if batch['step'] is None else batch['step']\n"
        "    bad = (step == 5) | (step >= 30)\n"
        "    mu = model.encode(params, batch['image']).mu\n"
        "    return Terms(jnp.where(bad, jnp.nan, (mu**2).sum(-1)))\n"
    )
    c = config_lib.default()
    c.steps, c.log_every, c.eval.every, c.latent, c.optim.skip = 60, 10, 20, 2, 3
    c.encoder = config_lib.call("encoder", "mlp", widths=(4,))
    c.objective = config_lib.ConfigDict({"name": f"{page}:loss"})
    with pytest.raises(
        UserError,
        match=r"optim\.skip=3: 4 bad steps in a row up to step 34: loss=nan.*checkpoint: 20",
    ):
        loop.train(c, str(tmp_path / "run"), say=lambda _: None)
    rows = {
        row["step"]: row for row in log.read_history(tmp_path / "run") if row["split"] == "train"
    }
    assert [rows[at]["skipped"] for at in (10, 20)] == [0.1, 0.0]
    assert 0 < rows[20]["loss"] < rows[10]["loss"]  # means over the good steps


def test_evaluation_beside_a_training_run_moves_nothing(finished, tmp_path):
    """A committed step whose manifest is still to come is not eval.py's to judge."""
    workdir = copy(finished[0], tmp_path)
    (workdir / "manifests" / "200.json").unlink()
    before = sorted(p.relative_to(workdir) for p in workdir.rglob("*"))
    said = []
    _, state, meta = workdir_lib.restore(workdir, "latest", say=said.append)
    assert meta["step"] == int(state.step) == 180
    assert said == ["checkpoint 200: was not finished (no manifest); not used"]
    assert sorted(p.relative_to(workdir) for p in workdir.rglob("*")) == before


def test_steps_per_call_that_misses_the_step_where_a_run_stopped(finished, tmp_path):
    workdir = copy(finished[0], tmp_path)
    c = workdir_lib.read_config(workdir)
    with c.unlocked():
        c.steps = 300
    c.steps_per_call = c.log_every = c.eval.every = 150
    (workdir / "config.json").write_text(json.dumps(config_lib.to_json(c)))
    for path in (workdir / "manifests").iterdir():  # as if it had stopped at 200 of 300
        tree = json.loads(path.read_text())
        tree["config.json"] |= {"steps": 300, "log_every": 150, "eval.every": 150}
        path.write_text(json.dumps(tree))
    with pytest.raises(
        UserError, match="steps_per_call=150: want a divisor of 200, the step where the run stopped"
    ):
        loop.train(c, workdir)


def test_the_probe_of_gradient_estimators(finished, tmp_path):
    from vae_jax.evaluate import gradients

    workdir = copy(finished[0], tmp_path)
    gradients.run(
        ["gradients", f"--workdir={workdir}", "--samples=1,4", "--repeats=6", "--batch=8"]
    )
    rows = {
        (r["estimator"], r["samples"]): r
        for r in json.loads((workdir / "gradients.json").read_text())
    }
    assert len(rows) == 6 and (workdir / "gradients.png").stat().st_size > 5000
    # For one sample, doubly reparameterised is sticking the landing; generative gradients are pathwise for all.
    for side in ("inference", "generative"):
        assert rows["stl", 1][side] == pytest.approx(rows["dreg", 1][side], rel=1e-3)
    assert rows["pathwise", 4]["generative"]["variance"] == pytest.approx(
        rows["dreg", 4]["generative"]["variance"], rel=1e-3
    )
    assert all(
        row[side]["variance"] > 0 for row in rows.values() for side in ("inference", "generative")
    )
