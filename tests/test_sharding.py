"""Meshes, partition rules, and the same update however it is compiled."""

import jax
import numpy as np
import optax
import pytest

from tests.test_step import small
from vae_jax import compile as compile_lib
from vae_jax import config, data, model, sharding

# Relative, in float32: sums in another order.
TOLERANCE = 1e-5
P = jax.sharding.PartitionSpec
slow = pytest.mark.slow


def built(c, devices=8):
    dataset = data.load(c.data)
    mesh = sharding.make_mesh(c.mesh, jax.devices()[:devices])
    m = model.build_for(c, dataset)
    state, places = compile_lib.init(c, m, mesh, dataset)
    return state, compile_lib.training(c, m, mesh, dataset, state, places)


def update(c, devices=8):
    """(the figures of one step, Adam's mean of gradients after it): what an update is made of, before it is rounded
    into parameters that are a thousand times larger."""
    state, run = built(c, devices)
    state, values = run.run(state, run.source, run.key)
    return np.asarray(values)[0], jax.tree.map(np.asarray, optax.tree.get(state.opt, "mu"))


def objective(name, **fields):
    """A tiny config of an objective on digits, with noise in the data, in z and in the augmentation."""
    c = small(optim__name="adam", optim__weight_decay=0.0, optim__eps=1.0, optim__schedule="constant")
    c.encoder.widths = c.decoder.widths = (32, 16)
    if name == "m2":
        c.data.binarize, c.data.labels, c.data.labelled_batch = "dynamic", 100, 16
        c.likelihood = config.call("likelihood", "bernoulli")
        c.objective = config.call("objective", "m2", alpha=10.0)
    if name == "iwae":
        c.classifier = config.call("classifier", "none")
        c.objective = config.call("objective", "iwae", samples=4, estimator="dreg")
    for field, value in fields.items():
        config.set_field(c, field.replace("__", "."), value)
    config.validate(c)
    return c


# name: (fields, devices). Each must make the update of jit on one device.
MODES = {
    "jit 2": ({}, 2),
    "jit 8": ({}, 8),
    "jit data=4 model=2": ({"mesh__data": 4, "mesh__model": 2}, 8),
    "jit data=2 fsdp=4": ({"mesh__data": 2, "mesh__fsdp": 4}, 8),
    "jit data=4 samples=2": ({"mesh__data": 4, "mesh__samples": 2}, 8),
    "shard_map 8": ({"compile": "shard_map"}, 8),
    "shard_map data=2 fsdp=2 model=2": ({"compile": "shard_map", "mesh__fsdp": 2, "mesh__model": 2}, 8),
    "shard_map fsdp=2 samples=2": ({"compile": "shard_map", "mesh__fsdp": 2, "mesh__samples": 2}, 8),
    "pmap 8": ({"compile": "pmap"}, 8),
    "jit 4, accumulate 4": ({"accumulate": 4}, 4),
    "shard_map 4, accumulate 2": ({"compile": "shard_map", "accumulate": 2}, 4),
    "remat": ({"remat": "full"}, 1),
}


def apart(c, want, devices):
    """The largest relative difference of a figure, or of one parameter array's gradient (its norm), from ``want``."""
    figures, grads = update(c, devices)
    pairs = list(zip(jax.tree.leaves(grads), jax.tree.leaves(want[1]), strict=True))
    gaps = [
        np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-9) for a, b in [*pairs, *zip(figures, want[0], strict=True)]
    ]
    return float(max(gaps))


@pytest.fixture(scope="module")
def one():
    """name of an objective → its update under jit on one device."""
    return {name: update(objective(name), 1) for name in ("joint", "m2", "iwae")}


# Of the two slower objectives the fast suite has the modes that differ for them.
SOME = ("jit data=4 samples=2", "shard_map fsdp=2 samples=2", "jit 4, accumulate 4", "pmap 8")


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        pytest.param(name, mode, marks=[] if name == "joint" or mode in SOME[: 2 if name == "m2" else 4] else slow)
        for name in ("joint", "m2", "iwae")
        for mode in MODES
        if name != "joint" or "samples" not in mode
    ],
)
def test_every_mode_makes_the_same_update(one, name, mode):
    fields, devices = MODES[mode]
    assert apart(objective(name, **fields), one[name], devices) <= TOLERANCE
