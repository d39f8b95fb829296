"""Tiny configs, the modes in which a step is compiled, and how two updates are compared.

``benchmarks.step`` and ``benchmarks.modes`` publish what these functions measure; the tests of
``train/program.py`` and ``mesh/`` assert it.
"""

from typing import Any

import jax
import numpy as np
import optax
from ml_collections import ConfigDict

from vae_jax import config, data, models
from vae_jax.mesh import rules
from vae_jax.train import loop, program, step

# name: (fields of the config, devices). Each must make the update of jit on one device.
MODES: dict[str, tuple[dict, int]] = {
    "jit 2": ({"compile": "jit"}, 2),
    "jit 8": ({"compile": "jit"}, 8),
    "jit data=4 model=2": ({"compile": "jit", "mesh__data": 4, "mesh__model": 2}, 8),
    "jit data=2 fsdp=4": ({"compile": "jit", "mesh__data": 2, "mesh__fsdp": 4}, 8),
    "auto data=2 fsdp=4": ({"mesh__data": 2, "mesh__fsdp": 4}, 8),
    "jit data=4 samples=2": ({"compile": "jit", "mesh__data": 4, "mesh__samples": 2}, 8),
    "shard_map 8": ({"compile": "shard_map"}, 8),
    "shard_map data=2 fsdp=2 model=2": (
        {"compile": "shard_map", "mesh__fsdp": 2, "mesh__model": 2},
        8,
    ),
    "shard_map fsdp=2 samples=2": (
        {"compile": "shard_map", "mesh__fsdp": 2, "mesh__samples": 2},
        8,
    ),
    "pmap 8": ({"compile": "pmap"}, 8),
    "jit 4, accumulate 4": ({"compile": "jit", "accumulate": 4}, 4),
    "shard_map 4, accumulate 2": ({"compile": "shard_map", "accumulate": 2}, 4),
    "remat": ({"remat": "full"}, 1),
}
Update = tuple[np.ndarray, Any]  # metrics of one step, Adam's mean of gradients after it


def set_fields(c: ConfigDict, fields: dict[str, Any]) -> ConfigDict:
    """``c`` with ``{"optim__lr": 0.1}`` set and checked."""
    for field, value in fields.items():
        config.set_field(c, field.replace("__", "."), value)
    config.validate(c)
    return c


def small(**fields: Any) -> ConfigDict:
    """The joint objective on digits with nets of 32 units."""
    c = config.default()
    c.latent = 4
    c.batch = 32
    c.encoder = config.call("encoder", "mlp", widths=(32,))
    c.decoder = config.call("decoder", "mlp", widths=(32,))
    c.classifier = config.call("classifier", "mlp")
    c.objective = config.call("objective", "joint", gamma=10.0)
    c.optim.ema = 0.99
    c.optim.clip = 10.0
    c.optim.weight_decay = 0.01
    c.data.shift = 1
    return set_fields(c, fields)


def objective(name: str, **fields: Any) -> ConfigDict:
    """A tiny config of an objective, with noise in the data, in z and in the augmentation.

    With eps = 1, Adam's update is nearly linear in the gradient, so that the rounding of small
    gradients is not enlarged.
    """
    c = small(
        optim__name="adam", optim__weight_decay=0.0, optim__eps=1.0, optim__schedule="constant"
    )
    c.encoder.widths = (32, 16)
    c.decoder.widths = (32, 16)
    if name == "m2":
        c.data.binarize = "dynamic"
        c.data.labels = 100
        c.data.labelled_batch = 16
        c.likelihood = config.call("likelihood", "bernoulli")
        c.model = config.call("model", "m2")
        c.objective = config.call("objective", "m2", alpha=10.0)
    if name == "iwae":
        c.classifier = config.call("classifier", "none")
        c.objective = config.call("objective", "iwae", samples=4, estimator="dreg")
    return set_fields(c, fields)


def build(
    c: ConfigDict, devices: list[jax.Device]
) -> tuple[step.TrainState, program.Training, data.Dataset]:
    """The state that training begins with, the compiled program, and the data set."""
    dataset = data.load(c.data)
    mesh = rules.make_mesh(c.mesh, devices)
    m = models.build_for(c, dataset)
    state, places = program.init(c, m, mesh, dataset)
    return state, program.training(c, m, mesh, dataset, state, places), dataset


def built(c: ConfigDict, devices: int = 8) -> tuple[step.TrainState, program.Training]:
    """The state and the program on the first ``devices`` devices."""
    state, run, _ = build(c, jax.devices()[:devices])
    return state, run


def trace(
    c: ConfigDict, devices: list[jax.Device], calls: int
) -> tuple[np.ndarray, step.TrainState]:
    """The loss of every step of ``calls`` calls, and the last state."""
    state, run, dataset = build(c, devices)
    sizes = {"batch": c.batch, "labelled": c.data.labelled_batch}
    feed = data.host_batches(dataset.train, range(calls), seed=c.seed, **sizes)
    at = run.names.index("loss")
    losses = []
    for _ in range(calls):
        source = run.source
        if source is None:
            source = loop._stack([next(feed)])
        state, values = run.run(state, source, run.key)
        losses.append(np.asarray(values)[:, at])
    return np.concatenate(losses), state


def update(c: ConfigDict, devices: int = 8) -> Update:
    """The metrics of one step and Adam's mean of gradients after it.

    They are what an update is made of, before it is rounded into parameters that are a thousand
    times larger.
    """
    state, run = built(c, devices)
    state, values = run.run(state, run.source, run.key)
    return np.asarray(values)[0], jax.tree.map(np.asarray, optax.tree.get(state.opt, "mu"))


def largest_gap(c: ConfigDict, reference: Update, devices: int) -> float:
    """The largest relative difference of an update from ``reference``.

    Of a metric: of its value; of a parameter array: of the norm of its gradient.
    """
    metrics, gradients = update(c, devices)
    pairs = list(zip(jax.tree.leaves(gradients), jax.tree.leaves(reference[1]), strict=True))
    pairs += list(zip(metrics, reference[0], strict=True))
    gaps = []
    for value, expected in pairs:
        size = max(np.linalg.norm(expected), 1e-9)
        gaps.append(np.linalg.norm(value - expected) / size)
    return float(max(gaps))


def largest_difference(a: Any, b: Any) -> float:
    """max |a - b| over all leaves of two trees."""
    gaps = []
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        gaps.append(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))))
    return max(gaps)


def host_calls(steps: int = 5) -> tuple[int, int]:
    """Compilations, and transfers from or to the host, in ``steps`` steps after the first.

    On eight devices. The first transfer ends the count.
    """
    state, run = built(small())
    state, _ = run.run(state, run.source, run.key)
    compilations = []

    def count(event: str, seconds: float, **kwargs: Any) -> None:
        if "compile" in event:
            compilations.append(event)

    jax.monitoring.register_event_duration_secs_listener(count)
    transfers = 0
    try:
        with jax.transfer_guard("disallow"):
            for _ in range(steps):
                state, _ = run.run(state, run.source, run.key)
    except Exception as error:
        assert "transfer" in str(error)
        transfers = 1
    assert transfers or int(state.step) == steps + 1
    return len(compilations), transfers
