"""The functions that a training program is composed of, each alone, on an update of one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.parity import small
from vae_jax import config, data, models
from vae_jax.config import UserError
from vae_jax.mesh import rules
from vae_jax.objectives import Terms
from vae_jax.train import program, step

KEY = jax.random.key(0)
SOURCE = {
    "image": jnp.arange(40, dtype=jnp.uint8).reshape(10, 2, 2, 1),
    "label": jnp.arange(10) % 3,
}


def state_at(number):
    return step.TrainState(number, (), (), ())


def next_state(state):
    return state._replace(step=state.step + 1)


def replicas(*rates):
    c = small()
    config.replicate(c, "optim.lr", rates)
    return c


def mesh_of(devices, **sizes):
    return rules.make_mesh(small(**sizes).mesh, jax.devices()[:devices])


def count_up(c, state, batch, key, source=None):
    """An update that adds 1 to the step; its metrics: the step and the sum of the batch's ids."""
    if source is not None:
        batch = program.examples(source, batch, program.rows)
    return next_state(state), jnp.stack([state.step, batch["id"].sum()])


@pytest.mark.parametrize("unroll", [True, False])
def test_steps_are_a_loop_over_the_batches(unroll):
    def multiply(c, state, batch, key):
        return state * batch["x"], jnp.stack([state, batch["x"]])

    batches = {"x": jnp.array([2.0, 3.0, 5.0, 7.0])}
    steps = program.Steps(small(steps_per_call=4, unroll=unroll), multiply, on_device=False)
    state, metrics_SxM = jax.jit(steps.run_steps)(jnp.float32(1), batches, KEY)
    assert float(state) == 210
    np.testing.assert_array_equal(metrics_SxM, [[1, 2], [2, 3], [6, 5], [30, 7]])


def test_over_replicas_gives_each_its_own_fields():
    def scaled(c, x):
        return c.optim.lr * x

    x = jnp.array([1.0, 10.0])
    np.testing.assert_allclose(program.over_replicas(replicas(2.0, 3.0), scaled)(x), [2, 30])
    c = small(optim__lr=2.0)
    np.testing.assert_allclose(program.over_replicas(c, scaled)(x), [2, 20])


def test_roots_differ_between_seeds_and_purposes():
    c = small()
    config.replicate(c, "seed", (3, 4))
    roots = program.root(c, "train")
    for key, seed in zip(roots, (3, 4), strict=True):
        assert (key == step.stream(seed, "train")).all()
        assert (key != step.stream(seed, "init")).all()
    assert (roots[0] != roots[1]).all()


def test_examples_are_the_batch_and_its_labelled_part_from_the_source():
    ids = {"ids": jnp.array([7, 2]), "labelled": jnp.array([4])}
    batch = program.examples(SOURCE, ids, program.rows)
    np.testing.assert_array_equal(batch["id"], [7, 2])
    np.testing.assert_array_equal(batch["label"], [1, 2])
    np.testing.assert_array_equal(batch["image"], np.asarray(SOURCE["image"])[[7, 2]])
    np.testing.assert_array_equal(batch["labelled"]["id"], [4])


def test_indices_are_those_of_the_host_and_the_labelled_have_labels():
    c = small(data__labels=100, data__labelled_batch=16, steps_per_call=4)
    dataset = data.load(c.data)
    source = program.resident(c, dataset, mesh_of(1))
    ids = program.indices(c, jnp.int32(5), source)
    n = len(dataset.train.image)
    for s in range(4):
        want = data.batch_indices(5 + s, n=n, batch=c.batch, seed=c.seed)
        np.testing.assert_array_equal(ids["ids"][s], want)
    assert ids["labelled"].shape == (4, 16)
    assert (dataset.train.label[ids["labelled"]] >= 0).all()


def test_rows_of_all_shards_are_the_rows_of_the_batch():
    ids = jnp.array([9, 1, 4, 0, 7, 7, 2, 5])

    def shard(_):
        return program.shard_rows(4)(SOURCE, ids)

    shards = jax.vmap(shard, axis_name="data")(jnp.arange(4))
    whole = program.rows(SOURCE, ids)
    place = rules.over_batch(mesh_of(4))
    laid = jax.jit(program.split_rows(place))(SOURCE, ids)
    for name, values in whole.items():
        np.testing.assert_array_equal(shards[name].reshape(values.shape), values)
        np.testing.assert_array_equal(laid[name], values)
        assert laid[name].sharding.is_equivalent_to(place, values.ndim)


@pytest.mark.parametrize("unroll", [True, False])
def test_batches_of_the_device_and_of_the_host_make_the_same_updates(unroll):
    c = small(steps_per_call=4, batch=4, unroll=unroll)
    first = state_at(jnp.int32(0))
    state, metrics = program.Steps(c, count_up, on_device=True).run_steps(first, SOURCE, KEY)
    ids = program.indices(c, first.step, SOURCE)["ids"]
    batches = jax.vmap(program.rows, (None, 0))(SOURCE, ids)
    host = program.Steps(c, count_up, on_device=False)
    host_state, host_metrics = host.run_steps(first, batches, KEY)
    assert int(state.step) == int(host_state.step) == 4
    np.testing.assert_array_equal(metrics, host_metrics)
    np.testing.assert_array_equal(metrics[:, 1], np.asarray(ids).sum(1))


