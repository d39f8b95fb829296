"""The only place that compiles: the training program, evaluation programs, and the cache of both.

A training program is a composition, from the inside out::

    update = OneUpdate(...).update            # a batch, or its indices → the next state
    over_replicas(c, update)                  # every replica at once
    run_steps = Steps(c, update, ...).run_steps    # S updates
    jitted(run_steps, ...) or pmapped(run_steps, ...)
"""

import contextlib
import dataclasses
import functools
import os
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.mesh import hosts, layout
from vae_jax.mesh import rules as sharding
from vae_jax.models import Model
from vae_jax.train import optim, step

Arrays = dict[str, Any]  # a batch, a training set, or indices: arrays or shapes by name
# (state, batch, key) → (state, metrics of length M); of one config where a ConfigDict comes first.
UpdateFn = Callable[..., tuple[step.TrainState, jax.Array]]


def use_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that the second start is fast."""
    folder = os.environ.get("VAE_JAX_CACHE")
    if not folder:
        folder = os.path.join(os.path.expanduser("~"), ".cache", "vae_jax")
    jax.config.update("jax_compilation_cache_dir", os.path.join(folder, "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


@functools.cache
def options(platform: str) -> dict[str, str] | None:
    """The compiler options of a platform; None: its defaults.

    CPU: of YNNPACK, jaxlib's own choice, the sums only. Its convolutions run on one core, and
    their weight gradients are less exact by a digit than Eigen's: a step of configs/seed_conv.py
    takes 2.6 times as long (results/performance.md). The option is experimental: a jaxlib that does
    not know it gets its defaults.
    """
    sums_only = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_REDUCE"}
    if platform != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=sums_only).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None
    return sums_only


def _jit(function: Callable, mesh: Mesh | None = None, **arguments: Any) -> Callable:
    """``jax.jit`` with the :func:`options` of a mesh's devices, or of the default ones."""
    platform = jax.default_backend()
    if mesh is not None:
        platform = mesh.devices.flat[0].platform
    return jax.jit(function, compiler_options=options(platform), **arguments)


