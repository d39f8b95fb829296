"""The only place that compiles: the training program, evaluation programs, and the cache of both."""

import contextlib
import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.mesh import hosts, layout
from vae_jax.mesh import rules as sharding
from vae_jax.train import optim, step


def use_cache():
    """Keep compiled programs in the user's cache folder, so that the second start is fast."""
    folder = os.environ.get("VAE_JAX_CACHE") or os.path.join(
        os.path.expanduser("~"), ".cache", "vae_jax"
    )
    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def options(platform):
    """What the compiler is asked for on a platform; None: nothing.

    CPU: of YNNPACK, jaxlib's own choice, the sums only. Its convolutions run on one core, and their weight gradients
    are less exact by a digit than Eigen's: a step of configs/seed_conv.py takes 2.6 times as long
    (results/performance.md). The option is an experimental one: where a jaxlib does not know it, nothing is asked.
    """
    asked = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    if platform != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=asked).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return asked


def _jit(function, mesh=None, **how):
    """``jax.jit`` with the :func:`options` of a mesh's devices, or of the default ones."""
    platform = mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()
    return jax.jit(function, compiler_options=options(platform), **how)


class Training(NamedTuple):
    """A compiled training program. ``run`` is the executable itself: cost_analysis(), as_text(), ..."""

    run: Callable  # (state, source, key) → (state, metrics_SxM or SxRxM); the state is donated
    key: jax.Array  # the root of training's randomness, on every device
    names: tuple[str, ...]  # of the M metrics
    source: Any  # the data on the device, or None where each call takes its batches
    seconds: float  # to lower and compile this program, and no other


def over_replicas(c, function):
    """``function(c, *args)`` of one config as a function of the arguments.

    Where the config has replicas, all of them at once: each sees its own values of the fields that differ,
    and every leaf of the arguments and the results has a leading axis R. vmap does it, so a replica's
    numbers are those of a run alone, to the rounding of another order of sums.
    """
    fields = config_lib.flatten(c.replicas)
    if not fields:
        return lambda *args: function(c, *args)

    def one(values, *args):
        return function(config_lib.override(c, dict(zip(fields, values, strict=True))), *args)

    values = tuple(jnp.asarray(v) for v in fields.values())
    return lambda *args: jax.vmap(one)(values, *args)


def root(c, purpose):
    """The root key of one purpose: ``step.stream`` of the config's seed; [R] where there are replicas."""
    return over_replicas(c, lambda c: step.stream(c.seed, purpose))()


def _make_state(c, model):
    def make(c, key, mean):
        objective = config_lib.resolve("objective", c.objective.name)
        tx = optim.optimizer(c.optim, c.steps)
        return step.init_state(
            key, mean, model=model, objective=objective, tx=tx, decay=c.optim.ema
        )

    return lambda key, mean: over_replicas(c, lambda c, key: make(c, key, mean))(key)


def shapes(c, model, mesh):
    """A TrainState's shapes and its shardings; nothing is computed."""
    tree = jax.eval_shape(_make_state(c, model), root(c, "init"), None)
    if config_lib.replica_count(c):
        whole = sharding.over_batch(mesh)  # whole replicas on each device
        return tree, jax.tree.map(lambda _: whole, tree)
    return tree, sharding.shardings(tree, mesh)


def init(c, model, mesh, dataset):
    """A fresh TrainState, born with its shardings, and those shardings."""
    _, places = shapes(c, model, mesh)
    mean = None
    if c.bias_from_data:
        every = -(
            -len(dataset.train.image) // 10_000
        )  # 10,000 images at most, from all classes of a folder
        mean = dataset.train.image[::every].mean(0, dtype=np.float64) / (dataset.levels - 1)
        mean = jnp.asarray(mean, jnp.float32)
    make = _jit(_make_state(c, model), mesh, out_shardings=places)
    return make(root(c, "init"), mean), places


def on_device(split, mesh, limit_mb):
    """A split's arrays whole on every device, or None where they are larger than ``limit_mb``."""
    if not isinstance(split.image, np.ndarray) or split.image.nbytes > limit_mb * 2**20:
        return None
    label = np.zeros(len(split.image), np.int32) if split.label is None else split.label
    return hosts.place(
        {"image": np.asarray(split.image), "label": label}, sharding.replicated(mesh)
    )


def resident(c, dataset, mesh):
    """What the device draws its batches from: the training set, and which of it the labelled stream may show."""
    source = on_device(dataset.train, mesh, c.data.on_device_mb)
    if source is not None and c.data.labelled_batch:
        shown = np.flatnonzero(dataset.train.label >= 0).astype(np.int32)
        source["labelled"] = hosts.place(shown, sharding.replicated(mesh))
    return source


