"""The cells of a sweep: each is one config, compiled as train.py compiles it.

All cells are timed in turns, so that what drifts meets all of them alike.
"""

import contextlib
import dataclasses
import itertools
import math
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache
from ml_collections import ConfigDict

from vae_jax import cli, distributions, models
from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.data import Dataset
from vae_jax.train import flops as count
from vae_jax.train import program as program_lib
from vae_jax.train import run, step

BACKEND = "/jax/core/compile/backend_compile_duration"
HIT = "/jax/compilation_cache/cache_hits"
AGREE = 1e-4  # the largest relative difference from a peer's loss and gradients
WARM_UP = 0.1  # seconds of a window in which a peer's forms are compared
WARM_UP_ROUNDS = 3

Pairs = Sequence[tuple[str, str]]  # [(field, text)]


class Lane(NamedTuple):
    """A step to be timed: ``call()`` starts ``steps`` steps, ``wait()`` returns when they end."""

    call: Callable[[], None]
    wait: Callable[[], None]
    steps: int = 1


@dataclasses.dataclass
class Cell:
    """One config of a sweep; ``row`` is what goes into the JSON lines."""

    c: ConfigDict
    row: dict[str, Any]  # key, fields, error, and the figures
    lanes: dict[str, Lane] = dataclasses.field(default_factory=dict)  # 'ours' and the peer's
    calls: dict[str, int] = dataclasses.field(default_factory=dict)  # lane -> calls in a window


# --- the sweep -----------------------------------------------------------------------------------


def parse_sweep(text: str) -> list[Pairs]:
    """'batch=20,128;objective.samples=1,5' → every combination, each [(field, value), ...].

    '' is one combination of no fields. A comma within brackets separates no values.

    Raises:
      UserError: a part is no FIELD=VALUE,VALUE, or a field is there twice.
    """
    axes = {}
    for part in text.split(";"):
        part = part.strip()
        if not part:
            continue
        field, equals, listed = part.partition("=")
        field = field.strip()
        values = [value.strip() for value in re.split(r",(?![^(\[]*[)\]])", listed)]
        if not equals or not all(values):
            raise UserError(f"sweep={part}: want FIELD=VALUE,VALUE,...")
        if field in axes:
            raise UserError(f"sweep={part}: {field} is there twice; want one list of its values")
        axes[field] = [(field, value) for value in values]
    if text and not axes:
        raise UserError(f"sweep={text}: no field in it; want FIELD=VALUE,VALUE;FIELD=...")
    return list(itertools.product(*axes.values()))


def cells(
    load: Callable[[], ConfigDict], pairs: Pairs, sweep: list[Pairs], data_dir: str = ""
) -> list[Cell]:
    """A :class:`Cell` for each combination of the sweep.

    Args:
      load: returns a fresh config.
      pairs: overrides; a field of the sweep replaces its override.
      sweep: :func:`parse_sweep`'s.
      data_dir: replaces the config's ``data.dir``, unless ''.
    Raises:
      UserError: a field is unknown, a value is of another type, or a cell is there twice. A value
        that no config may hold is the ``error`` of its cell.
    """
    all_cells = []
    keys = set()
    for fields in sweep:
        c = cli.apply(load(), [*pairs, *fields])
        if data_dir:
            c.data.dir = data_dir
        _shorten(c)
        key = ",".join(f"{field}={''.join(value.split())}" for field, value in fields) or "all"
        if key in keys:
            raise UserError(f"sweep: {key} is there twice; want each value once")
        keys.add(key)
        error = ""
        try:
            config_lib.validate(c)
        except UserError as reason:
            error = line(reason)
        all_cells.append(Cell(c, {"key": key, "fields": dict(fields), "error": error}))
    return all_cells