def over_replicas(c: ConfigDict, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function(c, *args)`` of one config as a function of the arguments.

    Where the config has replicas, all of them at once: each sees its own values of the fields that
    differ, and every leaf of the arguments and the results has a leading axis R. vmap does it, so a
    replica's numbers are those of a run alone, to the rounding of another order of sums.
    """
    fields = config_lib.flatten(c.replicas)
    if not fields:
        return functools.partial(function, c)

    def of_one(values: tuple, *args: Any, **kwargs: Any) -> Any:
        numbers = dict(zip(fields, values, strict=True))
        return function(config_lib.override(c, numbers), *args, **kwargs)

    values = tuple(jnp.asarray(v) for v in fields.values())
    return functools.partial(jax.vmap(of_one), values)


def root(c: ConfigDict, purpose: str) -> jax.Array:
    """The root key of one purpose: ``step.stream`` of the config's seed.

    Shape R where there are replicas.
    """

    def of_one(c: ConfigDict) -> jax.Array:
        return step.stream(c.seed, purpose)

    return over_replicas(c, of_one)()


# --- The state ---


def _make_state(c: ConfigDict, model: Model) -> Callable[..., step.TrainState]:
    """(key, mean training image or None) → the state that training begins with."""

    def make(key: jax.Array, mean: jax.Array | None) -> step.TrainState:
        def of_one(c: ConfigDict, key: jax.Array) -> step.TrainState:
            objective = config_lib.resolve("objective", c.objective.name)
            tx = optim.optimizer(c.optim, c.steps)
            return step.init_state(
                key, mean, model=model, objective=objective, tx=tx, decay=c.optim.ema
            )

        return over_replicas(c, of_one)(key)

    return make


def shapes(c: ConfigDict, model: Model, mesh: Mesh) -> tuple[step.TrainState, step.TrainState]:
    """A TrainState's shapes and its shardings; nothing is computed."""
    tree = jax.eval_shape(_make_state(c, model), root(c, "init"), None)
    if config_lib.replica_count(c):
        whole = sharding.over_batch(mesh)  # whole replicas on each device
        return tree, jax.tree.map(lambda _: whole, tree)
    return tree, sharding.shardings(tree, mesh)


def init(
    c: ConfigDict, model: Model, mesh: Mesh, dataset: data.Dataset
) -> tuple[step.TrainState, step.TrainState]:
    """A fresh TrainState, born with its shardings, and those shardings."""
    _, places = shapes(c, model, mesh)
    mean = _mean_image(dataset) if c.bias_from_data else None
    make = _jit(_make_state(c, model), mesh, out_shardings=places)
    return make(root(c, "init"), mean), places


def _mean_image(dataset: data.Dataset) -> jax.Array:
    """The mean training image in [0, 1], of 10,000 at most, from all classes of a folder."""
    every = -(-len(dataset.train.image) // 10_000)
    mean = dataset.train.image[::every].mean(0, dtype=np.float64) / (dataset.levels - 1)
    return jnp.asarray(mean, jnp.float32)


# --- The data on the device ---


def on_device(split: data.Split, mesh: Mesh, limit_mb: float) -> Arrays | None:
    """A split's arrays whole on every device, or None where they are larger than ``limit_mb``."""
    if not isinstance(split.image, np.ndarray) or split.image.nbytes > limit_mb * 2**20:
        return None
    label = split.label
    if label is None:
        label = np.zeros(len(split.image), np.int32)
    arrays = {"image": np.asarray(split.image), "label": label}
    if split.objects is not None:
        arrays["objects"] = split.objects
    return hosts.place(arrays, sharding.replicated(mesh))


def resident(c: ConfigDict, dataset: data.Dataset, mesh: Mesh) -> Arrays | None:
    """The training set on the device, or None where it is too large.

    ``labelled``: the indices of the examples that the labelled stream draws from.
    """
    source = on_device(dataset.train, mesh, c.data.on_device_mb)
    if source is not None and c.data.labelled_batch:
        labelled = np.flatnonzero(dataset.train.label >= 0).astype(np.int32)
        source["labelled"] = hosts.place(labelled, sharding.replicated(mesh))
    return source


def indices(c: ConfigDict, first: jax.Array, source: Arrays) -> Arrays:
    """The indices of the examples of S updates from step ``first`` on, each S x B.

    Of all updates at once: the rounds of the shuffle then cost once a call.
    """
    steps = first + jnp.arange(c.steps_per_call)
    n = len(source["image"])
    ids = {"ids": data.batch_indices(steps, n=n, batch=c.batch, seed=c.seed, xp=jnp)}
    if c.data.labelled_batch:
        labelled = source["labelled"]
        sizes = {"n": len(labelled), "batch": c.data.labelled_batch}
        ids["labelled"] = labelled[data.labelled_indices(steps, **sizes, seed=c.seed, xp=jnp)]
    return ids


def rows(source: Arrays, ids: jax.Array) -> Arrays:
    """The examples with these indices as a raw batch."""
    batch = {"image": source["image"][ids], "label": source["label"][ids], "id": ids}
    if "objects" in source:
        batch["objects"] = source["objects"][ids]
    return batch


def examples(
    source: Arrays, indices: Arrays, take: Callable[[Arrays, jax.Array], Arrays]
) -> Arrays:
    """The batch with these indices, and its labelled part where it has one."""
    batch = take(source, indices["ids"])
    if "labelled" in indices:
        batch["labelled"] = take(source, indices["labelled"])
    return batch


def split_rows(place: NamedSharding) -> Callable[[Arrays, jax.Array], Arrays]:
    """:func:`rows`, laid out as ``place`` says."""

    def laid_rows(source: Arrays, ids: jax.Array) -> Arrays:
        ids = jax.lax.with_sharding_constraint(ids, place)
        return jax.lax.with_sharding_constraint(rows(source, ids), place)

    return laid_rows


def shard_rows(num_shards: int) -> Callable[[Arrays, jax.Array], Arrays]:
    """:func:`rows` of this device's block of the indices; inside pmap over "data"."""

    def own_rows(source: Arrays, ids: jax.Array) -> Arrays:
        size = len(ids) // num_shards
        first = jax.lax.axis_index("data") * size
        return rows(source, jax.lax.dynamic_slice_in_dim(ids, first, size))

    return own_rows


# --- Checks ---


def check(c: ConfigDict, model: Model, mesh: Mesh) -> None:
    """Check that the mesh, ``config.compile``, the batch and the samples fit each other.

    Raises:
      UserError: they do not.
    """
    replicas = config_lib.replica_count(c)
    sharding.check_replicas(replicas, mesh)
    if replicas:
        if c.compile not in ("auto", "jit") or c.accumulate > 1:
            what = f"compile={c.compile}, accumulate={c.accumulate}"
            raise UserError(f"{what}: replicas want jit and 1")
        return
    sharding.check_batch(c.batch, mesh, micros=c.accumulate)
    sharding.check_batch(c.data.labelled_batch, mesh, "data.labelled_batch", c.accumulate)
    labels = model.classes if model.spec.labelled else 0
    sharding.check_samples(c, mesh, labels)
    if c.compile == "pmap" and mesh.shape["data"] < mesh.size:
        axis = next(a for a in sharding.AXES[1:] if mesh.shape[a] > 1)
        wanted = f"want mesh.{axis}=1, or compile=jit"
        raise UserError(f"compile=pmap: splits the batch only; {wanted}")


def check_source(c: ConfigDict, source: Arrays | None) -> None:
    """Check that replicas and pmap have the training set on the device.

    Raises:
      UserError: it is not there.
    """
    users = []
    if config_lib.replica_count(c):
        users.append("replicas need")
    if c.compile == "pmap":
        users.append("compile=pmap needs")
    if users and source is None:
        what = f"{users[0]} the training set on the device"
        raise UserError(f"data.on_device_mb={c.data.on_device_mb}: {what}")


# --- Updates ---


@dataclasses.dataclass(frozen=True)
class OneUpdate:
    """The update of a config's state, and the names of its metrics, which tracing writes."""

    model: Model
    dataset: data.Dataset
    mesh: Mesh
    mode: "Mode"
    names: list[str]

    def update(
        self,
        c: ConfigDict,
        state: step.TrainState,
        batch: Arrays,
        key: jax.Array,
        source: Arrays | None = None,
    ) -> tuple[step.TrainState, jax.Array]:
        """(state, metrics of length M); ``batch`` has indices where the data are on the device.

        Importance samples lie over the mesh axis ``samples``.
        """
        if source is not None:
            batch = examples(source, batch, self.mode.take)
        update = step.make_update(c, self.model, self.dataset, **self.mode.shards)
        samples = contextlib.nullcontext()
        if self.mesh.shape["samples"] > 1:
            samples = layout.over(self.mesh)
        with samples:
            state, metrics = step.train_step(state, batch, key, update)
        self.names[:] = metrics
        return state, jnp.stack(list(metrics.values()))


@dataclasses.dataclass(frozen=True)
class Steps:
    """S = ``steps_per_call`` updates, such as :class:`OneUpdate`'s, as one function."""

    c: ConfigDict
    update: UpdateFn
    on_device: bool

    def run_steps(
        self, state: step.TrainState, source: Arrays, key: jax.Array
    ) -> tuple[step.TrainState, jax.Array]:
        """(state, source, key) → (state, metrics_SxM), or S x R x M where there are R replicas.

        ``source``: S batches of the host, or the data on the device, from which batches are drawn
        by the step number alone.

        ``config.unroll`` writes the updates one after the other: even a scan of one unrolled step
        leaves a loop around the convolutions, and XLA on CPU then runs them about ten times slower.
        """
        c = self.c
        batches = source
        update = functools.partial(self.update, c)
        if self.on_device:
            update = over_replicas(c, functools.partial(self.update, source=source))
            batches = over_replicas(c, functools.partial(indices, source=source))(state.step)
            if config_lib.replica_count(c):
                batches = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), batches)  # S first
        if not c.unroll:
            one = functools.partial(update, key=key)
            return jax.lax.scan(one, state, batches, length=c.steps_per_call)
        metrics = []
        for i in range(c.steps_per_call):
            batch = jax.tree.map(lambda a, i=i: a[i], batches)
            state, metrics_M = update(state, batch, key=key)
            metrics.append(metrics_M)
        return state, jnp.stack(metrics)