def check(c, model, mesh):
    """Raise where a mesh and ``config.compile`` do not fit each other, or the batch or the samples the mesh."""
    replicas = config_lib.replica_count(c)
    sharding.check_replicas(replicas, mesh)
    if replicas:
        if c.compile not in ("auto", "jit") or c.accumulate > 1:
            raise UserError(
                f"compile={c.compile}, accumulate={c.accumulate}: replicas want jit and 1"
            )
        return
    sharding.check_batch(c.batch, mesh, micros=c.accumulate)
    sharding.check_batch(c.data.labelled_batch, mesh, "data.labelled_batch", c.accumulate)
    sharding.check_samples(c, mesh, model.classes if model.spec.labelled else 0)
    if c.compile == "pmap" and mesh.shape["data"] < mesh.size:
        axis = next(a for a in sharding.AXES[1:] if mesh.shape[a] > 1)
        raise UserError(f"compile=pmap: splits the batch only; want mesh.{axis}=1, or compile=jit")


def _over_shards(mesh, places):
    """``over`` of ``step.train_step``: gradients shard by shard of the batch, then their mean, in float32.

    In the global view (jit) XLA sums a gradient over devices in the dtype of the product that made it, bfloat16 for
    bfloat16 nets. Here the gradients are float32, as the parameters are, before they meet. Parameters split over
    ``fsdp`` are gathered whole, and the sum of their gradients comes back split. ``model`` and ``samples`` stay XLA's.
    """

    def mine(place):
        return P(*(axis if axis in sharding.BATCH else None for axis in place.spec))

    specs = jax.tree.map(mine, places.params)

    def split(spec):
        return next((d for d, axis in enumerate(spec) if axis), None)

    def gather(param, spec):
        at = split(spec)
        return param if at is None else jax.lax.all_gather(param, "fsdp", axis=at, tiled=True)

    def mean(grad, spec):
        at = split(spec)
        if at is None:
            return step.all_mean(grad, sharding.BATCH)
        part = jax.lax.psum_scatter(grad, "fsdp", scatter_dimension=at, tiled=True)
        return step.all_mean(part / mesh.shape["fsdp"], "data")

    def over(function):
        def local(params, batch, key, at):
            grads, metrics = function(jax.tree.map(gather, params, specs), batch, key, at)
            return jax.tree.map(mean, grads, specs), step.all_mean(metrics, sharding.BATCH)

        return jax.shard_map(
            local,
            mesh=mesh,
            axis_names=set(sharding.BATCH),
            in_specs=(specs, P(sharding.BATCH), P(), P()),
            out_specs=(specs, P()),
            check_vma=False,  # or a sum in the layers' dtype comes in where float32 parameters become bfloat16
        )

    return over


class Program(NamedTuple):
    """A training program that is not yet lowered: ``jitted.trace(*arguments)`` or ``jitted.lower(*arguments)``."""

    jitted: Any
    arguments: tuple  # state, source, key: arrays or shapes
    key_place: Any
    names: list  # of the metrics; filled when it is lowered


