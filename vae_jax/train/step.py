"""The training step and the evaluation step: pure functions, no jit, the device axis an argument."""

import functools
import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.distributions import example_keys
from vae_jax.mesh import layout
from vae_jax.train import contract, optim


class TrainState(NamedTuple):
    """All that training carries from step to step. Randomness is not in it: it is a path of keys."""

    step: jax.Array
    params: Any
    opt: Any
    ema: Any  # () where optim.ema is 0


def stream(seed, purpose):
    """The root key of one purpose ('init', 'train', 'validation', ...). Steps and examples fold in theirs."""
    return jax.random.fold_in(jax.random.key(seed), zlib.crc32(purpose.encode()))


def masked_mean(values_B, mask_B):
    """Σ m·v / Σ m over the global batch: the only place where a batch is averaged."""
    return masked_sum(values_B, mask_B) / jnp.maximum(jnp.sum(mask_B), 1)


def masked_sum(values_B, mask_B):
    return jnp.sum(jnp.where(mask_B, values_B, 0).astype(jnp.float32))


def all_mean(tree, axis):
    """Mean over a named device axis; the identity in the global view (axis=None)."""
    return tree if axis is None else jax.lax.pmean(tree, axis)


def weight_at(c, step):
    """The factor in [0, 1] on ``objective.<warmup.of>`` at a step; 1 with no warm-up.

    Linear: min(1, t/T) (Bowman et al. 2016; Sønderby et al. 2016). Cyclical: T is cut into ``cycles``;
    each rises over its first half and stays at 1 over its second (Fu et al. 2019, eq. 6 with R = 1/2).
    """
    if not c.steps:
        return 1.0
    t = jnp.asarray(step, jnp.float32) / c.steps
    if c.cycles == 1:
        return jnp.minimum(t, 1.0)
    rising = jnp.minimum(2.0 * jnp.mod(t * c.cycles, 1.0), 1.0)
    return jnp.where(t < 1.0, rising, 1.0)


def make_terms(c, model, dataset):
    """terms(params, batch, key, step=None) → Terms for a batch of raw uint8 images.

    step=None is evaluation: no augmentation, binarisation and noise by example id, weights at their final values.
    In training the noise of an example depends on its place in the global batch, ``batch["place"]``, alone: one device,
    eight, ``shard_map``, ``pmap`` and microbatches make the same update.
    """
    objective = config_lib.resolve("objective", c.objective.name)
    numbers = {k: v for k, v in c.objective.items() if k != "name"}
    d, n = c.data, len(dataset.train.image)
    budget = bool(d.labels or d.labelled_batch)

    augment = {"levels": dataset.levels, "binarize": d.binarize, "shift": d.shift, "flip": d.flip}

    def to_input(batch, key):
        image = data.to_input(batch["image"], batch["id"], key, batch.get("place"), **augment)
        return {**batch, "image": image}

    def terms(params, batch, key, step=None):
        kwargs = dict(numbers)
        if step is not None and c.warmup.steps:
            kwargs[c.warmup.of] = numbers[c.warmup.of] * weight_at(c.warmup, step)
        if "place" not in batch:  # a batch that was not split is the global batch
            batch = with_places(batch)
        if step is None:
            input_key = labelled_input_key = None
            draw_key, labelled_key = jax.random.split(key)
            keys_B = example_keys(draw_key, batch["id"])
        else:
            input_key, labelled_input_key, draw_key, labelled_key = jax.random.split(key, 4)
            keys_B = example_keys(draw_key, batch["place"])
        inputs = {**to_input(batch, input_key), "n": n, "step": step}
        if budget and step is None:  # eval_step counts those that have a label
            inputs["labelled"] = inputs | {"keys": example_keys(labelled_key, batch["id"])}
        elif "labelled" in batch:
            labelled = batch["labelled"]
            inputs["labelled"] = to_input(labelled, labelled_input_key)
            inputs["labelled"]["keys"] = example_keys(labelled_key, labelled["place"])
        elif d.labels:
            inputs["labelled"] = None
        return objective(model, params, inputs, keys_B, **kwargs)

    return terms


