"""The cells of a sweep: each one config, compiled as train.py compiles it, and timed in turns with the others."""

import contextlib
import dataclasses
import itertools
import math
import re
import tempfile
import time
import traceback
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental.compilation_cache import compilation_cache

from vae_jax import cli as flags
from vae_jax import config as config_lib
from vae_jax import distributions as densities
from vae_jax.config import UserError
from vae_jax.models import model
from vae_jax.train import flops as count
from vae_jax.train import program as compile_lib
from vae_jax.train import run as workdir
from vae_jax.train import step

BACKEND = "/jax/core/compile/backend_compile_duration"
HIT = "/jax/compilation_cache/cache_hits"
AGREE = 1e-4  # the largest relative difference from a peer's loss and gradients


class Lane(NamedTuple):
    """Something to be timed: ``call()`` starts ``steps`` steps, ``wait()`` returns when they are done."""

    call: Callable
    wait: Callable
    steps: int = 1


@dataclasses.dataclass
class Cell:
    """One config of a sweep and what is known of it; ``row`` is what goes into the JSON lines."""

    c: Any
    row: dict  # key, fields, error, and the figures
    lanes: dict = dataclasses.field(default_factory=dict)  # 'ours' and the peers'
    calls: dict = dataclasses.field(default_factory=dict)  # lane -> calls in a window


# --- the sweep -----------------------------------------------------------------------------------


def parse_sweep(text):
    """'batch=20,128;objective.samples=1,5' -> every combination, each [(field, value), ...]; '' is one cell."""
    axes = []
    for part in filter(None, (p.strip() for p in text.split(";"))):
        field, equals, values = part.partition("=")
        values = [v.strip() for v in re.split(r",(?![^(\[]*[)\]])", values)]  # not at the commas of a tuple
        if not equals or not all(values):
            raise UserError(f"sweep={part}: want FIELD=VALUE,VALUE,...")
        if field in [f for f, _ in axes]:
            raise UserError(f"sweep={part}: {field} is there twice; want one list of its values")
        axes.append((field.strip(), values))
    if text and not axes:
        raise UserError(f"sweep={text}: no field in it; want FIELD=VALUE,VALUE;FIELD=...")
    return list(itertools.product(*([(field, v) for v in values] for field, values in axes)))


