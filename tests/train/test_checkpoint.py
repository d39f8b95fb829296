"""Checkpoints: what is damaged is named and left out, the best and the latest are kept."""

import json
import os
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import kill_resume
from tests.processes import on_one_device, state_bytes
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.train import checkpoint, loop
from vae_jax.train import run as run_lib


def files_with_content(folder):
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.stat().st_size:
            files.append(path)
    return files


def flip(path, at):
    """Change one bit of the byte at this place."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "no manifest"])
def test_a_damaged_step_is_named_and_the_one_before_is_used(workdir, damage):
    files = files_with_content(workdir / "checkpoints" / "200")
    victim = max(files, key=lambda path: path.stat().st_size)
    middle = victim.stat().st_size // 2
    if damage == "flip":
        flip(victim, middle)
    elif damage == "truncate":
        victim.write_bytes(victim.read_bytes()[:middle])
    elif damage == "remove":
        victim.unlink()
    else:
        (workdir / "manifests" / "200.json").unlink()
    lines = []
    saved = checkpoint.Checkpoints(workdir, lines.append)
    assert saved.latest() == 180
    saved.close()
    (line,) = lines
    assert "\n" not in line
    assert re.match(r"checkpoint 200: .*(checksum|missing|not finished)", line)
    assert (workdir / "damaged" / "200").is_dir(), "set aside, not deleted"


def test_every_file_of_a_checkpoint_is_under_the_checksum(workdir):
    files = files_with_content(workdir / "checkpoints" / "200")
    assert len(files) >= 5
    for victim in files:
        flip(victim, -1)
        assert victim.name in checkpoint.fault(workdir, 200)
        flip(victim, -1)
    assert checkpoint.fault(workdir, 200) is None


def test_a_resumed_run_trains_over_a_damaged_step(finished, workdir):
    victim = files_with_content(workdir / "checkpoints" / "200" / "state")[0]
    victim.write_bytes(b"x" * victim.stat().st_size)
    lines = []
    assert loop.train(on_one_device(workdir), str(workdir), lines.append)
    assert any("going on from step 180" in line for line in lines)
    assert state_bytes(workdir) == state_bytes(finished[0])
    assert kill_resume.losses(workdir) == kill_resume.losses(finished[0])


def test_the_best_and_the_latest_are_kept_apart(tmp_path):
    saved = checkpoint.Checkpoints(tmp_path)
    w = jnp.arange(4.0)
    for step, value in ((1, 3.0), (2, 1.0), (3, 2.0), (4, 5.0), (5, 4.0)):
        saved.save(step, {"w": step * w}, {"step": step, "clock": {}}, select=value)
    saved.save(6, {"w": w}, {"step": 6, "clock": {}})  # on request: without a metric
    saved.seal()
    assert checkpoint.steps(tmp_path) == [2, 5, 6]
    assert saved.latest() == 6
    assert saved.best() == 2
    shapes = {"w": jax.ShapeDtypeStruct((4,), jnp.float32, sharding=w.sharding)}
    best, meta = saved.restore(shapes, "best")
    assert meta["step"] == 2
    np.testing.assert_array_equal(best["w"], 2 * np.arange(4.0))
    assert saved.restore(shapes)[1]["step"] == 6
    with pytest.raises(UserError, match=r"checkpoint=3: no such step; there are \[2, 5, 6\]"):
        saved.restore(shapes, 3)
    saved.close()


def test_another_config_is_refused_with_the_fields_that_differ(finished):
    c = run_lib.read_config(finished[0])
    with c.unlocked():
        c.optim.lr = 0.5
        c.latent = 3
        c.log_every = 20
    with pytest.raises(UserError) as error:
        run_lib.claim(finished[0], c)
    message = str(error.value)
    assert "latent: 16 -> 3" in message
    assert "optim.lr: 0.002 -> 0.5" in message
    assert "\n" not in message
    assert "log_every" not in message, "what changes no number may change"


def test_two_runs_on_one_workdir(tmp_path):
    c = config.default()
    lock = run_lib.claim(tmp_path / "run", c)
    with pytest.raises(UserError, match="another run is using it"):
        run_lib.claim(tmp_path / "run", c)
    os.close(lock)
    os.close(run_lib.claim(tmp_path / "run", c))


def test_evaluation_beside_a_training_run_moves_nothing(workdir):
    """A committed step whose manifest is still to come is not eval.py's to judge."""
    (workdir / "manifests" / "200.json").unlink()
    before = sorted(workdir.rglob("*"))
    lines = []
    _, state, meta = run_lib.restore(workdir, "latest", say=lines.append)
    assert meta["step"] == int(state.step) == 180
    assert lines == ["checkpoint 200: was not finished (no manifest); not used"]
    assert sorted(workdir.rglob("*")) == before


def test_steps_per_call_that_misses_the_step_where_a_run_stopped(workdir):
    c = run_lib.read_config(workdir)
    with c.unlocked():
        c.steps = 300
    c.steps_per_call = 150
    c.log_every = 150
    c.eval.every = 150
    (workdir / "config.json").write_text(json.dumps(config.to_json(c)))
    for path in (workdir / "manifests").iterdir():  # as if it had stopped at 200 of 300
        tree = json.loads(path.read_text())
        tree["config.json"] |= {"steps": 300, "log_every": 150, "eval.every": 150}
        path.write_text(json.dumps(tree))
    line = "steps_per_call=150: want a divisor of 200, the step where the run stopped"
    with pytest.raises(UserError, match=line):
        loop.train(c, workdir)