def raw_batch(shape, *lead, labelled=0):
    """What a batch of raw images of this shape holds, as shapes with these leading dimensions.

    ``labelled``: how many examples its labelled part has, if any.
    """
    number = jax.ShapeDtypeStruct(lead, jnp.int32)
    batch = {
        "image": jax.ShapeDtypeStruct((*lead, *shape), jnp.uint8),
        "label": number,
        "id": number,
    }
    return batch | ({"labelled": raw_batch(shape, *lead[:-1], labelled)} if labelled else {})


def check(c, model, dataset, params):
    """The names of the figures that validation has, by tracing the objective on shapes alone, before anything is made.

    Raises:
      UserError: the objective returns no Terms, or a figure is not one number per example.
    """
    terms, size = make_terms(c, model, dataset), 3
    for at in (0, None):  # as in training, and as in evaluation
        other = 2 if c.data.labelled_batch and at == 0 else 0
        batch = raw_batch(dataset.shape, size, labelled=other)
        extra = {} if at == 0 else {"mask": jax.ShapeDtypeStruct((size,), bool)}

        def run(p, b, at=at):
            result = terms(p, b, jax.random.key(0), at)
            contract.check_terms(result, f"objective.name={c.objective.name}")
            return parts(result)

        found = jax.eval_shape(run, params, batch | extra)
        for values, want in zip(found, (size, other or size), strict=False):
            for name, value in values.items():
                if value.shape != (want,):
                    raise UserError(
                        f"objective: {name} has shape {value.shape}; want one number per example, ({want},)"
                    )
    judged = dataset.validation.label is not None and (dataset.validation.label >= 0).any()
    return tuple(merged(*(dict.fromkeys(values, 0) for values in (found if judged else found[:1]))))


def with_places(batch, axis=None):
    """The batch with ``place``, each example's place in the global batch: of this shard where ``axis`` names one."""
    labelled = {"labelled": with_places(batch["labelled"], axis)} if "labelled" in batch else {}
    return batch | labelled | {"place": layout.places(len(jax.tree.leaves(batch)[0]), axis)}


def figures(terms):
    """The figures of a Terms that have a meaning, as {name: values_B}."""
    named = {
        "loss": terms.loss,
        "elbo": terms.elbo,
        "log_px": terms.log_px,
        "kl": terms.kl,
        **terms.extra,
    }
    return {k: v for k, v in named.items() if v is not None}


def parts(terms):
    """The :func:`figures` of the batch and, where an objective has them apart, of its labelled examples."""
    return [figures(t) for t in (terms, terms.labelled) if t is not None]


def merged(batch, labelled=None):
    """Mean figures of both parts as one dict: the loss is their sum, the bounds of the labelled are labelled_elbo, …"""
    if labelled is None:
        return batch
    named = {
        f"labelled_{k}" if k in ("elbo", "log_px", "kl") else k: v for k, v in labelled.items()
    }
    return batch | named | {"loss": batch["loss"] + labelled["loss"]}


def init_state(key, mean, *, model, objective, tx, decay):
    """A new TrainState; jit it with the shardings as out_shardings, so that it is born sharded.

    ``mean``: the mean training image for ``config.bias_from_data``, else None.
    """
    params = model.init(key, mean)
    if hasattr(objective, "init"):
        params["objective"] = objective.init(
            jax.random.fold_in(key, zlib.crc32(b"objective")), model
        )
    average = jax.tree.map(jnp.copy, params) if decay else ()
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average)


