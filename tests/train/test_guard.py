"""Losses that are not finite: the step and the term are named, bad steps are left out."""

import numpy as np
import pytest

from tests.processes import silent
from vae_jax import config
from vae_jax.config import ConfigDict, UserError
from vae_jax.train import checkpoint, guard, log, loop

EXPLODE = """
import jax.numpy as jnp
from vae_jax.objectives import Terms, sample_k

def loss(model, params, batch, key):
    d = sample_k(model, params, batch["image"], key, 1)
    kl = d.kl[0].sum(-1)
    bad = jnp.where(batch["step"] == 70, jnp.inf, kl)
    return Terms(bad - d.log_px[0], d.log_px[0] - kl, d.log_px[0], bad)
"""
STUMBLE = """
import jax.numpy as jnp
from vae_jax.objectives import Terms

def loss(model, params, batch, key):
    step = -1 if batch["step"] is None else batch["step"]
    bad = (step == 5) | (step >= 30)
    mu = model.encode(params, batch["image"]).mu
    return Terms(jnp.where(bad, jnp.nan, (mu**2).sum(-1)))
"""


def config_of(path, text, steps, log_every):
    """A tiny run whose loss is that of a file of the user's own."""
    path.write_text(text)
    c = config.default()
    c.steps = steps
    c.log_every = log_every
    c.eval.every = 20
    c.latent = 2
    c.encoder = config.call("encoder", "mlp", widths=(4,))
    c.objective = ConfigDict({"name": f"{path}:loss"})
    return c


def test_a_loss_that_is_not_finite_stops_with_step_and_term(tmp_path):
    c = config_of(tmp_path / "explode.py", EXPLODE, steps=80, log_every=20)
    line = r"^non-finite loss at step 71: kl=inf \(.*log_px=.*\); last good checkpoint: 60$"
    with pytest.raises(UserError, match=line):
        loop.train(c, str(tmp_path / "run"), say=silent)
    assert checkpoint.steps(tmp_path / "run")[-1] == 60


def test_bad_steps_are_left_out_and_too_many_in_a_row_stop_the_run(tmp_path):
    c = config_of(tmp_path / "stumble.py", STUMBLE, steps=60, log_every=10)
    c.optim.skip = 3
    line = r"optim\.skip=3: 4 bad steps in a row up to step 34: loss=nan.*checkpoint: 20"
    with pytest.raises(UserError, match=line):
        loop.train(c, str(tmp_path / "run"), say=silent)
    rows = {}
    for row in log.read_history(tmp_path / "run"):
        if row["split"] == "train":
            rows[row["step"]] = row
    assert rows[10]["skipped"] == 0.1
    assert rows[20]["skipped"] == 0.0
    assert 0 < rows[20]["loss"] < rows[10]["loss"]  # means over the good steps


class Saved:
    """The only thing of checkpoints that a guard asks for."""

    def latest(self):
        return 7


def guarded(skip=0, steps=2, runs=1):
    c = config.default()
    c.steps_per_call = steps
    c.optim.skip = skip
    return guard.Pending(guard.Guard(c, ("loss", "kl", "skipped"), [Saved()] * runs))


def test_metrics_are_read_one_call_late():
    pending = guarded()
    pending.push(2, np.full((2, 3), np.nan))  # nobody has looked yet
    with pytest.raises(UserError, match=r"^non-finite loss at step 1: kl=nan, skipped=nan; .*: 7$"):
        pending.push(4, np.zeros((2, 3)))


def test_the_first_step_and_replica_that_is_not_finite_is_named():
    pending = guarded(runs=2)
    metrics = np.ones((2, 2, 3))
    metrics[1, 1, 1] = np.inf
    pending.push(10, metrics)
    with pytest.raises(UserError, match=r"at step 10 of replica 1: kl=inf \(loss=1, skipped=1\)"):
        pending.drain()


def test_skipped_steps_are_left_out_of_means_and_counted_over_calls():
    pending = guarded(skip=2)
    bad = [np.inf, 1.0, 1.0]
    pending.push(2, np.array([[1.0, 1.0, 0.0], bad]))
    rows_SxRxM = pending.take()
    assert np.isnan(rows_SxRxM[1, 0, 0]) and rows_SxRxM[:, 0, 2].tolist() == [0.0, 1.0]
    pending.push(4, np.array([bad, bad]))
    with pytest.raises(UserError, match=r"optim\.skip=2: 3 bad steps in a row up to step 4"):
        pending.drain()
