"""What a config may hold, and one clear line for each wrong name, type or value.

A config is a ``ConfigDict`` from :func:`default`, changed by a page in ``configs/`` and by flags such as
``--config.optim.lr=3e-4``. Some sections are *calls*: they have a ``name``, and the rest are the keyword
arguments of the function or module of that name. So a new objective or net brings its own fields, and
``--config.objective.name=NAME`` changes name and fields together.
"""

import dataclasses
import difflib
import importlib
import importlib.util
import inspect
import json
import math
import os

from ml_collections import ConfigDict
from ml_collections.config_dict import FrozenConfigDict

# section -> where its names live (a module and the table of names in it).
CALLS = {
    "encoder": ("vae_jax.nets", "ENCODERS"),
    "decoder": ("vae_jax.nets", "DECODERS"),
    "classifier": ("vae_jax.nets", "CLASSIFIERS"),
    "posterior": ("vae_jax.nets", "POSTERIORS"),
    "prior": ("vae_jax.nets", "PRIORS"),
    "likelihood": ("vae_jax.distributions", "LIKELIHOODS"),
    "objective": ("vae_jax.objectives", "OBJECTIVES"),
}
# Arguments that the model gives; never a field of the config.
GIVEN = {"image", "parent", "name", "dtype", "shape", "levels", "outputs", "model", "params", "batch", "key"}
GIVEN |= {"pyramid", "remat"}
BINARIZE = ("none", "threshold", "static", "dynamic")
COMPILE = ("jit", "shard_map", "pmap")
REMAT = ("none", "full", "dots")
SELECT = ("loss", "elbo", "cross_entropy", "accuracy")


class UserError(Exception):
    """Bad input, in one line: the field, its value, and what would be right."""


def nearest(name, known):
    """'; nearest: a, b' for a mistyped name, or the whole list where nothing is near."""
    known = sorted(known)
    near = difflib.get_close_matches(str(name), known, n=3, cutoff=0.5)
    return f"nearest: {', '.join(near)}" if near else f"one of {', '.join(known)}"