# --- Gradients shard by shard ---


def over_shards(mesh: Mesh, places: step.TrainState) -> Callable[[Callable], Callable]:
    """``Update.over_shards``: gradients of each shard of the batch, then their mean, in float32.

    In the global view (jit) XLA sums a gradient over devices in the dtype of the product that made
    it, bfloat16 for bfloat16 nets. Here the gradients are float32, as the parameters are, before
    they meet. Parameters split over ``fsdp`` are gathered whole, and the sum of their gradients
    comes back split. ``model`` and ``samples`` stay XLA's.
    """

    def batch_axes(place: NamedSharding) -> P:
        axes = [axis if axis in sharding.BATCH else None for axis in place.spec]
        return P(*axes)

    specs = jax.tree.map(batch_axes, places.params)

    def over(function: Callable) -> Callable:
        def local(params: Any, batch: Arrays, key: jax.Array, at: jax.Array) -> tuple[Any, Any]:
            whole = jax.tree.map(_gather, params, specs)
            grads, metrics = function(whole, batch, key, at)
            grads = jax.tree.map(_mean_gradient, grads, specs)
            return grads, step.all_mean(metrics, sharding.BATCH)

        return jax.shard_map(
            local,
            mesh=mesh,
            axis_names=set(sharding.BATCH),
            in_specs=(specs, P(sharding.BATCH), P(), P()),
            out_specs=(specs, P()),
            # With the check, a sum in the layers' dtype comes in where float32 becomes bfloat16.
            check_vma=False,
        )

    return over


