"""Optimisers by their optax name: optax's numbers, our schedule and our mask of weight decay."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from vae_jax import cli, config
from vae_jax.train import optim

ROOT = pathlib.Path(__file__).parents[2]
PARAMS = {"kernel": jnp.linspace(-1.0, 1.0, 6).reshape(2, 3), "bias": jnp.array([0.5, -1.0, 2.0])}
# Arguments that need a schedule, and fields whose value is not the default: the same in both.
EXPECTED = {
    "sgd": ({"momentum": 0.9}, lambda lr: optax.sgd(lr, momentum=0.9)),
    "rmsprop": ({"decay": 0.8}, lambda lr: optax.rmsprop(lr, decay=0.8)),
    "adam": ({"b1": 0.8}, lambda lr: optax.adam(lr, b1=0.8)),
    "lion": ({"b2": 0.95}, lambda lr: optax.lion(lr, b2=0.95, weight_decay=0.0)),
}


def updates(tx, params, steps=4):
    """Parameters after steps on Σ p⁴/4, whose gradient is p³."""
    state = tx.init(params)
    for _ in range(steps):
        change, state = tx.update(jax.tree.map(lambda p: p**3, params), state, params)
        params = optax.apply_updates(params, change)
    return params


def quartic(params):
    return sum(float((p**4).sum()) for p in jax.tree.leaves(params))


@pytest.mark.parametrize("name", sorted(optim.OPTIMIZERS))
def test_every_optimizer_of_the_table_descends_and_survives_json(name):
    c = config.default()
    c.optim = config.call("optim", name, lr=1e-2, schedule="constant")
    config.validate(c)
    back = config.from_json(json.loads(json.dumps(config.to_json(c))))
    assert back.optim.to_dict() == c.optim.to_dict()
    params = updates(optim.optimizer(c.optim, 10), PARAMS)
    assert quartic(params) < quartic(PARAMS)


@pytest.mark.parametrize("name", sorted(EXPECTED))
def test_fields_are_the_arguments_of_optax(name):
    fields, reference = EXPECTED[name]
    pairs = [("optim.name", name), *((f"optim.{k}", str(v)) for k, v in fields.items())]
    c = cli.apply(config.default(), [*pairs, ("optim.warmup", "2")])
    config.validate(c)
    params = updates(optim.optimizer(c.optim, c.steps), PARAMS)
    wanted = updates(reference(optim.learning_rate(c.optim, c.steps)), PARAMS)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


@pytest.mark.parametrize("name", [n for n, o in optim.OPTIMIZERS.items() if o.decay])
def test_weight_decay_leaves_vectors(name):
    params = []
    for decay in (0.0, 0.5):
        c = config.call("optim", name, weight_decay=decay, schedule="constant")
        params.append(updates(optim.optimizer(c, 10), PARAMS, steps=1))
    one, other = params
    np.testing.assert_array_equal(one["bias"], other["bias"])
    assert abs(one["kernel"] - other["kernel"]).max() > 0


def test_another_name_keeps_the_schedule_and_equal_arguments():
    c = config.load(f"{ROOT}/configs/digits.py")
    c.optim.b2 = 0.95
    c.optim.eps = 1e-4
    adam = cli.apply(c, [("optim.name", "adam")]).optim
    assert adam.b2 == 0.95 and adam.eps == 1e-4 and adam.warmup == c.optim.warmup == 200
    sgd = cli.apply(c, [("optim.name", "sgd")]).optim
    assert "b2" not in sgd and sgd.momentum is None and sgd.lr == c.optim.lr


@pytest.mark.parametrize(
    ("pairs", "message"),
    [
        ([("optim.name", "adan_w")], r"optim\.name=adan_w: unknown; nearest: adan"),
        ([("optim.name", "lbfgs")], r"optim\.name=lbfgs: unknown"),
        ([("optim.name", "sgd"), ("optim.b1", "0.9")], r"optim\.b1=0\.9: unknown field"),
        ([("optim.name", "sgd"), ("optim.momentum", "much")], r"momentum=much: want a number"),
        ([("optim.name", "sgd"), ("optim.weight_decay", "0.1")], r"decay=0\.1: sgd has none"),
        ([("optim.b1", "1.0")], r"optim\.b1=1\.0: want 0 <= value < 1"),
        ([("optim.eps", "0")], r"optim\.eps=0\.0: want a number > 0"),
    ],
)
def test_wrong_optimizers_are_one_line(pairs, message):
    with pytest.raises(config.UserError, match=message):
        config.validate(cli.apply(config.default(), pairs))


def test_a_name_set_alone_names_the_call():
    c = config.default()
    c.optim.name = "sgd"
    with pytest.raises(config.UserError, match=r"optim\.b1=0\.9: sgd has no such field"):
        config.validate(c)


def test_a_config_of_before_the_optimizers_fields_reads():
    """The section as runs saved it when there were adam and adamw only."""
    tree = config.to_json(config.default())
    tree["optim"] = {
        **{"name": "adam", "lr": 1e-3, "schedule": "stages", "warmup": 0, "weight_decay": 0.0},
        **{"clip": 0.0, "skip": 0, "skip_above": 0.0, "b1": 0.9, "b2": 0.999, "eps": 1e-4},
        "ema": 0.0,
    }
    c = config.from_json(tree)
    config.validate(c)
    assert c.optim.name == "adam" and c.optim.eps == 1e-4 and not c.optim.nesterov


def test_ema_and_schedule():
    a = optim.ema({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.int32(0), 0.9)
    assert float(a["w"][0]) == pytest.approx(0.9)  # d = min(0.9, 1/10)
    a = optim.ema({"w": jnp.zeros(1)}, {"w": jnp.ones(1)}, jnp.int32(10**6), 0.9)
    assert float(a["w"][0]) == pytest.approx(0.1)
    c = config.default().optim
    c.lr = 0.1
    c.warmup = 10
    lr = optim.learning_rate(c, 100)
    np.testing.assert_allclose([lr(0), lr(10), lr(55), lr(100)], [0, 0.1, 0.05, 0], atol=1e-7)


def test_weight_decay_spares_vectors():
    c = config.default().optim
    c.lr = 0.1
    c.weight_decay = 0.5
    c.schedule = "constant"
    tx = optim.optimizer(c, 10)
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    updates, _ = tx.update(jax.tree.map(jnp.zeros_like, params), tx.init(params), params)
    np.testing.assert_allclose(updates["kernel"], -0.05)
    np.testing.assert_allclose(updates["bias"], 0.0)
