"""Replicas in one program: each is the run that it would have been alone."""

import json
import shutil

import jax
import numpy as np
import pytest

import train
from benchmarks.parity import small
from tests.processes import rows, silent
from tests.tiny import TRACE_TOLERANCE
from vae_jax import cli as flags
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.tools import assess
from vae_jax.train import checkpoint, loop
from vae_jax.train import clock as watch
from vae_jax.train import run as workdir


def several(**fields):
    c = small(steps=20, log_every=10, eval__every=10, eval__iw_k=2)
    for field, values in fields.items():
        config.replicate(c, field.replace("__", "."), values)
    config.validate(c)
    return c


def params(folder):
    _, state, _ = workdir.restore(str(folder), "latest", say=silent)
    return jax.tree.map(np.asarray, state)


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "run"
    c = several(seed=(0, 3), objective__gamma=(10.0, 30.0), optim__lr=(1e-3, 3e-3))
    c.mesh.data = 2  # one replica on each of two devices
    assert loop.train(c, str(folder))
    return folder, c


@pytest.mark.parametrize("r", [0, 1])
def test_a_replica_is_the_run_alone(swept, tmp_path, r):
    """The same rows and the same state, to float32 rounding over 20 steps."""
    folder, c = swept
    c_alone = config.replica(c, r)
    c_alone.mesh.data = 1
    assert loop.train(c_alone, str(tmp_path / "alone"))
    for row, want in zip(rows(folder / f"replica_{r}"), rows(tmp_path / "alone"), strict=True):
        assert (row["step"], row["split"]) == (want["step"], want["split"])
        for name in want.keys() - {*watch.ROW, "split", "accuracy"}:
            assert row[name] == pytest.approx(want[name], rel=TRACE_TOLERANCE), name
    state = jax.tree.leaves(params(folder / f"replica_{r}"))
    alone = jax.tree.leaves(params(tmp_path / "alone"))
    for x, y in zip(state, alone, strict=True):
        # Adam divides small gradients by themselves.
        np.testing.assert_allclose(x, y, rtol=1e-3, atol=1e-5)
    other = jax.tree.leaves(params(folder / f"replica_{1 - r}"))
    assert not np.allclose(other[-1], alone[-1])


def test_a_sweep_killed_between_two_saves_goes_on_from_the_step_that_all_have(swept, tmp_path):
    """Bit for bit: the later step of one replica is dropped and computed again."""
    folder, c = swept
    stopped = tmp_path / "run"
    shutil.copytree(folder, stopped)
    checkpoints = checkpoint.Checkpoints(str(stopped / "replica_1"), silent)
    checkpoints.drop_after(10)  # as if the kill had come after replica 0's save of step 20
    checkpoints.close()
    lines = []
    assert loop.train(c, str(stopped), lines.append)
    assert f"going on from step 10 of 20 in {stopped}" in lines
    for name in ("replica_0", "replica_1"):
        jax.tree.map(np.testing.assert_array_equal, params(stopped / name), params(folder / name))


@pytest.mark.slow
def test_the_page_of_a_replica_says_which_it_is(swept, tmp_path):
    folder = shutil.copytree(swept[0], tmp_path / "run")
    _, run = assess.assess(str(folder / "replica_1"), assess.Request(iw_k=1), say=silent)
    assert run["replica"].startswith("1 of 2 (") and run["restarts"] == 0
    page = (folder / "replica_1" / "report" / "index.html").read_text()
    assert "each replica is judged at a step of its own" in page
    assert "restart" not in run["wall_time"]
    assert workdir.replica_name(str(folder)) == ""


@pytest.mark.slow
def test_the_command_line_gives_each_replica_a_page_and_all_one_table(tmp_path, capsys):
    workdir_flags = [f"--workdir={tmp_path / 'run'}", f"--results={tmp_path / 'seeds.json'}"]
    steps = ["--config.steps=20", "--config.eval.every=20", "--config.log_every=20"]
    fields = ["--config.eval.iw_k=1", "--config.optim.warmup=0", "--config.mesh.data=1"]
    fields += ["--config.replicas.seed=0,1"]
    argv = ["train.py", "--config=configs/digits.py", *workdir_flags, *steps, *fields]
    assert train.run(argv) == 0
    assert "side by side" in capsys.readouterr().out
    table = json.loads((tmp_path / "run" / "replicas.json").read_text())
    assert [row["seed"] for row in table] == [0, 1]
    for r in (0, 1):
        folder = tmp_path / "run" / f"replica_{r}"
        assert (folder / "report" / "index.html").is_file()
        assert json.loads((folder / "config.json").read_text())["seed"] == r
    result = json.loads((tmp_path / "seeds.json").read_text())
    elbos = [row["elbo_nats"] for row in table]
    figure = result["figures"]["elbo_nats"]
    assert figure["value"] == pytest.approx(np.mean(elbos))
    assert figure["sd"] == pytest.approx(np.std(elbos, ddof=1))
    assert figure["n"] == 2
    assert result["seed"] == [0, 1]
    with pytest.raises(UserError, match=r"holds 2 replicas; want .*replica_0"):
        workdir.restore(str(tmp_path / "run"))


def test_a_config_with_replicas_is_read_back(swept):
    folder, c = swept
    assert config.differences(workdir.read_config(str(folder)), c) == []


@pytest.mark.parametrize(
    ("replicas", "line"),
    [
        (
            {"batch": "32,64"},
            r"replicas\.batch: cannot differ between replicas; want one of .*optim\.lr",
        ),
        ({"seed": "0,x"}, r"replicas\.seed=0,x: want numbers"),
        ({"seed": "0"}, r"replicas\.seed=0: want two or more, all different"),
        ({"seed": "1,1"}, r"replicas\.seed=1,1: want two or more, all different"),
        (
            {"seed": "0,1,2", "optim.lr": "1e-3,1e-4"},
            r"replicas: .*seed has 3 values.*; want as many of each",
        ),
        ({"optim.lr": "1e-3,-1"}, r"optim\.lr=-1\.0: want a number > 0"),
    ],
)
def test_wrong_replicas_are_one_line(replicas, line):
    pairs = [(f"replicas.{field}", values) for field, values in replicas.items()]
    with pytest.raises(UserError, match=line) as error:
        config.validate(flags.apply(small(), pairs))
    assert "\n" not in str(error.value)


def test_replicas_that_no_mesh_can_share_are_one_line():
    c = several(seed=(0, 1, 2))
    with pytest.raises(
        UserError, match=r"mesh\.data=8: 3 replicas do not divide over 8 devices; want mesh\.data=3"
    ):
        workdir.setup(c)
    c.mesh.data = 1
    c.mesh.model = 2
    with pytest.raises(UserError, match=r"mesh\.model=2: replicas are not split; want 1"):
        workdir.setup(c)