def _split_dimension(spec: P) -> int | None:
    """The dimension that a spec splits, over ``fsdp``."""
    return next((d for d, axis in enumerate(spec) if axis), None)


def _gather(param: jax.Array, spec: P) -> jax.Array:
    """A parameter whole, of its shards over ``fsdp``."""
    d = _split_dimension(spec)
    if d is None:
        return param
    return jax.lax.all_gather(param, "fsdp", axis=d, tiled=True)


def _mean_gradient(gradient: jax.Array, spec: P) -> jax.Array:
    """The mean over the batch's shards, split as the parameter is."""
    d = _split_dimension(spec)
    if d is None:
        return step.all_mean(gradient, sharding.BATCH)
    part = jax.lax.psum_scatter(gradient, "fsdp", scatter_dimension=d, tiled=True)
    return step.all_mean(part / jax.lax.axis_size("fsdp"), "data")


# --- Compiling ---


class Program(NamedTuple):
    """A training program not yet lowered: ``jitted.trace(*arguments)``, ``.lower(*arguments)``."""

    jitted: Any
    arguments: tuple  # state, source, key: arrays or shapes
    key_place: NamedSharding
    names: list[str]  # of the metrics; tracing writes them


class Training(NamedTuple):
    """A compiled training program; ``run`` is the executable: cost_analysis(), as_text(), ..."""

    run: Callable  # (state, source, key) → (state, metrics_SxM or SxRxM); the state is donated
    key: jax.Array  # the root of training's randomness, on every device
    names: tuple[str, ...]  # of the M metrics
    source: Any  # the data on the device, or None where each call takes its batches
    seconds: float  # to lower and compile this program, and no other


class Mode(NamedTuple):
    """A mode of compilation: how a batch is taken from the data, and how gradients meet."""

    take: Callable[[Arrays, jax.Array], Arrays]
    shards: dict[str, Any]  # axis and over_shards of step.make_update


def mode_of(c: ConfigDict, mesh: Mesh, places: step.TrainState) -> Mode:
    """The mode of ``config.compile``.

    *jit* compiles the global view, and XLA's partitioner makes the collectives. *shard_map* takes
    gradients shard by shard (:func:`over_shards`). *pmap* runs the whole step on each device.
    *auto* is one of the first two (``config.program_name``). Devices share replicas, not batches.
    """
    if config_lib.replica_count(c):
        return Mode(rows, {})
    if c.compile == "pmap":
        return Mode(shard_rows(mesh.size), {"axis": "data"})
    take = split_rows(sharding.over_batch(mesh))
    if config_lib.program_name(c, mesh.shape["fsdp"]) == "shard_map":
        shards = {"axis": sharding.BATCH, "over_shards": over_shards(mesh, places)}
        return Mode(take, shards)
    return Mode(take, {})


