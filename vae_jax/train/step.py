"""The training step and the evaluation step: pure functions, the device axis an argument."""

import dataclasses
import functools
import zlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data.batches import Inputs
from vae_jax.distributions import example_keys
from vae_jax.mesh import layout
from vae_jax.models import Model
from vae_jax.objectives import Terms
from vae_jax.train import contract, features, optim

Axis = (
    str | tuple[str, ...] | None
)  # the named device axes that split a batch; None: the whole batch
Metrics = dict[str, jax.Array]


class TrainState(NamedTuple):
    """All that training carries from step to step; randomness, a path of keys, is not in it."""

    step: jax.Array
    params: Any
    opt: Any
    ema: Any  # () where optim.ema is 0


@dataclasses.dataclass(frozen=True)
class Update:
    """One update of a state, but for the state, the batch and the key; see :func:`train_step`."""

    terms: Callable[..., Terms]  # an Objective
    tx: optax.GradientTransformation
    decay: float = 0.0  # of the parameters' moving average; 0: there is none
    micros: int = 1  # microbatches
    axis: Axis = None
    # over_shards(function) calls :func:`gradients` on a mesh of its own; None: no mesh.
    over_shards: Callable[[Callable], Callable] | None = None
    # None: every update is made. 0: none whose loss or gradient is not finite. Above 0: nor any
    # whose gradient has a larger norm than this.
    skip_above: float | None = None


def make_update(
    c: ConfigDict,
    model: Model,
    dataset: data.Dataset,
    axis: Axis = None,
    over_shards: Callable[[Callable], Callable] | None = None,
) -> Update:
    """The update of a config."""
    return Update(
        terms=Objective(c, model, dataset),
        tx=optim.optimizer(c.optim, c.steps),
        decay=c.optim.ema,
        micros=c.accumulate,
        axis=axis,
        over_shards=over_shards,
        skip_above=c.optim.skip_above if c.optim.skip else None,
    )


def stream(seed: int | jax.Array, purpose: str) -> jax.Array:
    """The root key of one purpose ('init', 'train', 'validation', ...).

    Steps and examples fold in theirs.
    """
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def masked_mean(values_B: jax.Array, mask_B: jax.Array) -> jax.Array:
    """Σ m·v / Σ m over the global batch: the only place where a batch is averaged."""
    return masked_sum(values_B, mask_B) / jnp.maximum(jnp.sum(mask_B), 1)


def masked_sum(values_B: jax.Array, mask_B: jax.Array) -> jax.Array:
    """Σ m·v in float32; where m is false, v may be NaN."""
    return jnp.sum(jnp.where(mask_B, values_B, 0).astype(jnp.float32))