def test_replicas_make_each_the_updates_of_a_run_alone():
    """Metrics are S x R x M."""
    rates = (2.0, 3.0)
    c = replicas(*rates)
    c.steps_per_call = 2
    c.batch = 4

    def update(c, state, batch, key, source):
        total = c.optim.lr * program.examples(source, batch, program.rows)["id"].sum()
        return next_state(state), jnp.stack([state.step.astype(float), total])

    steps = program.Steps(c, update, on_device=True)
    first = state_at(jnp.zeros(2, jnp.int32))
    _, metrics_SxRxM = steps.run_steps(first, SOURCE, jnp.stack([KEY, KEY]))
    assert metrics_SxRxM.shape == (2, 2, 2)
    for r, rate in enumerate(rates):
        alone = config.replica(c, r)
        assert alone.optim.lr == rate
        steps = program.Steps(alone, update, on_device=True)
        _, want = steps.run_steps(state_at(jnp.int32(0)), SOURCE, KEY)
        np.testing.assert_allclose(metrics_SxRxM[:, r], want)


def test_an_update_writes_the_names_of_its_metrics():
    c = small()
    dataset = data.load(c.data)
    mesh = mesh_of(1)
    model = models.build_for(c, dataset)
    names = ["old"]
    one = program.OneUpdate(model, dataset, mesh, program.Mode(program.rows, {}), names)
    state, _ = program.shapes(c, model, mesh)
    _, metrics_M = jax.eval_shape(
        functools.partial(one.update, c), state, step.raw_batch(dataset.shape, 4), KEY
    )
    assert {"loss", "elbo", "accuracy", "grad_norm"} <= set(names)
    assert metrics_M.shape == (len(names),)


def test_gradients_shard_by_shard_are_the_mean_over_the_batch():
    """Parameters split over fsdp are gathered, and their gradients come back split, in float32."""
    mesh = mesh_of(8, mesh__data=2, mesh__fsdp=4)
    params = {"w": jnp.arange(24.0).reshape(8, 3) / 24, "b": jnp.zeros(3)}
    places = rules.shardings({"params": params}, mesh)
    state = step.TrainState(None, places["params"], None, None)
    x = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    batch = {"x": jnp.asarray(x), "id": jnp.arange(16)}

    def terms(params, batch, key, at):
        return Terms(loss=jnp.sum((batch["x"] @ params["w"] + params["b"]) ** 2, axis=-1))

    def compute(params, batch, key, at):
        update = step.Update(terms, optax.sgd(0.1), axis=rules.BATCH)
        return step.gradients(update)(params, batch, key, at)

    sharded = jax.jit(program.over_shards(mesh, state)(compute))
    with jax.default_matmul_precision("highest"):
        gradients, metrics = sharded(params, batch, KEY, jnp.int32(0))
        want = jax.grad(lambda p: terms(p, batch, KEY, 0).loss.mean())(params)
    for name in params:
        np.testing.assert_allclose(gradients[name], want[name], rtol=1e-5, atol=1e-6)
        assert gradients[name].sharding.is_equivalent_to(places["params"][name], params[name].ndim)
    np.testing.assert_allclose(metrics["loss"], terms(params, batch, KEY, 0).loss.mean(), rtol=1e-5)


def test_jitted_splits_its_arguments_and_donates_the_state():
    mesh = mesh_of(4)
    places = (rules.replicated(mesh), rules.over_batch(mesh, leading=1), rules.replicated(mesh))

    def run_steps(state, x_SxB, key):
        return state + x_SxB.sum(), x_SxB.mean(1)

    run = program.jitted(run_steps, mesh, places)
    state = jax.device_put(jnp.float32(1), places[0])
    x_SxB = jax.device_put(jnp.arange(16.0).reshape(2, 8), places[1])
    result, means = run(state, x_SxB, jax.device_put(KEY, places[2]))
    assert float(result) == 121 and state.is_deleted()
    np.testing.assert_allclose(means, [3.5, 11.5])


def test_pmapped_runs_on_each_device_with_its_number_and_donates_the_state():
    mesh = mesh_of(4)
    source = {"x": jnp.arange(8.0)} | program.shard_numbers(mesh)

    def run_steps(state, source, key):
        own = jax.lax.dynamic_slice_in_dim(source["x"], 2 * source["shard"], 2)
        return state + jax.lax.psum(own.sum(), "data"), jax.lax.all_gather(own, "data")

    state = jnp.float32(1)
    result, parts = program.pmapped(run_steps, mesh, source)(state, source, KEY)
    assert float(result) == 29 and state.is_deleted()
    np.testing.assert_array_equal(parts, np.arange(8.0).reshape(4, 2))


MODES = {
    "jit": ({}, None),
    "shard_map": ({"compile": "shard_map"}, rules.BATCH),
    "bfloat16": ({"dtype": "bfloat16"}, rules.BATCH),
    "fsdp": ({"mesh__fsdp": 2}, rules.BATCH),
    "pmap": ({"compile": "pmap"}, "data"),
}


@pytest.mark.parametrize("name", MODES)
def test_the_mode_says_where_gradients_meet(name):
    fields, axis = MODES[name]
    c = small(**fields)
    mesh = rules.make_mesh(c.mesh, jax.devices()[:4])
    places = step.TrainState(None, {"w": rules.replicated(mesh)}, None, None)
    mode = program.mode_of(c, mesh, places)
    assert mode.shards.get("axis") == axis
    assert ("over_shards" in mode.shards) == (axis == rules.BATCH)


def test_replicas_share_devices_whole():
    mode = program.mode_of(replicas(1.0, 2.0), mesh_of(2), None)
    assert mode == program.Mode(program.rows, {})


@pytest.mark.parametrize(
    ("c", "line"),
    [
        (replicas(1.0, 2.0), r"data\.on_device_mb=1024.*: replicas need the training set"),
        (small(compile="pmap"), r"data\.on_device_mb=1024.*: compile=pmap needs the training set"),
    ],
)
def test_replicas_and_pmap_want_the_data_on_the_device(c, line):
    program.check_source(c, SOURCE)
    program.check_source(small(), None)
    with pytest.raises(UserError, match=line):
        program.check_source(c, None)
