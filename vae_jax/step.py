"""The training step and the evaluation step: pure functions, no jit, the device axis an argument."""

import zlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vae_jax import config as config_lib
from vae_jax import data, optim
from vae_jax.config import UserError


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

    step=None is evaluation: no augmentation, binarisation by example id, weights at their final values.
    """
    objective = config_lib.resolve("objective", c.objective.name)
    numbers = {k: v for k, v in c.objective.items() if k != "name"}
    d, n = c.data, len(dataset.train.image)

    def terms(params, batch, key, step=None):
        kwargs = dict(numbers)
        if step is not None and c.warmup.steps:
            kwargs[c.warmup.of] = numbers[c.warmup.of] * weight_at(c.warmup, step)
        inputs, draws = (None, key) if step is None else jax.random.split(key)
        image = data.to_input(
            batch["image"], batch["id"], inputs, levels=dataset.levels, binarize=d.binarize, shift=d.shift, flip=d.flip
        )
        return objective(model, params, {**batch, "image": image, "n": n, "step": step}, draws, **kwargs)

    return terms


def raw_batch(shape, *lead):
    """What a batch of raw images of this shape holds, as shapes with these leading dimensions."""
    number = jax.ShapeDtypeStruct(lead, jnp.int32)
    return {"image": jax.ShapeDtypeStruct((*lead, *shape), jnp.uint8), "label": number, "id": number}


def check(terms, params, shape, size=3):
    """The names of an objective's figures, by tracing it on shapes alone, before anything is made.

    Raises:
      UserError: a figure is not one number per example.
    """
    batch = raw_batch(shape, size)
    for at in (0, None):  # as in training, and as in evaluation
        extra = {} if at == 0 else {"mask": jax.ShapeDtypeStruct((size,), bool)}
        run = lambda p, b, at=at: figures(terms(p, b, jax.random.key(0), at))  # noqa: E731
        values = jax.eval_shape(run, params, batch | extra)
        for name, value in values.items():
            if value.shape != (size,):
                raise UserError(f"objective: {name} has shape {value.shape}; want one number per example, ({size},)")
    return tuple(values)


def figures(terms):
    """The figures of a Terms that have a meaning, as {name: values_B}."""
    named = {"loss": terms.loss, "elbo": terms.elbo, "log_px": terms.log_px, "kl": terms.kl, **terms.extra}
    return {k: v for k, v in named.items() if v is not None}


def init_state(key, mean, *, model, objective, tx, decay):
    """A new TrainState; jit it with the shardings as out_shardings, so that it is born sharded.

    ``mean``: the mean training image for ``config.bias_from_data``, else None.
    """
    params = model.init(key, mean)
    if hasattr(objective, "init"):
        params["objective"] = objective.init(jax.random.fold_in(key, zlib.crc32(b"objective")), model)
    average = jax.tree.map(jnp.copy, params) if decay else ()
    return TrainState(jnp.zeros((), jnp.int32), params, tx.init(params), average)


def train_step(state, batch, key, *, terms, tx, decay=0.0, axis=None):
    """(state, batch, key) → (state, metrics): one update; pure.

    ``batch``: image uint8, label, id, each with leading dimension B (of this shard where ``axis`` names
    a device axis). ``key``: the stream's root. Metrics are means over the batch before the update.
    """
    key = jax.random.fold_in(key, state.step)
    if axis is not None:
        key = jax.random.fold_in(key, jax.lax.axis_index(axis))

    def objective(params):
        values = figures(terms(params, batch, key, state.step))
        mask = jnp.ones(values["loss"].shape, bool)
        metrics = {name: masked_mean(v, mask) for name, v in values.items()}
        return all_mean(metrics["loss"], axis), metrics

    grads, metrics = jax.grad(objective, has_aux=True)(state.params)
    grads, metrics = all_mean((grads, metrics), axis)
    metrics["grad_norm"] = optax.tree.norm(grads)
    updates, opt = tx.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    average = optim.ema(state.ema, params, state.step, decay) if decay else ()
    return TrainState(state.step + 1, params, opt, average), metrics


def eval_step(params, batch, key, *, terms):
    """Sums over a batch's real examples, {'loss': Σ, ..., 'n': count}; divide once, at the end."""
    values = figures(terms(params, batch, key))
    sums = {name: masked_sum(v, batch["mask"]) for name, v in values.items()}
    return sums | {"n": jnp.sum(batch["mask"].astype(jnp.float32))}


def averaged(state):
    """The parameters to evaluate: the moving average where there is one."""
    return state.params if state.ema == () else state.ema