def _shorten(c: ConfigDict) -> None:
    """Make steps, log_every and eval.every fit any batch and steps_per_call.

    A benchmark logs, validates and saves nothing, and the length of a run enters the learning rate
    alone.
    """
    s = c.steps_per_call
    longest = 2**31 // max(1, c.batch)
    c.steps = max(s, min(c.steps, longest) // max(1, s) * s)
    c.log_every = s
    c.eval.every = s


# --- compiling -----------------------------------------------------------------------------------


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
    """An empty compilation cache that keeps every program, for the time of a benchmark."""
    folder = tempfile.TemporaryDirectory(prefix="vae_jax_benchmark_", ignore_cleanup_errors=True)
    options = {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
        "jax_compilation_cache_dir": folder.name,
    }
    old = {name: getattr(jax.config, name) for name in options}
    try:
        for name, value in options.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        yield
    finally:
        for name, value in old.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()
        folder.cleanup()


class Compiled(NamedTuple):
    """A training program and how it came to be."""

    program: Any
    lower_s: float
    compile_s: float
    cached: bool  # whether it came from the compilation cache


def _compile(c: ConfigDict, s: Any, state: Any, places: Any) -> Compiled:
    """Compile the training program, with the times of the step alone.

    JAX reports a hit before it reports how long the same program took. The step is compiled last:
    before it come small programs that cells share (the root of training's randomness).
    """
    events = []

    def on_duration(event: str, duration: float, **_: Any) -> None:
        if event == BACKEND:
            events.append(duration)

    def on_event(event: str, **_: Any) -> None:
        if event == HIT:
            events.append(event)

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    try:
        program = program_lib.training(c, s.model, s.mesh, s.dataset, state, places)
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)
    seconds = events[-1]
    return Compiled(program, program.seconds - seconds, seconds, events[-2:-1] == [HIT])


def images(c: ConfigDict) -> int:
    """Images in one step: for each replica a batch, and the labelled examples beside it."""
    return (c.batch + c.data.labelled_batch) * max(1, config_lib.replica_count(c))


def analysis(c: ConfigDict, program: Any, state: Any, devices: int, traced: Any) -> dict[str, Any]:
    """XLA's figures of a compiled program, for one image of the batch over all devices.

    ``cost_analysis`` is of one device, and it counts the body of a loop once: S steps that are
    unrolled are S times the work, S steps in a scan are one. What loops inside a step leave out
    (microbatches, levels of a hierarchy) is put back by :func:`count.repeats` of ``traced``, the
    jaxpr of :func:`count.traced`: an estimate.

    Returns:
      FLOPs and bytes accessed of an image (None where XLA has none), and bytes on one device:
      temporaries, the peak of a call with the training set, the state, and what is donated.
    """
    cost = program.run.cost_analysis() or {}
    memory = program.run.memory_analysis()
    counted = images(c) * (c.steps_per_call if c.unroll else 1)
    repeats = dict(zip(("flops", "bytes accessed"), count.repeats(traced), strict=True))

    def per_image(name: str) -> float | None:
        if name not in cost:
            return None
        return cost[name] * repeats[name] * devices / counted

    arguments = memory.argument_size_in_bytes + memory.output_size_in_bytes
    arguments -= memory.alias_size_in_bytes
    return {
        "xla_flops_per_image": per_image("flops"),
        "bytes_per_image": per_image("bytes accessed"),
        "temp_bytes": memory.temp_size_in_bytes,
        # On CPU peak_memory_in_bytes lacks the temporaries.
        "peak_bytes": arguments + memory.temp_size_in_bytes,
        "state_bytes": sum(a.nbytes for a in jax.tree.leaves(state)),
        "alias_bytes": memory.alias_size_in_bytes,
    }


class _Ours:
    """The compiled program as a lane: each call goes on from the state of the one before."""

    def __init__(self, program: Any, state: Any):
        self.program = program
        self.state = state
        self.metrics = None

    def call(self) -> None:
        self.state, self.metrics = self.program.run(
            self.state, self.program.source, self.program.key
        )

    def wait(self) -> None:
        jax.block_until_ready((self.state, self.metrics))


def build(cell: Cell, peer: ModuleType | None = None) -> None:
    """Compile a cell twice, run it once, and build the peer; fills ``cell.row`` and ``.lanes``."""
    c = cell.c
    s = run.setup(c)
    state, places = program_lib.init(c, s.model, s.mesh, s.dataset)
    cold = _compile(c, s, state, places)
    program = cold.program
    if program.source is None:
        raise UserError(
            f"data.on_device_mb={c.data.on_device_mb}: the training set is larger; "
            "want it on the device"
        )
    warm = _compile(c, s, state, places)
    traced = count.traced(c, s.model, s.mesh, s.dataset)
    cell.row |= {
        "batch": c.batch,
        "images": images(c),
        "dtype": c.dtype,
        "devices": s.mesh.size,
        "program": config_lib.program_name(c, s.mesh.shape["fsdp"]),
        "lower_s": cold.lower_s,
        "cold_s": None if cold.cached else cold.compile_s,  # cached: another cell's program
        "warm_s": warm.compile_s if warm.cached else None,
        "hand_flops_per_image": count.flops(traced) / (c.batch + c.data.labelled_batch),
        **analysis(c, program, state, s.mesh.size, traced),
    }
    # Copied before the first call, which donates the state.
    params = jax.tree.map(np.asarray, state.params) if peer else None
    ours = _Ours(program, state)
    began = time.perf_counter()
    ours.call()
    ours.wait()
    cell.row["first_s"] = time.perf_counter() - began
    cell.lanes["ours"] = Lane(ours.call, ours.wait, c.steps_per_call)
    if peer:
        other = peer.Peer(c, s.dataset, params)
        cell.row |= agreement(c, s.dataset, params, other)
        add_fastest(cell, other.forms())