def gradients(params, batch, key, step, *, terms, axis=None, micros=1):
    """(gradients, figures) of a batch: means over it; of a shard, where ``axis`` names device axes, over the shard.

    With ``micros`` = A > 1 a scan goes through A microbatches of equal size and adds up, so that the means are those
    of the whole batch. An objective with a statistic over the batch in its equation takes it over what it sees.
    """

    def objective(params, batch):
        found = parts(terms(params, batch, key, step))
        masks = [jnp.ones(values["loss"].shape, bool) for values in found]
        metrics = merged(
            *(
                {n: masked_mean(v, m) for n, v in p.items()}
                for p, m in zip(found, masks, strict=True)
            )
        )
        return all_mean(metrics["loss"], axis), metrics

    one = jax.grad(objective, has_aux=True)
    if micros == 1:
        return one(params, batch)
    batches = layout.microbatches(batch, micros)

    def add(total, micro):
        return (jax.tree.map(jnp.add, total, one(params, micro)), None)

    shapes = jax.eval_shape(one, params, jax.tree.map(lambda a: a[0], batches))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    total, _ = jax.lax.scan(add, zero, batches)
    return jax.tree.map(lambda a: a / micros, total)


def train_step(
    state, batch, key, *, terms, tx, decay=0.0, axis=None, micros=1, over=None, skip_above=None
):
    """(state, batch, key) → (state, metrics): one update; pure.

    ``batch``: image uint8, label, id, each with leading dimension B (of this shard where ``axis`` names
    a device axis), and 'labelled', such a batch of labelled examples, where the config asks for one.
    ``key``: the stream's root. Metrics are means over the batch before the update.
    ``over``: where given, ``over(function)`` is what calls :func:`gradients`, on a mesh of its own.
    ``skip_above``: where given, a bad step leaves all but the step number as it was, and the metric ``skipped`` is 1:
    one whose loss or gradient is not finite or, above 0, whose gradient has a larger norm than this.
    """
    key = jax.random.fold_in(key, state.step)
    compute = functools.partial(gradients, terms=terms, axis=axis, micros=micros)
    batch = with_places(batch, axis if over is None else None)
    if over is None:
        grads, metrics = all_mean(compute(state.params, batch, key, state.step), axis)
    else:
        grads, metrics = over(compute)(state.params, batch, key, state.step)
    metrics["grad_norm"] = optax.tree.norm(grads)
    # The barrier keeps XLA from making the gradients once more for each of the optimiser's arrays.
    updates, opt = tx.update(jax.lax.optimization_barrier(grads), state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    average = optim.ema(state.ema, params, state.step, decay) if decay else ()
    made = TrainState(state.step + 1, params, opt, average)
    if skip_above is not None:
        bad = ~jnp.isfinite(metrics["grad_norm"]) | ~jnp.isfinite(metrics["loss"])
        if skip_above:
            bad |= metrics["grad_norm"] > skip_above
        metrics["skipped"] = bad.astype(jnp.float32)
        made = jax.tree.map(
            lambda new, old: jnp.where(bad, old, new), made, state._replace(step=made.step)
        )
    return made, metrics


def eval_step(params, batch, key, *, terms):
    """Sums over a batch's real examples, [{'loss': Σ, ..., 'n': count}], and over those of them that have a label
    where an objective has figures of these apart; divide once, at the end, by :func:`divided`."""
    found, masks = parts(terms(params, batch, key)), [batch["mask"]]
    if len(found) > 1:
        masks.append(batch["mask"] & (batch["label"] >= 0))
    return [
        {name: masked_sum(v, mask) for name, v in values.items()}
        | {"n": jnp.sum(mask.astype(jnp.float32))}
        for values, mask in zip(found, masks, strict=True)
    ]


def divided(totals):
    """Mean figures from :func:`eval_step`'s sums over all batches; without those of labels where no example has one."""
    means = [{k: v / t["n"] for k, v in t.items() if k != "n"} for t in totals if np.all(t["n"])]
    return merged(*means)


def averaged(state):
    """The parameters to evaluate: the moving average where there is one."""
    return state.params if state.ema == () else state.ema
