"""A loss that looks through another run: constants that are the same on every device and later."""

import json
import pathlib
import re
import shutil

import jax
import numpy as np
import pytest

from benchmarks import parity
from tests.processes import silent
from tests.tiny import short
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.train import features, loop, step
from vae_jax.train import run as run_lib


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """The folder of a finished run on digits."""
    folder = str(tmp_path_factory.mktemp("runs") / "seen")
    loop.train(short(1, steps=8), folder, silent)
    return folder


def looking(folder, **fields):
    c = parity.objective("iwae", **fields)
    c.objective = config.call("objective", "perceptual", features=folder, weight=50.0)
    return c


def test_the_layers_are_those_of_the_runs_encoder(seen):
    encoder = features.encoder_of("objective.features", seen)
    restored = run_lib.restore(seen, say=silent)
    params = jax.tree.map(np.asarray, step.averaged(restored.state))["encoder"]
    x = restored.setup.dataset.test.image[:5] / 16.0
    (layer,) = jax.jit(encoder.layers)(x)
    dense = params["Layer_0"]["dense"]
    want = np.maximum(x.reshape(5, -1) @ dense["kernel"] + dense["bias"], 0)
    np.testing.assert_allclose(layer, want, rtol=1e-4, atol=1e-5)
    assert encoder.shape == (8, 8, 1)


SLOW_MODES = ("jit data=2 fsdp=4", "pmap 8")


@pytest.mark.parametrize(
    "mode", ["shard_map 8", *(pytest.param(mode, marks=pytest.mark.slow) for mode in SLOW_MODES)]
)
def test_the_update_is_the_same_on_every_device(seen, mode):
    fields, devices = parity.MODES[mode]
    reference = parity.update(looking(seen, mesh__data=1), devices=1)
    assert parity.largest_gap(looking(seen, **fields), reference, devices) < 2e-4


@pytest.mark.slow
def test_a_run_goes_on_with_the_same_features_or_not_at_all(seen, tmp_path, monkeypatch):
    folder = str(tmp_path / "run")
    moved = str(tmp_path / "elsewhere" / "seen")
    shutil.copytree(seen, moved)

    def of_steps(steps, features_folder):
        c = short(1, steps=steps)
        c.optim.schedule = "constant"
        c.objective = config.call("objective", "perceptual", features=features_folder)
        return c

    assert loop.train(of_steps(4, seen), folder, silent)
    kept = json.loads(pathlib.Path(folder, "data.json").read_text())["sources"]
    assert kept == {"objective.features": features.encoder_of("objective.features", seen).hash}
    # It has moved: its hash is the same.
    assert loop.train(of_steps(8, moved), folder, silent)
    assert run_lib.restore(folder, "latest", say=silent).meta["step"] == 8
    # Another run stands there now.
    other = str(tmp_path / "other" / "seen")
    loop.train(short(1, steps=4, seed=5), other, silent)
    with pytest.raises(UserError, match=r"objective\.features=\S+other/seen: text \w+ -> \w+"):
        loop.train(of_steps(12, other), folder, silent)


def test_what_is_no_run_on_these_images_is_one_line(seen, tmp_path):
    with pytest.raises(UserError, match=r"objective\.features=\S+: no run in it") as caught:
        run_lib.setup(looking(str(tmp_path / "nothing")))
    assert "\n" not in str(caught.value)
    c = looking(seen)
    with pytest.raises(UserError, match=re.escape("sees images of (8, 8, 1); want a run on (9,")):
        features.functions(c, (9, 8, 1))
