"""What values a config may have: limits of each field, and rules between fields."""

import math
from collections.abc import Callable
from typing import NamedTuple

from ml_collections import ConfigDict

from vae_jax.config.errors import UserError, nearest
from vae_jax.config.fields import flatten
from vae_jax.config.replicas import replica, replica_count
from vae_jax.config.sections import CALLS, call, resolve

BINARIZE = ("none", "threshold", "static", "dynamic")
COMPILE = ("auto", "jit", "shard_map", "pmap")
REMAT = ("none", "full", "dots")
SELECT = ("loss", "elbo", "cross_entropy", "accuracy")
SIGNED = ("logvar", "target")  # arguments that may be negative


class Limit(NamedTuple):
    """A test of one field's value, and in words what passes it."""

    passes: Callable[[object], bool]
    words: str


def one_of(*values: object, words: str = "") -> Limit:
    """The value is one of these."""
    return Limit(lambda v: v in values, words or ", ".join(map(str, values)))


def _different_classes(values: tuple) -> bool:
    """Places or names of classes, each once."""
    for value in values:
        if type(value) is not str and (type(value) is not int or value < 0):
            return False
    return len(set(values)) == len(values)


def _is_size(value: object) -> bool:
    """The side of a square (0: none), or height and width."""
    if isinstance(value, tuple):
        return len(value) == 2 and all(type(side) is int and side > 0 for side in value)
    return type(value) is int and value >= 0


POSITIVE = Limit(lambda v: v > 0, "a number > 0")
NATURAL = Limit(lambda v: v >= 0, "a number >= 0")
AXIS = Limit(lambda v: v == -1 or v > 0, "-1 or a number > 0")
SHARE = Limit(lambda v: 0 <= v < 1, "0 <= value < 1")
# Arguments of encoders, objectives and the like are checked by what they call.
LIMITS = {
    "seed": Limit(lambda v: 0 <= v < 2**31, "0 <= seed < 2**31"),
    "steps": POSITIVE,
    "batch": POSITIVE,
    "steps_per_call": POSITIVE,
    "log_every": POSITIVE,
    "accumulate": POSITIVE,
    "compile": one_of(*COMPILE),
    "remat": one_of(*REMAT),
    "latent": POSITIVE,
    "auxiliary": NATURAL,
    "dtype": one_of("float32", "bfloat16", words="float32 or bfloat16"),
    "data.size": Limit(_is_size, "the side of the images in pixels, or (height, width)"),
    "data.channels": one_of(0, 1, 3, words="0 (look), 1 or 3"),
    "data.validation": Limit(lambda v: 0 < v <= 0.5, "0 < value <= 0.5"),
    "data.labels": NATURAL,
    "data.labels_seed": Limit(lambda v: 0 <= v < 2**31, "0 <= value < 2**31"),
    "data.labelled_batch": NATURAL,
    "data.hold_out": Limit(
        _different_classes, "different places of classes, such as (8, 9), or names"
    ),
    "data.binarize": one_of(*BINARIZE),
    "data.shift": NATURAL,
    "data.memory_mb": NATURAL,
    "data.on_device_mb": NATURAL,
    "warmup.steps": NATURAL,
    "warmup.cycles": POSITIVE,
    "optim.lr": POSITIVE,
    "optim.schedule": one_of("constant", "cosine", "stages", words="constant, cosine or stages"),
    "optim.warmup": NATURAL,
    "optim.weight_decay": NATURAL,
    "optim.clip": NATURAL,
    "optim.skip": NATURAL,
    "optim.skip_above": NATURAL,
    "optim.b1": SHARE,
    "optim.b2": SHARE,
    "optim.ema": SHARE,
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.model", "mesh.samples"), AXIS),
    "eval.every": POSITIVE,
    "eval.batch": POSITIVE,
    "eval.select": one_of(*SELECT),
    "eval.iw_k": POSITIVE,
}


def validate(c: ConfigDict) -> None:
    """Raise :class:`UserError` for the first field whose value or combination is not allowed."""
    flat = flatten(c)
    for field, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{field}={value}: want a finite number")
        if isinstance(value, int) and abs(value) >= 2**31 and field != "steps":
            raise UserError(f"{field}={value}: want a number below 2**31")
    for field, limit in LIMITS.items():
        if field in flat and not limit.passes(flat[field]):
            raise UserError(f"{field}={flat[field]}: want {limit.words}")
    for section in CALLS:
        resolve(section, c[section].name)
        _validate_call(section, c[section])
    _validate_lengths(c)
    _validate_optimizer(c)
    _validate_replicas(c)
    if c.warmup.steps and not isinstance(c.objective.get(c.warmup.of), float):
        numbers = [k for k, v in c.objective.items() if isinstance(v, float)]
        known = ", ".join(numbers) or "no weights"
        raise UserError(f"warmup.of={c.warmup.of}: objective {c.objective.name} has {known}")