def program(c, model, mesh, dataset, state, places, source):
    """S = ``steps_per_call`` updates as one :class:`Program`; ``source`` is :func:`resident`'s, or shapes like it.

    Where the training set lives on the device, the program draws its own batches from the step number
    alone, and nothing crosses from the host. Otherwise each call takes S batches, leaves S x B x ….
    With R replicas the metrics are S x R x M, and the devices share the replicas, not the batch.

    ``config.compile``: *jit* compiles the global view, and XLA's partitioner makes the collectives; *shard_map* takes
    gradients shard by shard (:func:`_over_shards`); *pmap* runs the whole step on each device; *auto* is one of the
    first two (``config.program_name``).
    """
    n, size, steps = len(dataset.train.image), c.batch, c.steps_per_call
    labelled = c.data.labelled_batch
    replicas, held = config_lib.replica_count(c), source is not None
    check(c, model, mesh)
    if (replicas or c.compile == "pmap") and not held:
        what = "replicas need" if replicas else "compile=pmap needs"
        raise UserError(
            f"data.on_device_mb={c.data.on_device_mb}: {what} the training set on the device"
        )
    split_batch, whole, per_device = (
        sharding.over_batch(mesh),
        sharding.replicated(mesh),
        c.compile == "pmap",
    )

    def spread(x):
        return jax.lax.with_sharding_constraint(x, split_batch)

    if replicas or per_device:

        def spread(x):
            return x

    how = {"axis": "data"} if per_device else {}
    by_shards = config_lib.program_name(c, mesh.shape["fsdp"]) == "shard_map"
    if by_shards and not (replicas or per_device):
        how = {"axis": sharding.BATCH, "over": _over_shards(mesh, places)}

    def indices(
        c, source, at
    ):  # the examples of all S steps at once: the rounds of the shuffle cost once a call
        at = at + jnp.arange(steps)
        ids = {"ids": data.batch_indices(at, n=n, batch=size, seed=c.seed, xp=jnp)}
        if labelled:
            shown = source["labelled"]
            at_labelled = data.labelled_indices(
                at, n=len(shown), batch=labelled, seed=c.seed, xp=jnp
            )
            ids["labelled"] = shown[at_labelled]
        return ids

    def take(source, ids):
        if per_device:
            own = len(ids) // mesh.size
            ids = jax.lax.dynamic_slice_in_dim(ids, jax.lax.axis_index("data") * own, own)
        ids = spread(ids)
        return spread({name: source[name][ids] for name in ("image", "label")} | {"id": ids})

    names, skip = [], {"skip_above": c.optim.skip_above} if c.optim.skip else {}

    def many(state, source, key):
        def update(c, state, given, key):
            batch = given
            if held:
                batch = take(source, given["ids"])
                if labelled:
                    batch["labelled"] = take(source, given["labelled"])
            terms, tx = step.make_terms(c, model, dataset), optim.optimizer(c.optim, c.steps)
            with layout.over(mesh) if mesh.shape["samples"] > 1 else contextlib.nullcontext():
                state, metrics = step.train_step(
                    state,
                    batch,
                    key,
                    terms=terms,
                    tx=tx,
                    decay=c.optim.ema,
                    micros=c.accumulate,
                    **skip,
                    **how,
                )
            names[:] = metrics
            return state, jnp.stack(list(metrics.values()))

        update = over_replicas(c, update)
        given = source
        if held:
            given = over_replicas(c, lambda c, at: indices(c, source, at))(state.step)
            given = (
                jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), given) if replicas else given
            )  # S first
        if not c.unroll:
            return jax.lax.scan(
                lambda state, given: update(state, given, key), state, given, length=steps
            )
        # Written out here: even a scan of one unrolled step leaves a loop around the convolutions,
        # and XLA on CPU then runs them about ten times slower.
        rows = []
        for i in range(steps):
            state, row = update(state, jax.tree.map(lambda a, i=i: a[i], given), key)
            rows.append(row)
        return state, jnp.stack(rows)

    key_place = split_batch if replicas else whole
    key = jax.eval_shape(lambda: root(c, "train"))
    if per_device:
        shards = {name: None for name in source} | {"shard": 0}
        jitted = jax.pmap(
            many,
            axis_name="data",
            in_axes=(None, shards, None),
            out_axes=None,
            devices=list(mesh.devices.flat),
            donate_argnums=0,
        )
        source = source | {
            "shard": jax.device_put(np.arange(mesh.size), split_batch)
        }  # pmap wants something split
        return Program(jitted, (state, source, key), key_place, names)
    if not held:
        source = step.raw_batch(dataset.shape, steps, size, labelled=labelled)  # S batches a call
    source_place = whole if held else sharding.over_batch(mesh, leading=1)
    jitted = _jit(
        many,
        mesh,
        donate_argnums=0,
        in_shardings=(places, source_place, key_place),
        out_shardings=(places, whole),
    )
    return Program(jitted, (state, source, key), key_place, names)


def training(c, model, mesh, dataset, state, places):
    """Compile the :func:`program` of a config, its data on the device where they fit."""
    source = resident(c, dataset, mesh)
    made = program(c, model, mesh, dataset, state, places, source)
    key = _jit(lambda: root(c, "train"), mesh, out_shardings=made.key_place)()
    state, given, _ = made.arguments
    began = time.perf_counter()
    compiled = made.jitted.lower(state, given, key).compile()
    return Training(compiled, key, tuple(made.names), source and given, time.perf_counter() - began)


def over_batches(function, mesh, whole=False):
    """jit ``function(params, batch, *rest)`` with the batch's leaves split over the data axis, or ``whole``."""
    jitted, place = (
        _jit(function, mesh),
        sharding.replicated(mesh) if whole else sharding.over_batch(mesh),
    )

    def run(params, batch, *rest):
        return jitted(params, hosts.place(batch, place), *rest)

    return run


def simple(function):
    """jit, for small programs that run on whatever their arguments live on."""
    return _jit(function)