def add_fastest(cell: Cell, forms: dict[str, Callable[[], tuple]]) -> None:
    """Build every form of a peer's step, compare them in turns, and add the fastest as a lane.

    ``cell.row`` gets ``peer_form``, the fastest one's name, ``peer_warmup_s``, {form: seconds a
    step}, and ``peer_errors``, {form: why it could not be built}.
    """
    lanes = {}
    errors = {}
    for name, make in forms.items():
        try:
            lanes[name] = Lane(*make())
        except Exception as error:  # its compiler may fail in any way
            errors[name] = line(error)
    calls = {name: calls_for(lane, WARM_UP) for name, lane in lanes.items()}
    seconds = dict.fromkeys(lanes, math.inf)
    for _ in range(WARM_UP_ROUNDS):
        for name, lane in lanes.items():
            seconds[name] = min(seconds[name], window(lane, calls[name]))
    cell.row["peer_errors"] = errors
    cell.row["peer_warmup_s"] = seconds
    cell.row["peer_form"] = min(seconds, key=seconds.get, default=None)
    if lanes:
        cell.lanes[cell.row["peer_form"]] = lanes[cell.row["peer_form"]]


# --- the same function ---------------------------------------------------------------------------


def _batch(m: Any, dataset: Dataset, index: np.ndarray) -> dict[str, Any]:
    """The batch of some training examples, grey levels in [0, 1] or thresholded at 1/2."""
    x = dataset.train.image[index].astype(np.float32) / (dataset.levels - 1)
    if m.likelihood.data == "binary":
        x = (x > 0.5).astype(np.float32)
    label = np.zeros(len(x), np.int32)
    if dataset.train.label is not None:
        label = dataset.train.label[index]
    return {"image": x, "label": label, "id": index, "n": len(dataset.train.image), "step": 0}


def _noise(m: Any, keys_B: jax.Array, samples: int) -> np.ndarray:
    """The standard normals [K, B, D] that the model draws with these keys, level by level."""
    keys_KxB = distributions.split_keys(keys_B, samples)
    if m.levels == 1:
        return np.asarray(distributions.standard_normal(keys_KxB, m.latent))
    sizes = []
    for levels, size in m.spec.groups:
        sizes += [size] * levels
    draws = []
    for level_keys, size in zip(distributions.split_keys(keys_KxB, m.levels), sizes, strict=True):
        draws.append(distributions.standard_normal(level_keys, size))
    return np.concatenate(draws, axis=-1)


def agreement(c: ConfigDict, dataset: Dataset, params: dict, peer: Any) -> dict[str, float]:
    """The relative differences of a peer's loss and gradients from ours, for the same noise.

    On one batch of at most 16 examples, in float32 with exact products, whatever the cell's dtype.

    Raises:
      UserError: one of them is larger than :data:`AGREE`: the peer is another function.
    """
    c = c.copy_and_resolve_references()
    c.dtype = "float32"
    m = models.build_for(c, dataset)
    objective = config_lib.resolve("objective", c.objective.name)
    options = {k: v for k, v in c.objective.items() if k != "name"}
    samples = c.objective.get("samples", 1)
    key = jax.random.key(1)
    batch = _batch(m, dataset, np.arange(min(c.batch, 16)))
    n = len(batch["image"])
    keys_B = distributions.example_keys(key, batch["id"])
    labelled = None
    if c.data.labelled_batch:
        batch["labelled"] = _batch(m, dataset, np.flatnonzero(dataset.train.label >= 0)[:n])
        labelled_keys = distributions.example_keys(
            jax.random.fold_in(key, 1), batch["labelled"]["id"]
        )
        batch["labelled"]["keys"] = labelled_keys
        labelled = [batch["labelled"]["image"], batch["labelled"]["label"]]
        labelled.append(_noise(m, labelled_keys, samples))

    def loss(params: dict) -> jax.Array:
        terms = objective(m, params, batch, keys_B, **options)
        total = step.masked_mean(terms.loss, np.ones(len(terms.loss), bool))
        if terms.labelled:
            ones = np.ones(len(terms.labelled.loss), bool)
            total = total + step.masked_mean(terms.labelled.loss, ones)
        return total

    with jax.default_matmul_precision("highest"):
        value, gradients = program_lib.simple(jax.value_and_grad(loss))(params)
    noise = _noise(m, keys_B, samples)
    measured = peer.loss_and_gradients(batch["image"], batch["label"], noise, labelled)
    ours = (float(value), peer.layout(jax.tree.map(np.asarray, gradients)))
    return _gaps(ours, measured)


