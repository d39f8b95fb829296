"""The only place that compiles: the training program, evaluation programs, and the cache of both."""

import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import config as config_lib
from vae_jax import data, sharding, step


def use_cache():
    """Keep compiled programs in the user's cache folder, so that the second start is fast."""
    folder = os.environ.get("VAE_JAX_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "vae_jax")
    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)


class Training(NamedTuple):
    """A compiled training program. ``run`` is the executable itself: cost_analysis(), as_text(), ..."""

    run: Callable  # (state, source, key) → (state, metrics_SxM); the state is donated
    key: jax.Array  # the root of training's randomness, on every device
    names: tuple[str, ...]  # of the M metrics
    source: Any  # the data on the device, or None where each call takes its batches
    seconds: float  # to lower and compile


def _make_state(c, model, tx):
    objective = config_lib.resolve("objective", c.objective.name)
    return lambda key, mean: step.init_state(key, mean, model=model, objective=objective, tx=tx, decay=c.optim.ema)


def shapes(c, model, tx, mesh):
    """A TrainState's shapes and its shardings; nothing is computed."""
    tree = jax.eval_shape(_make_state(c, model, tx), step.stream(c.seed, "init"), None)
    return tree, sharding.shardings(tree, mesh)


def init(c, model, tx, mesh, dataset):
    """A fresh TrainState, born with its shardings, and those shardings."""
    _, places = shapes(c, model, tx, mesh)
    mean = None
    if c.bias_from_data:
        every = -(-len(dataset.train.image) // 10_000)  # 10,000 images at most, from all classes of a folder
        mean = dataset.train.image[::every].mean(0, dtype=np.float64) / (dataset.levels - 1)
        mean = jnp.asarray(mean, jnp.float32)
    make = jax.jit(_make_state(c, model, tx), out_shardings=places)
    return make(step.stream(c.seed, "init"), mean), places


def on_device(split, mesh, limit_mb):
    """A split's arrays whole on every device, or None where they are larger than ``limit_mb``."""
    if not isinstance(split.image, np.ndarray) or split.image.nbytes > limit_mb * 2**20:
        return None
    label = np.zeros(len(split.image), np.int32) if split.label is None else split.label
    return jax.device_put({"image": np.asarray(split.image), "label": label}, sharding.replicated(mesh))


def training(c, model, tx, mesh, dataset, state, places):
    """Compile S = ``steps_per_call`` updates as one program.

    Where the training set lives on the device, the program draws its own batches from the step number
    alone, and nothing crosses from the host. Otherwise each call takes S batches, leaves S x B x ….
    """
    n, size, steps = len(dataset.train.image), c.batch, c.steps_per_call
    sharding.check_batch(size, mesh)
    terms = step.make_terms(c, model, dataset)
    source = on_device(dataset.train, mesh, c.data.on_device_mb)
    resident = source is not None
    split_batch = sharding.over_batch(mesh)

    def take(source, index):
        index = jax.lax.with_sharding_constraint(index, split_batch)
        batch = {name: a[index] for name, a in source.items()} | {"id": index}
        return jax.lax.with_sharding_constraint(batch, split_batch)

    names = []

    def many(state, source, key):
        def body(state, given):
            batch = take(source, given) if resident else given
            state, metrics = step.train_step(state, batch, key, terms=terms, tx=tx, decay=c.optim.ema)
            names[:] = metrics
            return state, jnp.stack(list(metrics.values()))

        given = source
        if resident:  # the examples of all S steps at once: the rounds of the shuffle cost once a call
            given = data.batch_indices(state.step + jnp.arange(steps), n=n, batch=size, seed=c.seed, xp=jnp)
        if not c.unroll:
            return jax.lax.scan(body, state, given, length=steps)
        # Written out here: even a scan of one unrolled step leaves a loop around the convolutions,
        # and XLA on CPU then runs them about ten times slower.
        rows = []
        for i in range(steps):
            state, row = body(state, jax.tree.map(lambda a, i=i: a[i], given))
            rows.append(row)
        return state, jnp.stack(rows)

    whole = sharding.replicated(mesh)
    if resident:
        example, source_place = source, whole
    else:
        example = step.raw_batch(dataset.shape, steps, size)  # S batches a call
        source_place = sharding.over_batch(mesh, leading=1)
    jitted = jax.jit(
        many,
        donate_argnums=0,
        in_shardings=(places, source_place, whole),
        out_shardings=(places, whole),
    )
    began = time.perf_counter()
    key = jax.device_put(step.stream(c.seed, "train"), whole)
    compiled = jitted.lower(state, example, key).compile()
    return Training(compiled, key, tuple(names), source, time.perf_counter() - began)


def over_batches(function, mesh):
    """jit ``function(params, batch, *rest)`` with the batch's leaves split over the data axis."""
    jitted = jax.jit(function)

    def run(params, batch, *rest):
        return jitted(params, jax.device_put(batch, sharding.over_batch(mesh)), *rest)

    return run


def simple(function):
    """jit, for small programs that run on whatever their arguments live on."""
    return jax.jit(function)
