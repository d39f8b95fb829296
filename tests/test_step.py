"""The step: the same update on any number of devices, nothing recompiled, nothing moved by the host."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import config, data, models
from vae_jax.mesh import rules as sharding
from vae_jax.train import loop, optim, step
from vae_jax.train import program as compile_lib

TOLERANCE = 2e-5  # relative, over 20 steps: float32 sums in another order


def small(**changes):
    c = config.default()
    c.latent, c.batch = 4, 32
    c.encoder = config.call("encoder", "mlp", widths=(32,))
    c.decoder = config.call("decoder", "mlp", widths=(32,))
    c.classifier = config.call("classifier", "mlp")
    c.objective = config.call("objective", "joint", gamma=10.0)
    c.optim.ema, c.optim.clip, c.optim.weight_decay = 0.99, 10.0, 0.01
    c.data.shift = 1
    for field, value in changes.items():
        config.set_field(c, field.replace("__", "."), value)
    config.validate(c)
    return c


def program(c, devices):
    dataset = data.load(c.data)
    mesh = sharding.make_mesh(c.mesh, devices)
    m = models.build_for(c, dataset)
    state, places = compile_lib.init(c, m, mesh, dataset)
    return state, compile_lib.training(c, m, mesh, dataset, state, places), dataset


def trace(c, devices, calls):
    state, run, dataset = program(c, devices)
    losses = []
    sizes = {"batch": c.batch, "labelled": c.data.labelled_batch}
    feed = data.host_batches(dataset.train, start=0, steps=calls, seed=c.seed, **sizes)
    for _ in range(calls):
        source = run.source if run.source is not None else loop._stack([next(feed)])
        state, values = run.run(state, source, run.key)
        losses.append(np.asarray(values)[:, run.names.index("loss")])
    return np.concatenate(losses), state


def largest_difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.max(np.abs(np.asarray(x) - np.asarray(y)))) for x, y in pairs)


@pytest.fixture(scope="module")
def one_device():
    return trace(small(), jax.devices()[:1], 20)


def test_one_and_eight_devices_have_the_same_trace(one_device):
    losses, state = trace(small(), jax.devices()[:8], 20)
    np.testing.assert_allclose(losses, one_device[0], rtol=TOLERANCE)
    assert largest_difference(state.params, one_device[1].params) < 1e-4
    assert {len(p.sharding.device_set) for p in jax.tree.leaves(state.params)} == {8}


def test_a_tensor_parallel_mesh_has_the_same_trace(one_device):
    c = small(mesh__data=4, mesh__model=2)
    losses, state = trace(c, jax.devices()[:8], 20)
    np.testing.assert_allclose(losses, one_device[0], rtol=TOLERANCE)
    kernel = state.params["encoder"]["Layer_0"]["dense"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (kernel.shape[0], kernel.shape[1] // 2)


def test_several_steps_in_a_call_are_the_same_steps(one_device):
    for unroll in (True, False):
        losses, _ = trace(small(steps_per_call=5, unroll=unroll), jax.devices()[:1], 4)
        np.testing.assert_allclose(losses, one_device[0], rtol=TOLERANCE)


def test_batches_from_the_host_are_the_batches_of_the_device(one_device):
    losses, _ = trace(small(data__on_device_mb=0), jax.devices()[:1], 20)
    np.testing.assert_allclose(losses, one_device[0], rtol=TOLERANCE)


def asked_of_the_host(steps=5):
    """(compilations, transfers from or to the host) in ``steps`` steps after the first, on eight devices; the first
    transfer ends the count."""
    state, run, _ = program(small(), jax.devices()[:8])
    state, _ = run.run(state, run.source, run.key)
    compilations, transfers = [], 0
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **kw: compilations.append(event) if "compile" in event else None
    )
    before = len(compilations)
    try:
        with jax.transfer_guard("disallow"):
            for _ in range(steps):
                state, _ = run.run(state, run.source, run.key)
    except Exception as error:
        assert "transfer" in str(error)
        transfers = 1
    assert transfers or int(state.step) == steps + 1
    return len(compilations) - before, transfers


def test_nothing_recompiles_and_nothing_crosses_from_the_host():
    assert asked_of_the_host() == (0, 0)
    with pytest.raises(Exception, match="transfer"), jax.transfer_guard("disallow"):
        jnp.sin(np.ones(3))  # the guard does guard


def test_the_state_is_donated():
    state, run, _ = program(small(), jax.devices()[:1])
    leaf = state.params["encoder"]["Layer_0"]["dense"]["kernel"]
    run.run(state, run.source, run.key)
    assert leaf.is_deleted()


def test_the_program_has_no_float64_and_one_round_of_collectives():
    _, run, _ = program(small(), jax.devices()[:8])
    text = run.run.as_text()
    assert "f64[" not in text
    assert "all-reduce" in text and "all-to-all" not in text


def test_masked_mean_divides_sums_once():
    values = jnp.array([1.0, 2.0, jnp.nan, 4.0])
    mask = jnp.array([True, True, False, True])
    assert float(step.masked_mean(values, mask)) == pytest.approx(7 / 3)


def test_gradient_under_shard_map_is_not_multiplied_by_the_devices():
    """pmean inside the loss and on the gradients: the update of one device, not 8 times it."""
    from jax.sharding import PartitionSpec as P

    c = small(data__shift=0)
    dataset = data.load(c.data)
    m = models.build_for(c, dataset)
    params = jax.jit(m.init)(jax.random.key(0))

    # A loss without noise: shards draw their own, and the comparison must not see it.
    def terms(params, batch, key, at):
        return _deterministic(m, params, batch)

    import optax

    tx = optax.sgd(0.1)
    state = step.TrainState(jnp.int32(0), params, tx.init(params), ())
    index = np.arange(32)
    batch = {"image": dataset.train.image[index], "label": dataset.train.label[index], "id": index}
    want, _ = jax.jit(lambda s, b, k: step.train_step(s, b, k, terms=terms, tx=tx))(
        state, batch, jax.random.key(1)
    )
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded = jax.shard_map(
        lambda s, b, k: step.train_step(s, b, k, terms=terms, tx=tx, axis="data"),
        mesh=mesh,
        in_specs=(P(), P("data"), P()),
        out_specs=P(),
    )
    got, _ = jax.jit(sharded)(state, batch, jax.random.key(1))
    assert largest_difference(want.params, got.params) < 1e-5


@pytest.mark.parametrize("bad", ["loss", "norm"])
def test_a_bad_step_leaves_everything_but_its_number_as_it_was(bad):
    """Step 1 of three is bad: a NaN, or a gradient above the limit. The others are those of a run without it."""
    import optax

    target, tx = jnp.arange(3.0), optax.adam(0.1)

    def terms(params, batch, key, at):
        from vae_jax.objectives import Terms

        wrong = (jnp.nan if bad == "loss" else 1e4) if batch["spoilt"] else 1.0
        return Terms(loss=wrong * jnp.sum((params["w"] - target) ** 2) * jnp.ones(4))

    start = step.TrainState(
        jnp.int32(0), {"w": jnp.zeros(3)}, tx.init({"w": jnp.zeros(3)}), {"w": jnp.zeros(3)}
    )

    def run(spoilt, **kwargs):
        state, skipped = start, []
        for spoil in spoilt:
            batch = {"id": jnp.arange(4), "spoilt": spoil}
            state, metrics = step.train_step(
                state, batch, jax.random.key(0), terms=terms, tx=tx, decay=0.9, **kwargs
            )
            skipped.append(float(metrics.get("skipped", 0)))
        return state, skipped

    got, skipped = run([False, True, False], skip_above=100.0)
    want, _ = run([False, False])
    assert skipped == [0, 1, 0] and int(got.step) == 3
    assert largest_difference((got.params, got.opt), (want.params, want.opt)) == 0
    finite, skipped = run([True], skip_above=0.0)  # without a limit a large norm is no fault
    assert skipped == [float(bad == "loss")] and np.isfinite(finite.params["w"]).all()


def _deterministic(m, params, batch):
    from vae_jax.objectives import Terms

    x = batch["image"].astype(jnp.float32) / 16
    return Terms(loss=-m.log_px(params, x, m.encode(params, x).mu))


def test_warmup_weights():
    c = config.default().warmup
    assert step.weight_at(c, 7) == 1.0
    c.steps = 100
    np.testing.assert_allclose([step.weight_at(c, t) for t in (0, 50, 100, 500)], [0, 0.5, 1, 1])
    c.cycles = 2
    got = [float(step.weight_at(c, t)) for t in (0, 12.5, 25, 49, 50, 75, 99, 100)]
    np.testing.assert_allclose(got, [0, 0.5, 1, 1, 0, 1, 1, 1], atol=1e-6)


def test_ema_and_schedule():
    a = optim.ema({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.int32(0), 0.9)
    assert float(a["w"][0]) == pytest.approx(0.9)  # d = min(0.9, 1/10)
    a = optim.ema({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.int32(10**6), 0.9)
    assert float(a["w"][0]) == pytest.approx(0.1)
    c = config.default().optim
    c.lr, c.warmup = 0.1, 10
    lr = optim.learning_rate(c, 100)
    np.testing.assert_allclose([lr(0), lr(10), lr(55), lr(100)], [0, 0.1, 0.05, 0], atol=1e-7)


def test_weight_decay_spares_vectors():
    c = config.default().optim
    c.lr, c.weight_decay, c.schedule = 0.1, 0.5, "constant"
    tx = optim.optimizer(c, 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05)
    np.testing.assert_allclose(updates["bias"], 0.0)