def _validate_call(section: str, c: ConfigDict) -> None:
    """Whole numbers of a call are counts, >= 1; all others >= 0, but for those in SIGNED."""
    for key, value in c.items():
        if key in SIGNED:
            continue
        for number in value if isinstance(value, list | tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            least = int(isinstance(number, int))
            if number < least:
                raise UserError(f"{section}.{key}={value}: want numbers >= {least}")


def _validate_lengths(c: ConfigDict) -> None:
    """Steps are whole calls, and the number of an example in the run fits 32 bits."""
    flat = flatten(c)
    size = c.steps_per_call
    for field in ("steps", "log_every", "eval.every"):
        if flat[field] % size:
            near = max(size, round(flat[field] / size) * size)
            wanted = f"want a multiple of steps_per_call={size}, such as {near}"
            raise UserError(f"{field}={flat[field]}: {wanted}")
    for field in ("batch", "data.labelled_batch"):
        size = flat[field]
        if c.steps * size >= 2**32:
            most = 2**32 // size - 1
            raise UserError(f"steps={c.steps}: want steps * {field} < 2**32, so at most {most}")


def _validate_optimizer(c: ConfigDict) -> None:
    """The fields are those of the optimiser, and its schedule fits the run."""
    o = c.optim
    optimizer = resolve("optim", o.name)
    known = call("optim", o.name)
    for key, value in o.items():
        if key not in known:
            near = nearest(key, known)
            raise UserError(f"optim.{key}={value}: {o.name} has no such field; {near}")
    for key in optimizer.arguments:
        if key not in o:
            wanted = f"want config.call('optim', '{o.name}')"
            raise UserError(f"optim.name={o.name}: has {key}; {wanted}")
        value = o[key]
        if isinstance(value, int | float) and value < 0:
            raise UserError(f"optim.{key}={value}: want a number >= 0")
        if value is not None and not isinstance(value, bool | int | float):
            raise UserError(f"optim.{key}={value}: want a number")
    if "adam" in o.name and o.eps <= 0:
        raise UserError(f"optim.eps={o.eps}: want a number > 0")
    if o.weight_decay and not optimizer.decay:
        wanted = "want optim.name=adamw"
        raise UserError(f"optim.weight_decay={o.weight_decay}: {o.name} has none; {wanted}")
    if o.skip_above and not o.skip:
        wanted = "want optim.skip, such as 10"
        raise UserError(f"optim.skip_above={o.skip_above}: no step is left out; {wanted}")
    if o.warmup and o.schedule == "stages":
        raise UserError(f"optim.warmup={o.warmup}: the schedule stages has none; want 0")
    if o.warmup >= c.steps:
        raise UserError(f"optim.warmup={o.warmup}: want less than steps={c.steps}")


def _validate_replicas(c: ConfigDict) -> None:
    varied = flatten(c.replicas)
    if not varied:
        return
    sizes = {field: len(values) for field, values in varied.items()}
    if len(set(sizes.values())) > 1:
        words = ", ".join(f"{field} has {n} values" for field, n in sizes.items())
        raise UserError(f"replicas: {words}; want as many of each")
    if len(set(zip(*varied.values(), strict=True))) < max(2, *sizes.values()):
        words = ", ".join(f"{field}={','.join(map(str, v))}" for field, v in varied.items())
        raise UserError(f"replicas.{words}: want two or more, all different")
    for r in range(replica_count(c)):
        validate(replica(c, r))


def program_name(c: ConfigDict, fsdp: int) -> str:
    """The program that ``config.compile`` means on a mesh with ``fsdp`` devices on that axis.

    *auto* is *jit*, the global view, but *shard_map* for nets that are not float32, whose gradients
    would be summed over devices in the nets' dtype, and for parameters split over ``fsdp``, which
    the partitioner would gather several times.
    """
    if c.compile != "auto":
        return c.compile
    by_shards = c.dtype != "float32" or fsdp > 1
    return "shard_map" if by_shards and not replica_count(c) else "jit"


def shorten_warmups(c: ConfigDict) -> list[str]:
    """Shorten a warm-up that is as long as the run or longer to a tenth of the run, in place.

    Returns:
      a line for each change.
    """
    lines = []
    tenth = c.steps // 10
    if c.optim.warmup >= c.steps:
        change = f"not below steps={c.steps}; shortened to {tenth}"
        lines.append(f"optim.warmup={c.optim.warmup}: {change}")
        c.optim.warmup = tenth
    if c.warmup.steps > c.steps:
        change = f"above steps={c.steps}; shortened to {tenth}"
        lines.append(f"warmup.steps={c.warmup.steps}: {change}")
        c.warmup.steps = tenth
    return lines