def own(field, name):
    """The function of the user's own that ``name``, as ``file:function``, says; ``field`` is where it was said."""
    path, _, attribute = name.rpartition(":")
    path = path if path.endswith(".py") else (path if os.sep in path else path.replace(".", os.sep)) + ".py"
    if not os.path.isfile(path):
        raise UserError(f"{field}={name}: no file {path}")
    spec = importlib.util.spec_from_file_location(f"user_{field.partition('.')[0]}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not callable(getattr(module, attribute, None)):
        raise UserError(f"{field}={name}: {path} has no function {attribute}")
    return getattr(module, attribute)


def resolve(section, name):
    """The function or module called ``name``, or ``file:function`` for one of the user's own."""
    if ":" in name:
        return own(f"{section}.name", name)
    module, table = CALLS[section]
    known = getattr(importlib.import_module(module), table)
    if name not in known:
        raise UserError(f"{section}.name={name}: unknown; {nearest(name, known)}")
    return known[name]


def arguments(function):
    """{argument: default} that a config may set for ``function`` (keyword arguments with defaults)."""
    if function is None:
        return {}
    if dataclasses.is_dataclass(function):
        fields = {f.name: f.default for f in dataclasses.fields(function) if f.init}
    else:
        fields = {
            p.name: p.default for p in inspect.signature(function).parameters.values() if p.kind is p.KEYWORD_ONLY
        }
    return {k: v for k, v in fields.items() if k not in GIVEN}


def call(section, name, **changes):
    """The section that calls ``name``: its arguments at their defaults, then ``changes``."""
    fields = arguments(resolve(section, name))
    unknown = [k for k in changes if k not in fields]
    if unknown:
        raise UserError(f"{section}.{unknown[0]}: {name} has no such field; {nearest(unknown[0], fields)}")
    return ConfigDict({"name": name, **fields, **changes}).lock()


def build(section, c, **given):
    """Call what a section names, with its fields and those of the model's facts that it takes."""
    function = resolve(section, c.name)
    takes = inspect.signature(function).parameters
    fields = {k: v for k, v in c.items() if k != "name"}
    return function(**fields, **{k: v for k, v in given.items() if k in takes})


def default():
    """Every field of a config, with the values of a small VAE on scikit-learn's digits."""
    c = ConfigDict()
    c.seed = 0
    c.steps = 2000  # optimiser steps in all
    c.batch = 128  # examples per step, over all devices
    c.steps_per_call = 1  # optimiser steps in one compiled call (small models are dispatch-bound)
    c.accumulate = 1  # microbatches of a step, one after the other: their memory, the same update
    c.compile = "jit"  # jit, shard_map or pmap; the same update
    c.remat = "none"  # what nets compute again for the gradients: none, full, or dots (all but products)
    c.unroll = True  # the steps of a call written out (convolutions on CPU are slow in a loop)
    c.log_every = 100  # steps between rows of metrics.jsonl

    c.data = ConfigDict()
    c.data.name = "digits"  # digits, a TFDS name, cifar10_20k, folder:PATH or synthetic
    c.data.dir = ""  # TFDS data_dir; '' = TFDS's own default
    c.data.size = 0  # folder: images are resized and cropped to size x size; synthetic: their side
    c.data.channels = 3  # folder, synthetic: 1 grey or 3 colour
    c.data.validation = 0.1  # share of the training set held out, stratified
    c.data.labels = 0  # label budget: how many training and validation labels there are; 0 = all (see data.load)
    c.data.labels_seed = 0  # which examples have them
    c.data.labelled_batch = 0  # labelled examples per step, a stream beside the batch; 0 = none
    c.data.hold_out = ()  # classes that training never sees, by their places, such as (8, 9); evaluation meets them
    c.data.binarize = "none"  # none, threshold, static or dynamic
    c.data.shift = 0  # training images are moved by up to this many pixels
    c.data.flip = False  # ... and mirrored
    c.data.memory_mb = 4096  # a larger training set is streamed, not held
    c.data.on_device_mb = 1024  # a smaller one lives on the device: no host work in a step

    c.latent = 16
    c.auxiliary = 0  # adgm, sdgm, m1m2: dimensions of a; 0 = as many as z has, latent
    c.dtype = "float32"  # of the nets; parameters and objectives are float32
    c.encoder = call("encoder", "mlp")
    c.decoder = call("decoder", "mlp")
    c.classifier = call("classifier", "none")
    c.posterior = call("posterior", "gaussian")
    c.prior = call("prior", "normal")
    c.likelihood = call("likelihood", "discretized_logistic")
    c.objective = call("objective", "elbo")
    c.init_from = ""  # folder of a run: parts of the model with the same names and shapes begin with its parameters
    c.bias_from_data = False  # the decoder's output bias begins at the logit of the mean training image

    c.warmup = ConfigDict()  # objective.<of> goes from 0 to its value over these steps
    c.warmup.of = "beta"
    c.warmup.steps = 0
    c.warmup.cycles = 1  # > 1: cyclical annealing, each cycle's first half rises

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adam or adamw
    c.optim.lr = 1e-3
    c.optim.schedule = "cosine"  # constant, cosine (to 0 at the last step) or stages (Burda et al. 2016)
    c.optim.warmup = 0  # steps of linear warm-up
    c.optim.weight_decay = 0.0  # adamw only; never on biases, norms and other vectors
    c.optim.clip = 0.0  # global norm; 0 = off
    c.optim.skip = 0  # most bad steps in a row that are left out before the run stops; 0: the first stops it
    c.optim.skip_above = (
        0.0  # a step is bad where a gradient is not finite, or its norm above this; 0 = any norm is good
    )
    c.optim.b1, c.optim.b2, c.optim.eps = 0.9, 0.999, 1e-8
    c.optim.ema = 0.0  # decay of the parameters' moving average, used for evaluation; 0 = off

    c.mesh = ConfigDict()  # devices along each axis; -1 = all that are left
    c.mesh.data = -1  # the batch
    c.mesh.fsdp = 1  # the batch, and parameters and optimiser state with it (ZeRO-3)
    c.mesh.model = 1  # dense layers (tensor parallel)
    c.mesh.samples = 1  # importance samples K, or the labels that M2 enumerates

    c.replicas = ConfigDict()  # replicas.FIELD = values: one run for each, all in one program (see replicate)

    c.eval = ConfigDict()
    c.eval.every = 500  # steps between validations; each saves a checkpoint
    c.eval.batch = 500
    c.eval.select = "loss"  # which validation figure names the best checkpoint
    c.eval.iw_k = 100  # importance samples for log p(x) on the test set
    c.lock()  # a misspelt field is an error, not a new one
    return c


# field -> (test, what would be right). Sections' own arguments are checked by what they call.
_positive = (lambda v: v > 0, "a number > 0")
_natural = (lambda v: v >= 0, "a number >= 0")
_axis = (lambda v: v == -1 or v > 0, "-1 or a number > 0")
_share = (lambda v: 0 <= v < 1, "0 <= value < 1")
LIMITS = {
    "seed": (lambda v: 0 <= v < 2**31, "0 <= seed < 2**31"),
    "steps": _positive,
    "batch": _positive,
    "steps_per_call": _positive,
    "log_every": _positive,
    "accumulate": _positive,
    "compile": (lambda v: v in COMPILE, ", ".join(COMPILE)),
    "remat": (lambda v: v in REMAT, ", ".join(REMAT)),
    "latent": _positive,
    "auxiliary": _natural,
    "dtype": (lambda v: v in ("float32", "bfloat16"), "float32 or bfloat16"),
    "data.size": _natural,
    "data.channels": (lambda v: v in (1, 3), "1 or 3"),
    "data.validation": (lambda v: 0 < v <= 0.5, "0 < value <= 0.5"),
    "data.labels": _natural,
    "data.labels_seed": (lambda v: 0 <= v < 2**31, "0 <= value < 2**31"),
    "data.labelled_batch": _natural,
    "data.hold_out": (
        lambda v: len(set(v)) == len(v) and all(type(i) is int and i >= 0 for i in v),
        "different places of classes, such as (8, 9)",
    ),
    "data.binarize": (lambda v: v in BINARIZE, ", ".join(BINARIZE)),
    "data.shift": _natural,
    "data.memory_mb": _natural,
    "data.on_device_mb": _natural,
    "warmup.steps": _natural,
    "warmup.cycles": _positive,
    "optim.name": (lambda v: v in ("adam", "adamw"), "adam or adamw"),
    "optim.lr": _positive,
    "optim.schedule": (lambda v: v in ("constant", "cosine", "stages"), "constant, cosine or stages"),
    "optim.warmup": _natural,
    "optim.weight_decay": _natural,
    "optim.clip": _natural,
    "optim.skip": _natural,
    "optim.skip_above": _natural,
    "optim.b1": _share,
    "optim.b2": _share,
    "optim.eps": _positive,
    "optim.ema": _share,
    **dict.fromkeys(("mesh.data", "mesh.fsdp", "mesh.model", "mesh.samples"), _axis),
    "eval.every": _positive,
    "eval.batch": _positive,
    "eval.select": (lambda v: v in SELECT, ", ".join(SELECT)),
    "eval.iw_k": _positive,
}


def flatten(c, prefix=""):
    """{'optim.lr': 0.001, ...}"""
    flat = {}
    for key, value in c.items():
        if isinstance(value, dict | ConfigDict | FrozenConfigDict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def validate(c):
    """Raise :class:`UserError` for the first field whose value or combination cannot be meant."""
    flat = flatten(c)
    for field, value in flat.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise UserError(f"{field}={value}: want a finite number")
    for field, (test, right) in LIMITS.items():
        if not test(flat[field]):
            raise UserError(f"{field}={flat[field]}: want {right}")
    for section in CALLS:
        resolve(section, c[section].name)
        _validate_call(section, c[section])
    for field in ("steps", "log_every", "eval.every"):
        if flat[field] % c.steps_per_call:
            s = c.steps_per_call
            near = max(s, round(flat[field] / s) * s)
            raise UserError(f"{field}={flat[field]}: want a multiple of steps_per_call={s}, such as {near}")
    for field, size in (("batch", c.batch), ("data.labelled_batch", c.data.labelled_batch)):
        if c.steps * size >= 2**32:
            raise UserError(f"steps={c.steps}: want steps * {field} < 2**32, so at most {2**32 // size - 1}")
    if c.optim.weight_decay and c.optim.name == "adam":
        raise UserError(f"optim.weight_decay={c.optim.weight_decay}: adam has none; want optim.name=adamw")
    if c.optim.skip_above and not c.optim.skip:
        raise UserError(f"optim.skip_above={c.optim.skip_above}: no step is left out; want optim.skip, such as 10")
    if c.optim.warmup and c.optim.schedule == "stages":
        raise UserError(f"optim.warmup={c.optim.warmup}: the schedule stages has none; want 0")
    if c.optim.warmup >= c.steps:
        raise UserError(f"optim.warmup={c.optim.warmup}: want less than steps={c.steps}")
    _validate_replicas(c)
    if c.warmup.steps and not isinstance(c.objective.get(c.warmup.of), float):
        numbers = [k for k, v in c.objective.items() if isinstance(v, float)]
        known = ", ".join(numbers) or "no weights"
        raise UserError(f"warmup.of={c.warmup.of}: objective {c.objective.name} has {known}")


def _validate_replicas(c):
    varied = flatten(c.replicas)
    sizes = {field: len(values) for field, values in varied.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"replicas: {', '.join(f'{f} has {n} values' for f, n in sizes.items())}; want as many of each")
    if varied and len(set(zip(*varied.values(), strict=True))) < max(2, *sizes.values()):
        listed = ", ".join(f"{f}={','.join(map(str, v))}" for f, v in varied.items())
        raise UserError(f"replicas.{listed}: want two or more, all different")
    for r in range(replica_count(c)):
        validate(replica(c, r))


def replicate(c, field, values):
    """Train one replica for each value of ``field``: ``seed``, ``optim.lr`` or a number of the objective.

    All replicas are one program: a step for each of them is one step of it. Several fields vary together,
    value by value. On the command line: ``--config.replicas.objective.beta=1,2,4``.
    """
    flat = flatten({k: v for k, v in c.items() if k != "replicas"})
    weights = [f for f, v in flat.items() if f.startswith("objective.") and type(v) is float]
    known = ["seed", "optim.lr", *weights]
    if field not in known:
        raise UserError(f"replicas.{field}: cannot differ between replicas; want one of {', '.join(known)}")
    try:
        values = tuple(type(flat[field])(v) for v in values)
    except ValueError:
        raise UserError(f"replicas.{field}={','.join(map(str, values))}: want numbers, such as 0,1,2") from None
    nested = {}
    for name, each in (flatten(c.replicas) | {field: values}).items():
        *path, last = name.split(".")
        section = nested
        for key in path:
            section = section.setdefault(key, {})
        section[last] = each
    c.replicas = ConfigDict(nested).lock()


def replica_count(c):
    """How many replicas a config trains at once; 0 where it is a run alone."""
    return max(map(len, flatten(c.replicas).values()), default=0)


def replica(c, r):
    """The config of replica r, as of a run alone."""
    return override(c, {field: values[r] for field, values in flatten(c.replicas).items()})


def override(c, values):
    """A copy without replicas and with other values of some fields, which may be traced arrays."""
    c = c.copy_and_resolve_references()
    with c.unlocked(), c.ignore_type():
        c.replicas = ConfigDict()
        for field, value in values.items():
            *path, last = field.split(".")
            section = c
            for key in path:
                section = section[key]
            section[last] = value
    return c


SIGNED = ("logvar", "target")  # arguments that may be negative


def _validate_call(section, c):
    """Whole numbers of a call are counts, >= 1; all others >= 0, but for those in SIGNED."""
    for key, value in c.items():
        items = value if isinstance(value, list | tuple) else (value,)
        for v in (v for v in items if isinstance(v, int | float) and not isinstance(v, bool)):
            least = 1 if isinstance(v, int) else 0
            if key not in SIGNED and v < least:
                raise UserError(f"{section}.{key}={value}: want numbers >= {least}")


def to_json(c):
    """The config as plain JSON (tuples become lists)."""
    return json.loads(c.to_json()) if not isinstance(c, dict) else c


def from_json(tree):
    """A config read back. Fields that are newer than the file keep their defaults; unknown ones are one line."""
    c = default()
    for section in CALLS:
        if isinstance(tree.get(section), dict) and "name" in tree[section]:
            c[section] = (
                call(section, tree[section]["name"]) if ":" not in tree[section]["name"] else ConfigDict(tree[section])
            )
    for field, values in flatten(tree.get("replicas", {})).items():
        replicate(c, field, values)
    for field, value in flatten({k: v for k, v in tree.items() if k != "replicas"}).items():
        set_field(c, field, value)
    return c


def set_field(c, field, value):
    """Set ``c.a.b`` by its dotted name, with the type it has; unknown names and other types are one line."""
    *path, last = field.split(".")
    for depth, key in enumerate(path):
        if key not in c or not isinstance(c[key], ConfigDict):
            raise UserError(f"{'.'.join(path[: depth + 1])}={value}: unknown field; {nearest(key, c.keys())}")
        c = c[key]
    if last not in c:
        raise UserError(f"{field}={value}: unknown field; {nearest(last, c.keys())}")
    old = c[last]
    if isinstance(old, tuple) and isinstance(value, list):
        value = tuple(value)
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    try:
        c[last] = value
    except (TypeError, ValueError):
        raise UserError(f"{field}={value!r}: want {type(old).__name__}, as {old!r}") from None


def load(path, function="get_config"):
    """``get_config()`` of a page in ``configs/``, or ``get_study()`` of a study's."""
    if not os.path.isfile(path):
        folder = os.path.dirname(path) or "configs"
        pages = [p for p in sorted(os.listdir(folder)) if p.endswith(".py")] if os.path.isdir(folder) else []
        near = nearest(os.path.basename(path), pages) if pages else "want configs/NAME.py"
        raise UserError(f"config={path}: no such file; {near}")
    if not path.endswith(".py"):
        raise UserError(f"config={path}: want a Python file with get_config()")
    spec = importlib.util.spec_from_file_location("vae_jax_config", path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except SyntaxError as error:
        raise UserError(f"config={path}: line {error.lineno}: {error.msg}") from None
    if not hasattr(module, function):
        raise UserError(f"config={path}: no function {function}() in it")
    try:
        return getattr(module, function)()
    except (AttributeError, KeyError, TypeError, ValueError) as error:  # a misspelt field, another type
        raise UserError(f"config={path}: {str(error).splitlines()[0]}") from None


def differences(old, new, free=()):
    """['optim.lr: 0.001 -> 0.003', ...] over two configs' flat fields, ``free`` prefixes left out."""
    a, b = (flatten(to_json(c)) for c in (old, new))
    fields = [f for f in sorted(a.keys() | b.keys()) if a.get(f) != b.get(f)]
    return [f"{f}: {a.get(f)} -> {b.get(f)}" for f in fields if not f.startswith(tuple(free))]
