"""The step: one update on any number of devices; nothing recompiles, the host moves nothing."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.parity import build, host_calls, largest_difference, small, trace
from tests.tiny import TRACE_TOLERANCE
from vae_jax import config, data, models
from vae_jax.objectives import Terms
from vae_jax.train import step

P = jax.sharding.PartitionSpec


@pytest.fixture(scope="module")
def one_device():
    return trace(small(), jax.devices()[:1], 20)


def test_one_and_eight_devices_have_the_same_trace(one_device):
    losses, state = trace(small(), jax.devices()[:8], 20)
    np.testing.assert_allclose(losses, one_device[0], rtol=TRACE_TOLERANCE)
    assert largest_difference(state.params, one_device[1].params) < 1e-4
    assert {len(p.sharding.device_set) for p in jax.tree.leaves(state.params)} == {8}


def test_a_tensor_parallel_mesh_has_the_same_trace(one_device):
    c = small(mesh__data=4, mesh__model=2)
    losses, state = trace(c, jax.devices()[:8], 20)
    np.testing.assert_allclose(losses, one_device[0], rtol=TRACE_TOLERANCE)
    kernel = state.params["encoder"]["Layer_0"]["dense"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (kernel.shape[0], kernel.shape[1] // 2)


def test_several_steps_in_a_call_are_the_same_steps(one_device):
    for unroll in (True, False):
        losses, _ = trace(small(steps_per_call=5, unroll=unroll), jax.devices()[:1], 4)
        np.testing.assert_allclose(losses, one_device[0], rtol=TRACE_TOLERANCE)


def test_batches_from_the_host_are_the_batches_of_the_device(one_device):
    losses, _ = trace(small(data__on_device_mb=0), jax.devices()[:1], 20)
    np.testing.assert_allclose(losses, one_device[0], rtol=TRACE_TOLERANCE)


def test_nothing_recompiles_and_nothing_crosses_from_the_host():
    assert host_calls() == (0, 0)
    with pytest.raises(Exception, match="transfer"), jax.transfer_guard("disallow"):
        jnp.sin(np.ones(3))  # the guard does guard


def test_the_state_is_donated():
    state, run, _ = build(small(), jax.devices()[:1])
    leaf = state.params["encoder"]["Layer_0"]["dense"]["kernel"]
    run.run(state, run.source, run.key)
    assert leaf.is_deleted()


def test_the_program_has_no_float64_and_one_round_of_collectives():
    _, run, _ = build(small(), jax.devices()[:8])
    text = run.run.as_text()
    assert "f64[" not in text
    assert "all-reduce" in text and "all-to-all" not in text


def test_masked_mean_divides_sums_once():
    values = jnp.array([1.0, 2.0, jnp.nan, 4.0])
    mask = jnp.array([True, True, False, True])
    assert float(step.masked_mean(values, mask)) == pytest.approx(7 / 3)


def test_gradient_under_shard_map_is_not_multiplied_by_the_devices():
    """pmean inside the loss and on the gradients: the update of one device, not 8 times it.

    The loss has no noise: shards draw their own.
    """
    c = small(data__shift=0)
    dataset = data.load(c.data)
    m = models.build_for(c, dataset)
    params = jax.jit(m.init)(jax.random.key(0))
    tx = optax.sgd(0.1)

    def terms(params, batch, key, at):
        x = batch["image"].astype(jnp.float32) / 16
        return Terms(loss=-m.likelihood.log_prob(m.decode(params, m.encode(params, x).mu), x))

    update = step.Update(terms, tx)
    state = step.TrainState(jnp.int32(0), params, tx.init(params), ())
    index = np.arange(32)
    batch = {"image": dataset.train.image[index], "label": dataset.train.label[index], "id": index}
    key = jax.random.key(1)
    want, _ = jax.jit(functools.partial(step.train_step, update=update))(state, batch, key)
    sharded = jax.shard_map(
        functools.partial(step.train_step, update=dataclasses.replace(update, axis="data")),
        mesh=jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,)),
        in_specs=(P(), P("data"), P()),
        out_specs=P(),
    )
    state, _ = jax.jit(sharded)(state, batch, key)
    assert largest_difference(want.params, state.params) < 1e-5


def steps_on_a_quadratic(bad, spoilt, **options):
    """(The last state, ``skipped`` of each step); in a spoilt step the loss is NaN or too large."""
    target = jnp.arange(3.0)
    tx = optax.adam(0.1)

    def terms(params, batch, key, at):
        scale = 1.0
        if batch["spoilt"]:
            scale = jnp.nan if bad == "loss" else 1e4
        return Terms(loss=scale * jnp.sum((params["w"] - target) ** 2) * jnp.ones(4))

    params = {"w": jnp.zeros(3)}
    state = step.TrainState(jnp.int32(0), params, tx.init(params), {"w": jnp.zeros(3)})
    update = step.Update(terms, tx, decay=0.9, **options)
    skipped = []
    for spoil in spoilt:
        batch = {"id": jnp.arange(4), "spoilt": spoil}
        state, metrics = step.train_step(state, batch, jax.random.key(0), update)
        skipped.append(float(metrics.get("skipped", 0)))
    return state, skipped


@pytest.mark.parametrize("bad", ["loss", "norm"])
def test_a_bad_step_leaves_everything_but_its_number_as_it_was(bad):
    """Step 1 of three is bad: a NaN, or a gradient above the limit. The others are unchanged."""
    state, skipped = steps_on_a_quadratic(bad, [False, True, False], skip_above=100.0)
    want, _ = steps_on_a_quadratic(bad, [False, False])
    assert skipped == [0, 1, 0]
    assert int(state.step) == 3
    assert largest_difference((state.params, state.opt), (want.params, want.opt)) == 0


@pytest.mark.parametrize("bad", ["loss", "norm"])
def test_without_a_limit_a_large_gradient_is_no_bad_step(bad):
    state, skipped = steps_on_a_quadratic(bad, [True], skip_above=0.0)
    assert skipped == [float(bad == "loss")]
    assert np.isfinite(state.params["w"]).all()


def test_warmup_weights():
    c = config.default().warmup
    assert step.weight_at(c, 7) == 1.0
    c.steps = 100
    np.testing.assert_allclose([step.weight_at(c, t) for t in (0, 50, 100, 500)], [0, 0.5, 1, 1])
    c.cycles = 2
    weights = [float(step.weight_at(c, t)) for t in (0, 12.5, 25, 49, 50, 75, 99, 100)]
    np.testing.assert_allclose(weights, [0, 0.5, 1, 1, 0, 1, 1, 1], atol=1e-6)
