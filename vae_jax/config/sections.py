"""Sections that are calls: a name, and the keyword arguments of the function of that name."""

import dataclasses
import importlib
import inspect
from collections.abc import Callable

from ml_collections import ConfigDict

from vae_jax.config.errors import UserError, nearest
from vae_jax.config.plugins import own, source_hash

# section -> where its names are defined (a module and the table of names in it).
CALLS = {
    "encoder": ("vae_jax.nets", "ENCODERS"),
    "decoder": ("vae_jax.nets", "DECODERS"),
    "classifier": ("vae_jax.nets", "CLASSIFIERS"),
    "posterior": ("vae_jax.nets", "POSTERIORS"),
    "prior": ("vae_jax.nets", "PRIORS"),
    "likelihood": ("vae_jax.distributions", "LIKELIHOODS"),
    "objective": ("vae_jax.objectives", "OBJECTIVES"),
    "model": ("vae_jax.models", "MODELS"),
}
OPTIMIZERS = ("vae_jax.train.optim", "OPTIMIZERS")
# Arguments that the model supplies; never a field of the config.
SUPPLIED = {"image", "parent", "name", "dtype", "shape", "levels", "outputs", "model", "params"}
SUPPLIED |= {"batch", "key", "keys", "pyramid", "remat"}
# Fields of config.optim that every optimiser has; the others are arguments of the optimiser.
SCHEDULE = {
    "lr": 1e-3,
    "schedule": "cosine",  # constant, cosine (to 0 at the last step) or stages (Burda et al. 2016)
    "warmup": 0,  # steps of linear warm-up
    "weight_decay": 0.0,  # of optimisers that have it; never on biases, norms and other vectors
    "clip": 0.0,  # global norm; 0 = off
    "skip": 0,  # most bad steps in a row that are left out before the run stops; 0: the first one
    "skip_above": 0.0,  # a step is bad where a gradient is not finite or has a larger norm; 0 = off
    "ema": 0.0,  # decay of the parameters' moving average, used for evaluation; 0 = off
}


def plain(value: object, field: str) -> object:
    """A value as a config holds it, so that its JSON gives it back unchanged.

    Numbers of numpy and JAX become Python's, lists become tuples.

    Raises:
      UserError: it is no switch, number, word, None or tuple of these.
    """
    if isinstance(value, list | tuple):
        return tuple(plain(v, field) for v in value)
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        value = value.item()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    kind = type(value).__name__
    words = " ".join(str(value).split())
    raise UserError(f"{field}={words:.60}: a {kind}; want a number, a word or a tuple")


def resolve(section: str, name: str) -> Callable[..., object]:
    """The function or module called ``name``, or ``file:function`` for one of the user's own."""
    if ":" in name and section != "optim":
        return own(f"{section}.name", name)
    module, table = CALLS.get(section, OPTIMIZERS)
    known = getattr(importlib.import_module(module), table)
    if name not in known:
        raise UserError(f"{section}.name={name}: unknown; {nearest(name, known)}")
    return known[name]


def sources(c: ConfigDict) -> dict[str, str]:
    """{'objective.name': hash of its source text} of the user's own functions and modules."""
    hashes = {}
    for section in CALLS:
        if ":" in c[section].name:
            field = f"{section}.name"
            hashes[field] = source_hash(field, c[section].name)
    return hashes


def _defaults(function: Callable[..., object]) -> dict[str, object]:
    """{argument: default}; ``inspect.Parameter.empty`` where there is none."""
    if not dataclasses.is_dataclass(function):
        parameters = inspect.signature(function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
    values = {}
    for field in dataclasses.fields(function):
        if not field.init:
            continue
        values[field.name] = field.default
        if field.default_factory is not dataclasses.MISSING:
            values[field.name] = field.default_factory()
        elif field.default is dataclasses.MISSING:
            values[field.name] = inspect.Parameter.empty
    return values


def arguments(function: Callable[..., object] | None, field: str = "argument") -> dict[str, object]:
    """{argument: default} that a config may set for ``function``: its keyword arguments.

    Raises:
      UserError: one has no default, or one that JSON does not hold; ``field`` names the section.
    """
    if function is None:
        return {}
    values = {}
    for name, value in _defaults(function).items():
        if name in SUPPLIED:
            continue
        if value is inspect.Parameter.empty:
            wanted = f"want one, such as {name}=1.0"
            raise UserError(f"{field}.{name}: the keyword has no default; {wanted}")
        values[name] = plain(value, f"{field}.{name}")
    return values


def _fields(section: str, function: Callable[..., object] | None) -> dict[str, object]:
    if section == "optim":
        return SCHEDULE | function.arguments
    return arguments(function, section)


def call(section: str, name: str, **changes: object) -> ConfigDict:
    """The section that calls ``name``: its arguments at their defaults, then ``changes``."""
    fields = _fields(section, resolve(section, name))
    for key, value in changes.items():
        if key not in fields:
            raise UserError(f"{section}.{key}: {name} has no such field; {nearest(key, fields)}")
        fields[key] = plain(value, f"{section}.{key}")
    return ConfigDict({"name": name, **fields}).lock()


def rename(section: str, old: ConfigDict, name: str) -> ConfigDict:
    """The section of another name; an optimiser keeps what does not depend on the name.

    That is the schedule, and each argument which has the same default in both optimisers.
    """
    if section != "optim":
        return call(section, name)
    before = call(section, old.name)
    after = call(section, name)
    for key, value in old.items():
        if key != "name" and key in after and after[key] == before.get(key):
            after[key] = value
    return after


def build(section: str, c: ConfigDict, **facts: object) -> object:
    """Call what a section names, with its fields and those of the model's facts that it takes."""
    function = resolve(section, c.name)
    known = inspect.signature(function).parameters
    fields = {k: v for k, v in c.items() if k != "name"}
    return function(**fields, **{k: v for k, v in facts.items() if k in known})