def _gaps(ours: tuple, peers: tuple) -> dict[str, float]:
    """The relative differences of two (loss, gradients): |a - b| / |a|, for gradients by norms."""
    loss_gap = abs(peers[0] - ours[0]) / abs(ours[0])
    gaps = []
    for a, b in zip(ours[1], peers[1], strict=True):
        gaps.append(float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-30)))
    if not max(loss_gap, *gaps) <= AGREE:
        raise UserError(
            f"the peer is another function: loss {loss_gap:.1e} apart, "
            f"gradients {max(gaps):.1e}; want {AGREE}"
        )
    return {"peer_loss_gap": loss_gap, "peer_gradient_gap": max(gaps)}


def line(error: Exception) -> str:
    """An exception in one line of 200 characters at most."""
    text = " ".join(str(error).split())
    if not isinstance(error, UserError):
        text = f"{type(error).__name__}: {text}"
    return text[:200]


# --- timing --------------------------------------------------------------------------------------


def window(lane: Lane, calls: int) -> float:
    """Seconds per step of ``calls`` calls, blocked once at their end, after one uncounted call."""
    lane.call()
    lane.wait()
    began = time.perf_counter()
    for _ in range(calls):
        lane.call()
    lane.wait()
    return (time.perf_counter() - began) / (calls * lane.steps)


def calls_for(lane: Lane, seconds: float) -> int:
    """How many calls last ``seconds``, from windows that grow until one lasts a quarter of it."""
    calls = 1
    while True:
        duration = window(lane, calls) * calls * lane.steps
        if duration >= seconds / 4:
            return max(1, math.ceil(calls * seconds / duration))
        calls *= 4


def build_all(
    all_cells: list[Cell],
    *,
    seconds: float,
    peer: ModuleType | None = None,
    log: Callable[[str], None] = print,
) -> None:
    """:func:`build` every cell, with windows of ``seconds``; a failure becomes its ``error``.

    Raises:
      UserError: every cell fails by bad input; the first one's.
    """
    errors = [UserError(cell.row["error"]) for cell in all_cells if cell.row["error"]]
    for i, cell in enumerate(all_cells):
        if cell.row["error"]:
            continue
        log(f"[{i + 1}/{len(all_cells)}] {cell.row['key']}: compiling")
        with _survives(cell, errors):
            build(cell, peer)
            cell.calls = {name: calls_for(lane, seconds) for name, lane in cell.lanes.items()}
            cell.row["windows"] = {name: [] for name in cell.lanes}
    if len(errors) == len(all_cells) and all(isinstance(e, UserError) for e in errors):
        raise errors[0]


def take_turns(all_cells: list[Cell], *, rounds: int, log: Callable[[str], None] = print) -> None:
    """Fill the rows: ``row['windows'][lane]`` is seconds per step, one number for each round.

    Every round gives each lane of each cell one window, in an order drawn anew, so that drifts of
    the clock, the temperature or the load meet all of them alike. A failure becomes the cell's
    ``error``, and the others go on.
    """
    rng = np.random.default_rng(0)
    for i in range(rounds):
        log(f"round {i + 1} of {rounds}")
        turns = []
        for cell in all_cells:
            turns += [(cell, name) for name in cell.lanes]
        for at in rng.permutation(len(turns)):
            cell, name = turns[at]
            if not cell.row["error"]:
                with _survives(cell, []):
                    seconds = window(cell.lanes[name], cell.calls[name])
                    cell.row["windows"][name].append(seconds)


@contextlib.contextmanager
def _survives(cell: Cell, errors: list[Exception]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # out of memory, too few devices: a row that says so
        errors.append(error)
        cell.row |= {"error": line(error), "traceback": traceback.format_exc()}
        cell.lanes.clear()  # its memory is for the others