def all_mean(tree: Any, axis: Axis) -> Any:
    """Mean over a named device axis; the identity in the global view (axis=None)."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def weight_at(c: ConfigDict, step: int | jax.Array) -> float | jax.Array:
    """The factor in [0, 1] on ``objective.<warmup.of>`` at a step; 1 with no warm-up.

    Linear: min(1, t/T) (Bowman et al. 2016; Sønderby et al. 2016). Cyclical: T is cut into
    ``cycles``; each rises over its first half and stays at 1 over its second (Fu et al. 2019, eq. 6
    with R = 1/2).
    """
    if not c.steps:
        return 1.0
    t = jnp.asarray(step, jnp.float32) / c.steps
    if c.cycles == 1:
        return jnp.minimum(t, 1.0)
    rising = jnp.minimum(2.0 * jnp.mod(t * c.cycles, 1.0), 1.0)
    return jnp.where(t < 1.0, rising, 1.0)


class _Streams(NamedTuple):
    """The keys of one step, one for each purpose; None where nothing is random."""

    input: jax.Array | None
    labelled_input: jax.Array | None
    draw: jax.Array
    labelled_draw: jax.Array


def _streams(key: jax.Array, training: bool) -> _Streams:
    if training:
        return _Streams(*jax.random.split(key, 4))
    return _Streams(None, None, *jax.random.split(key))


@dataclasses.dataclass(frozen=True)
class Objective:
    """The objective of a config: (params, batch of raw uint8 images, key, step=None) → Terms.

    step=None is evaluation: no augmentation, binarisation and noise by example id, weights at their
    final values. In training the noise of an example depends on its place in the global batch,
    ``batch["place"]``, alone: one device, eight, ``shard_map``, ``pmap`` and microbatches make the
    same update.
    """

    c: ConfigDict
    model: Model
    dataset: data.Dataset

    def __call__(
        self, params: Any, batch: dict, key: jax.Array, step: int | jax.Array | None = None
    ) -> Terms:
        function = config_lib.resolve("objective", self.c.objective.name)
        weights = self.weights(step)
        if "place" not in batch:  # a batch that was not split is the global batch
            batch = with_places(batch)
        streams = _streams(key, step is not None)
        number_B = batch["id" if step is None else "place"]
        keys_B = example_keys(streams.draw, number_B)
        inputs = self.inputs(batch, streams, step)
        return function(self.model, params, inputs, keys_B, **weights)

    def weights(self, step: int | jax.Array | None) -> dict[str, Any]:
        """The keyword arguments of the objective at a step."""
        c = self.c
        weights = {name: value for name, value in c.objective.items() if name != "name"}
        weights |= features.functions(c, self.model.shape)
        if step is not None and c.warmup.steps:
            weights[c.warmup.of] *= weight_at(c.warmup, step)
        return weights

    def inputs(self, batch: dict, streams: _Streams, step: int | jax.Array | None) -> dict:
        """The batch that an objective sees, its labelled part with keys of its own."""
        c = self.c
        n = len(self.dataset.train.image)
        inputs = {**self.to_input(batch, streams.input), "n": n, "step": step}
        if step is None and (c.data.labels or c.data.labelled_batch):
            # eval_step counts those that have a label
            labelled_keys = example_keys(streams.labelled_draw, batch["id"])
            inputs["labelled"] = inputs | {"keys": labelled_keys}
        elif "labelled" in batch:
            labelled = batch["labelled"]
            inputs["labelled"] = self.to_input(labelled, streams.labelled_input)
            inputs["labelled"]["keys"] = example_keys(streams.labelled_draw, labelled["place"])
        elif c.data.labels:
            inputs["labelled"] = None
        return inputs

    def to_input(self, batch: dict, key: jax.Array | None) -> dict:
        """The batch with its images in [0, 1], binarised and augmented."""
        c = self.c.data
        how = Inputs(self.dataset.levels, c.binarize, c.shift, c.flip)
        place_B = batch.get("place")
        return {**batch, "image": data.to_input(batch["image"], batch["id"], key, place_B, how=how)}


def raw_batch(
    shape: tuple[int, ...], *lead: int, labelled: int = 0, objects: tuple[int, ...] = ()
) -> dict[str, Any]:
    """A batch of raw images of this shape as shapes, with these leading dimensions.

    ``labelled``: how many examples its labelled part has, if any. ``objects``: the shape of the
    objects of a scene, (M, 5); () where the images have none.
    """
    number = jax.ShapeDtypeStruct(lead, jnp.int32)
    image = jax.ShapeDtypeStruct((*lead, *shape), jnp.uint8)
    batch = {"image": image, "label": number, "id": number}
    if objects:
        batch["objects"] = jax.ShapeDtypeStruct((*lead, *objects), jnp.int32)
    if labelled:
        batch["labelled"] = raw_batch(shape, *lead[:-1], labelled, objects=objects)
    return batch


def check(c: ConfigDict, model: Model, dataset: data.Dataset, params: Any) -> tuple[str, ...]:
    """The names of validation's metrics, by tracing the objective on shapes alone.

    Nothing is computed. The objective is traced as in training and as in evaluation.

    Raises:
      UserError: the objective returns no Terms, or a metric is not one number per example.
    """
    size = 3
    labelled_size = 2 if c.data.labelled_batch else 0
    objects = dataset.object_shape
    batch = raw_batch(dataset.shape, size, labelled=labelled_size, objects=objects)
    _shapes_of_metrics(c, model, dataset, (params, batch, 0))
    batch = raw_batch(dataset.shape, size, objects=objects)
    batch["mask"] = jax.ShapeDtypeStruct((size,), bool)
    parts = _shapes_of_metrics(c, model, dataset, (params, batch, None))
    label = dataset.validation.label
    if label is None or not (label >= 0).any():
        parts = parts[:1]
    return tuple(merged(*(dict.fromkeys(values, 0) for values in parts)))


def _shapes_of_metrics(
    c: ConfigDict, model: Model, dataset: data.Dataset, arguments: tuple
) -> list[Metrics]:
    """:func:`metrics_of` as shapes, for (params, batch, step); raises as :func:`check` does."""
    params, batch, at = arguments
    terms = Objective(c, model, dataset)

    def run(params: Any, batch: dict) -> list[Metrics]:
        result = terms(params, batch, jax.random.key(0), at)
        contract.check_terms(result, f"objective.name={c.objective.name}")
        return metrics_of(result)

    parts = jax.eval_shape(run, params, batch)
    sizes = [len_of(batch), len_of(batch.get("labelled", batch))]
    for values, size in zip(parts, sizes, strict=False):
        for name, value in values.items():
            if value.shape != (size,):
                wanted = f"want one number per example, ({size},)"
                raise UserError(f"objective: {name} has shape {value.shape}; {wanted}")
    return parts


def len_of(batch: dict) -> int:
    """How many examples a batch has."""
    return len(jax.tree.leaves(batch)[0])


def with_places(batch: dict, axis: Axis = None) -> dict:
    """The batch with ``place``, each example's place in the global batch.

    ``batch`` is the shard of this device where ``axis`` names a device axis.
    """
    batch = dict(batch)
    if "labelled" in batch:
        batch["labelled"] = with_places(batch["labelled"], axis)
    batch["place"] = layout.places(len_of(batch), axis)
    return batch


def metrics_of(terms: Terms) -> list[Metrics]:
    """{name: values_B} of the batch and, where an objective has such terms, of its labelled part.

    Metrics that have no meaning are left out.
    """
    parts = []
    for part in (terms, terms.labelled):
        if part is not None:
            fixed = {"loss": part.loss, "elbo": part.elbo, "log_px": part.log_px, "kl": part.kl}
            metrics = fixed | part.extra
            parts.append({name: v for name, v in metrics.items() if v is not None})
    return parts


def merged(batch: Metrics, labelled: Metrics | None = None) -> Metrics:
    """Mean metrics of both parts as one dict.

    The loss is the sum of theirs; the bounds of the labelled part are named labelled_elbo, ….
    """
    if labelled is None:
        return batch
    metrics = dict(batch)
    for name, value in labelled.items():
        if name in ("elbo", "log_px", "kl"):
            name = f"labelled_{name}"
        metrics[name] = value
    metrics["loss"] = batch["loss"] + labelled["loss"]
    return metrics


def init_state(
    key: jax.Array,
    mean: jax.Array | None,
    *,
    model: Model,
    objective: Callable[..., Terms],
    tx: optax.GradientTransformation,
    decay: float,
) -> TrainState:
    """A new TrainState; jit it with the shardings as out_shardings, so that it is born sharded.

    ``mean``: the mean training image for ``config.bias_from_data``, else None.
    """
    params = model.init(key, mean)
    if hasattr(objective, "init"):
        own_key = jax.random.fold_in(key, zlib.crc32(b"objective"))
        params["objective"] = objective.init(own_key, model)
    average = ()
    if decay:
        average = jax.tree.map(jnp.copy, params)
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average)


def gradients(update: Update) -> Callable[..., tuple[Any, Metrics]]:
    """(params, batch, key, step) → (gradients, metrics): means over the batch, or over its shard.

    With A = ``update.micros`` > 1 a scan goes through A microbatches of equal size and adds up, so
    that the means are those of the whole batch. An objective with a statistic over the batch in its
    equation takes it over what it sees.
    """
    gradient = jax.grad(functools.partial(mean_loss, update=update), has_aux=True)
    if update.micros == 1:
        return gradient
    return functools.partial(_accumulated, gradient, update.micros)


def mean_loss(
    params: Any, batch: dict, key: jax.Array, step: jax.Array, *, update: Update
) -> tuple[jax.Array, Metrics]:
    """(loss, metrics), means over the batch, or over the shard of this device."""
    parts = metrics_of(update.terms(params, batch, key, step))
    masks = [jnp.ones(values["loss"].shape, bool) for values in parts]
    means = []
    for values, mask in zip(parts, masks, strict=True):
        means.append({name: masked_mean(v, mask) for name, v in values.items()})
    metrics = merged(*means)
    return all_mean(metrics["loss"], update.axis), metrics


def _accumulated(
    gradient: Callable, micros: int, params: Any, batch: dict, key: jax.Array, step: jax.Array
) -> tuple[Any, Metrics]:
    """The mean of what ``gradient`` gives for each of the microbatches."""
    batches = layout.microbatches(batch, micros)

    def add(total: Any, microbatch: dict) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, gradient(params, microbatch, key, step)), None

    first = jax.tree.map(lambda a: a[0], batches)
    shapes = jax.eval_shape(gradient, params, first, key, step)
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, batches)
    return jax.tree.map(lambda a: a / micros, total)


def train_step(
    state: TrainState, batch: dict, key: jax.Array, update: Update
) -> tuple[TrainState, Metrics]:
    """(state, batch, key) → (state, metrics): one update; pure.

    ``batch``: image uint8, label, id, each with leading dimension B (of this shard where
    ``update.axis`` names a device axis and there is no ``update.over_shards``), and 'labelled',
    such a batch of labelled examples, where the config asks for one. ``key``: the stream's root.

    Metrics are means over the batch before the update, and ``grad_norm``. Where
    ``update.skip_above`` is not None a bad step leaves all but the step number as it was, and the
    metric ``skipped`` is 1.
    """
    key = jax.random.fold_in(key, state.step)
    compute = gradients(update)
    if update.over_shards is None:
        batch = with_places(batch, update.axis)
        values = compute(state.params, batch, key, state.step)
        grads, metrics = all_mean(values, update.axis)
    else:
        batch = with_places(batch)
        grads, metrics = update.over_shards(compute)(state.params, batch, key, state.step)
    metrics["grad_norm"] = optax.tree.norm(grads)
    # The barrier keeps XLA from making the gradients once more for each of the optimiser's arrays.
    grads = jax.lax.optimization_barrier(grads)
    updates, opt = update.tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    average = ()
    if update.decay:
        average = optim.ema(state.ema, params, state.step, update.decay)
    new_state = TrainState(state.step + 1, params, opt, average)
    if update.skip_above is None:
        return new_state, metrics
    return _unless_bad(new_state, state, metrics, update.skip_above)


def _unless_bad(
    new: TrainState, old: TrainState, metrics: Metrics, limit: float
) -> tuple[TrainState, Metrics]:
    """``new`` after a good step, ``old`` but for its number after a bad one, and ``skipped``."""
    bad = ~jnp.isfinite(metrics["grad_norm"]) | ~jnp.isfinite(metrics["loss"])
    if limit:
        bad |= metrics["grad_norm"] > limit
    metrics["skipped"] = bad.astype(jnp.float32)

    def choose(new_leaf: jax.Array, old_leaf: jax.Array) -> jax.Array:
        return jnp.where(bad, old_leaf, new_leaf)

    return jax.tree.map(choose, new, old._replace(step=new.step)), metrics


def eval_step(
    params: Any, batch: dict, key: jax.Array, *, terms: Callable[..., Terms]
) -> list[Metrics]:
    """Sums over a batch's real examples, [{'loss': Σ, ..., 'n': count}].

    Where an objective has terms of labelled examples, a second dict is over those of them that have
    a label. Divide once, at the end, by :func:`divided`.
    """
    parts = metrics_of(terms(params, batch, key))
    masks = [batch["mask"]]
    if len(parts) > 1:
        masks.append(batch["mask"] & (batch["label"] >= 0))
    sums = []
    for values, mask in zip(parts, masks, strict=True):
        totals = {name: masked_sum(v, mask) for name, v in values.items()}
        totals["n"] = jnp.sum(mask.astype(jnp.float32))
        sums.append(totals)
    return sums


def divided(totals: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Mean metrics from :func:`eval_step`'s sums over all batches.

    Those of labelled examples are left out where no example has a label.
    """
    means = []
    for sums in totals:
        n = sums["n"]
        if np.all(n):
            means.append({name: v / n for name, v in sums.items() if name != "n"})
    return merged(*means)


def averaged(state: TrainState) -> Any:
    """The parameters to evaluate: the moving average where there is one."""
    return state.params if state.ema == () else state.ema