def program(
    c: ConfigDict,
    model: Model,
    mesh: Mesh,
    dataset: data.Dataset,
    state: step.TrainState,
    places: step.TrainState,
    source: Arrays | None,
) -> Program:
    """S = ``steps_per_call`` updates as one :class:`Program`.

    ``source`` is :func:`resident`'s, or shapes like it: the program draws its own batches, and
    nothing crosses from the host. Where it is None each call takes S batches, leaves S x B x ….
    """
    check(c, model, mesh)
    check_source(c, source)
    names = []
    mode = mode_of(c, mesh, places)
    update = OneUpdate(model, dataset, mesh, mode, names).update
    run_steps = Steps(c, update, source is not None).run_steps
    key = jax.eval_shape(functools.partial(root, c, "train"))
    key_place = sharding.replicated(mesh)
    source_place = sharding.replicated(mesh)
    if config_lib.replica_count(c):
        key_place = sharding.over_batch(mesh)
    if source is None:
        sizes = (c.steps_per_call, c.batch)
        source = step.raw_batch(
            dataset.shape, *sizes, labelled=c.data.labelled_batch, objects=dataset.object_shape
        )
        source_place = sharding.over_batch(mesh, leading=1)
    if c.compile == "pmap":
        source = source | shard_numbers(mesh)
        return Program(pmapped(run_steps, mesh, source), (state, source, key), key_place, names)
    compiled = jitted(run_steps, mesh, (places, source_place, key_place))
    return Program(compiled, (state, source, key), key_place, names)


def jitted(run_steps: UpdateFn, mesh: Mesh, places: tuple) -> Callable:
    """``run_steps`` under jit, with the shardings of its arguments; the state is donated."""
    return _jit(
        run_steps,
        mesh,
        donate_argnums=0,
        in_shardings=places,
        out_shardings=(places[0], sharding.replicated(mesh)),
    )


def shard_numbers(mesh: Mesh) -> Arrays:
    """{"shard": 0 … n − 1}, one on each device: pmap wants an argument that is split."""
    return {"shard": jax.device_put(np.arange(mesh.size), sharding.over_batch(mesh))}


def pmapped(run_steps: UpdateFn, mesh: Mesh, source: Arrays) -> Callable:
    """``run_steps`` on each device of the mesh; ``source`` has :func:`shard_numbers`."""
    return jax.pmap(
        run_steps,
        axis_name="data",
        in_axes=(None, dict.fromkeys(source) | {"shard": 0}, None),
        out_axes=None,
        devices=list(mesh.devices.flat),
        donate_argnums=0,
    )


def training(
    c: ConfigDict,
    model: Model,
    mesh: Mesh,
    dataset: data.Dataset,
    state: step.TrainState,
    places: step.TrainState,
) -> Training:
    """Compile the :func:`program` of a config, its data on the device where they fit.

    With ``JAX_DISABLE_JIT=1`` it is not compiled: Python calls it line by line, for a debugger.

    Raises:
      UserError: it is not to be compiled, and the mesh has several devices.
    """
    if jax.config.jax_disable_jit and mesh.size > 1:
        why = f"steps through one device, and the mesh has {mesh.size}"
        raise UserError(f"JAX_DISABLE_JIT=1: {why}; want --config.mesh.data=1")
    source = resident(c, dataset, mesh)
    parts = program(c, model, mesh, dataset, state, places, source)
    make_key = _jit(functools.partial(root, c, "train"), mesh, out_shardings=parts.key_place)
    key = make_key()
    arguments = (*parts.arguments[:2], key)
    compiled = parts.jitted
    start = time.perf_counter()
    if jax.config.jax_disable_jit:
        jax.eval_shape(compiled, *arguments)  # which fills in the names of the metrics
    else:
        compiled = compiled.lower(*arguments).compile()
    seconds = time.perf_counter() - start
    if source is not None:
        source = arguments[1]
    return Training(compiled, key, tuple(parts.names), source, seconds)


def over_batches(
    function: Callable[..., Any], mesh: Mesh, whole: bool = False
) -> Callable[..., Any]:
    """jit ``function(params, batch, *rest)``; the batch is split over devices, or ``whole``."""
    compiled = _jit(function, mesh)
    place = sharding.over_batch(mesh)
    if whole:
        place = sharding.replicated(mesh)

    def run(params: Any, batch: Any, *rest: Any) -> Any:
        return compiled(params, hosts.place(batch, place), *rest)

    return run


def simple(function: Callable[..., Any]) -> Callable[..., Any]:
    """jit, for small programs that run on whatever their arguments live on."""
    return _jit(function)