def cells(load, pairs, sweep, data_dir=""):
    """A :class:`Cell` for each combination of the sweep.

    Args:
      load: () → a fresh config.
      pairs: overrides, [(field, text)]; a field of the sweep stands over them.
      sweep: :func:`parse_sweep`'s.
    Raises:
      UserError: a field is unknown, or a value is of another type: before anything is run. A value, or values together,
        that no config may hold are the cell's ``error``.
    """
    made = []
    for fields in sweep:
        c = flags.apply(load(), [*pairs, *fields])
        if data_dir:
            c.data.dir = data_dir
        # Nothing is logged, validated or saved here, and the length of a run enters the learning rate alone.
        s = c.steps_per_call
        c.steps = max(s, min(c.steps, 2**31 // max(1, c.batch)) // max(1, s) * s)
        c.log_every = c.eval.every = s
        key = ",".join(f"{f}={''.join(v.split())}" for f, v in fields) or "all"
        made.append(Cell(c, {"key": key, "fields": dict(fields), "error": ""}))
        try:
            config_lib.validate(c)
        except UserError as error:
            made[-1].row["error"] = line(error)
    keys = [cell.row["key"] for cell in made]
    twice = next((k for k in keys if keys.count(k) > 1), None)
    if twice:
        raise UserError(f"sweep: {twice} is there twice; want each value once")
    return made


# --- compiling -----------------------------------------------------------------------------------


@contextlib.contextmanager
def fresh_cache():
    """An empty compilation cache that keeps every program, for the time of a benchmark."""
    wanted = {
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    with tempfile.TemporaryDirectory(prefix="vae_jax_benchmark_", ignore_cleanup_errors=True) as folder:
        wanted["jax_compilation_cache_dir"] = folder
        old = {name: getattr(jax.config, name) for name in wanted}
        try:
            for name, value in wanted.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()
            yield
        finally:
            for name, value in old.items():
                jax.config.update(name, value)
            compilation_cache.reset_cache()


def _compile(c, s, state, places):
    """(the program, seconds to lower it, seconds to compile it, whether it came from the cache): of the step alone.

    JAX tells of a hit before it tells how long the same program took, and the step is the last that is compiled here:
    before it come small ones that cells share (the root of training's randomness).
    """
    told = []

    def on_duration(event, duration, **_):
        if event == BACKEND:
            told.append(duration)

    def on_event(event, **_):
        if event == HIT:
            told.append(event)

    jax.monitoring.register_event_duration_secs_listener(on_duration)
    jax.monitoring.register_event_listener(on_event)
    try:
        program = compile_lib.training(c, s.model, s.mesh, s.dataset, state, places)
    finally:
        jax.monitoring.unregister_event_duration_listener(on_duration)
        jax.monitoring.unregister_event_listener(on_event)
    compiling = told[-1]
    return program, program.seconds - compiling, compiling, told[-2:-1] == [HIT]


def images(c):
    """Images in one step: for each replica a batch, and the labelled examples beside it."""
    return (c.batch + c.data.labelled_batch) * max(1, config_lib.replica_count(c))


def analysis(c, program, state, devices, traced):
    """XLA's figures of a compiled program, for one image of the batch over all devices.

    ``cost_analysis`` is of one device, and it counts the body of a loop once: S steps that are written
    out are S times the work, S steps in a scan are one. What loops inside a step leave out (microbatches, levels of a
    hierarchy) is put back by :func:`count.repeats` of ``traced``, :func:`count.traced`'s: an estimate.
    """
    cost, memory = program.run.cost_analysis() or {}, program.run.memory_analysis()
    counted = images(c) * (c.steps_per_call if c.unroll else 1)
    flops, accessed = count.repeats(traced)
    held = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes
    per_image = lambda total, times: None if total is None else total * times * devices / counted  # noqa: E731
    return {
        "xla_flops_per_image": per_image(cost.get("flops"), flops),
        "bytes_per_image": per_image(cost.get("bytes accessed"), accessed),
        "temp_bytes": memory.temp_size_in_bytes,
        # Of a device, with the training set, while a call lasts. (On CPU peak_memory_in_bytes lacks the temporaries.)
        "peak_bytes": held + memory.temp_size_in_bytes,
        "state_bytes": sum(a.nbytes for a in jax.tree.leaves(state)),
        "alias_bytes": memory.alias_size_in_bytes,
    }


class _Ours:
    """The compiled program as a lane: each call goes on from the state of the one before."""

    def __init__(self, program, state):
        self.program, self.state, self.metrics = program, state, None

    def call(self):
        self.state, self.metrics = self.program.run(self.state, self.program.source, self.program.key)

    def wait(self):
        jax.block_until_ready((self.state, self.metrics))


def build(cell, peer=None):
    """Compile a cell twice, run it once, and let a peer build its own; fills ``cell.row`` and ``cell.lanes``."""
    c, row = cell.c, cell.row
    s = workdir.setup(c)
    state, places = compile_lib.init(c, s.model, s.mesh, s.dataset)
    program, lower, cold, hit = _compile(c, s, state, places)
    if program.source is None:
        raise UserError(f"data.on_device_mb={c.data.on_device_mb}: the training set is larger; want it on the device")
    _, _, warm, warm_hit = _compile(c, s, state, places)
    alone = c.batch + c.data.labelled_batch  # of one replica
    traced = count.traced(c, s.model, s.mesh, s.dataset)
    row |= {
        "batch": c.batch,
        "images": images(c),
        "dtype": c.dtype,
        "devices": s.mesh.size,
        "lower_s": lower,
        "cold_s": None if hit else cold,  # a hit: the same program as another cell's
        "warm_s": warm if warm_hit else None,
        "hand_flops_per_image": count.flops(traced) / alone,
        **analysis(c, program, state, s.mesh.size, traced),
    }
    params = jax.tree.map(np.asarray, state.params) if peer else None  # before the state is donated
    ours = _Ours(program, state)
    began = time.perf_counter()
    ours.call()
    ours.wait()
    row["first_s"] = time.perf_counter() - began
    cell.lanes["ours"] = Lane(ours.call, ours.wait, c.steps_per_call)
    if peer:
        other = peer.Peer(c, s.dataset, params)
        row |= agreement(c, s.dataset, params, other)
        row["peer_errors"] = {}
        for name, make in other.lanes().items():
            try:
                cell.lanes[name] = Lane(*make())
            except Exception as error:  # its compiler may fail in any way; that is a finding
                row["peer_errors"][name] = line(error)


def agreement(c, dataset, params, peer):
    """The relative differences of a peer's loss and gradients from ours, on one batch with the same noise.

    In float32 without shortcuts, whatever the cell's dtype: that the two are the same function.

    Raises:
      UserError: one of them is larger than :data:`AGREE`.
    """
    c = c.copy_and_resolve_references()
    c.dtype = "float32"
    m = model.build_for(c, dataset)
    objective = config_lib.resolve("objective", c.objective.name)
    numbers = {k: v for k, v in c.objective.items() if k != "name"}
    rows, key = np.arange(min(c.batch, 16)), jax.random.key(1)

    def batch(index):
        x = dataset.train.image[index].astype(np.float32) / (dataset.levels - 1)
        if m.likelihood.data == "binary":
            x = (x > 0.5).astype(np.float32)
        label = np.zeros(len(x), np.int32) if dataset.train.label is None else dataset.train.label[index]
        return {"image": x, "label": label, "id": index, "n": len(dataset.train.image), "step": 0}

    def noise(keys_B):
        """The standard normals that ``many`` draws with these keys, KxBxD; each level of a hierarchy has its own."""
        keys_KxB = densities.split_keys(keys_B, c.objective.get("samples", 1))
        if m.levels == 1:
            return np.asarray(densities.standard_normal(keys_KxB, m.latent))
        sizes = [size for n, size in m.groups for _ in range(n)]
        level_keys = densities.split_keys(keys_KxB, m.levels)
        levels = [densities.standard_normal(keys, size) for keys, size in zip(level_keys, sizes, strict=True)]
        return np.concatenate(levels, axis=-1)

    given, labelled, keys = batch(rows), None, densities.example_keys(key, rows)
    if c.data.labelled_batch:
        given["labelled"] = batch(np.flatnonzero(dataset.train.label >= 0)[: len(rows)])
        given["labelled"]["keys"] = densities.example_keys(jax.random.fold_in(key, 1), given["labelled"]["id"])
        labelled = [given["labelled"][k] for k in ("image", "label")] + [noise(given["labelled"]["keys"])]

    def loss(params):
        terms = objective(m, params, given, keys, **numbers)
        return sum(step.masked_mean(t.loss, np.ones(len(t.loss), bool)) for t in (terms, terms.labelled) if t)

    with jax.default_matmul_precision("highest"):
        value, gradients = compile_lib.simple(jax.value_and_grad(loss))(params)
    other, others = peer.loss_and_gradients(given["image"], given["label"], noise(keys), labelled)
    gap = abs(other - float(value)) / abs(float(value))
    pairs = zip(peer.layout(jax.tree.map(np.asarray, gradients)), others, strict=True)
    gaps = [float(np.linalg.norm(a - b) / max(np.linalg.norm(a), 1e-30)) for a, b in pairs]
    if not max(gap, *gaps) <= AGREE:
        raise UserError(f"the peer is another function: loss {gap:.1e} apart, gradients {max(gaps):.1e}; want {AGREE}")
    return {"peer_loss_gap": gap, "peer_gradient_gap": max(gaps)}


def line(error):
    """An exception in one line of 200 characters at most."""
    text = " ".join(str(error).split())
    return (text if isinstance(error, UserError) else f"{type(error).__name__}: {text}")[:200]


# --- timing --------------------------------------------------------------------------------------


def window(lane, calls):
    """Seconds per step of ``calls`` calls, blocked once at their end; one call before them is not counted."""
    lane.call()
    lane.wait()
    began = time.perf_counter()
    for _ in range(calls):
        lane.call()
    lane.wait()
    return (time.perf_counter() - began) / (calls * lane.steps)


def calls_for(lane, seconds):
    """How many calls last ``seconds``, from windows that grow until one lasts a quarter of it."""
    calls = 1
    while True:
        took = window(lane, calls) * calls * lane.steps
        if took >= seconds / 4:
            return max(1, math.ceil(calls * seconds / took))
        calls *= 4


def build_all(made, *, seconds, peer=None, say=print):
    """:func:`build` every cell, with windows of ``seconds``; what fails becomes the cell's ``error``.

    Raises:
      UserError: every cell fails by bad input; the first one's.
    """
    failed = [UserError(cell.row["error"]) for cell in made if cell.row["error"]]
    for i, cell in enumerate(made):
        if cell.row["error"]:
            continue
        say(f"[{i + 1}/{len(made)}] {cell.row['key']}: compiling")
        with _survives(cell, failed):
            build(cell, peer)
            cell.calls = {name: calls_for(lane, seconds) for name, lane in cell.lanes.items()}
            cell.row["windows"] = {name: [] for name in cell.lanes}
    if len(failed) == len(made) and all(isinstance(error, UserError) for error in failed):
        raise failed[0]


def take_turns(made, *, rounds, say=print):
    """Fill the rows: ``row['windows'][lane]`` is seconds per step, one number for each round.

    Every round gives each lane of each cell one window, in an order drawn anew, so that what drifts
    (clock, temperature, neighbours) meets all of them alike. What fails becomes the cell's ``error``, and the
    others go on.
    """
    rng = np.random.default_rng(0)
    for i in range(rounds):
        say(f"round {i + 1} of {rounds}")
        turns = [(cell, name) for cell in made for name in cell.lanes]
        for at in rng.permutation(len(turns)):
            cell, name = turns[at]
            if not cell.row["error"]:
                with _survives(cell, []):
                    cell.row["windows"][name].append(window(cell.lanes[name], cell.calls[name]))


@contextlib.contextmanager
def _survives(cell, failed):
    try:
        yield
    except Exception as error:  # out of memory, no compiler for it, too few devices: a row that says so
        failed.append(error)
        cell.row |= {"error": line(error), "traceback": traceback.format_exc()}
        cell.lanes.clear()  # its memory is for the others
