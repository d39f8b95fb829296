"""SimCLR's loss against one that is written out, its views, and the same gradient on 8 devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.parity import largest_gap, set_fields, small, update
from tests.objectives.linear import BATCH, MODEL, OTHER, assert_nats, batch_keys, jit
from vae_jax import config, data, models
from vae_jax.config import UserError
from vae_jax.objectives import OBJECTIVES
from vae_jax.objectives.contrastive import nt_xent, view

KEY = jax.random.key(5)


def written_out(first, second, temperature):
    """(loss, share of hits) of each example, by a loop over all pairs (algorithm 1)."""
    rows = np.concatenate([first, second])
    n = len(first)
    loss = np.zeros(2 * n)
    hit = np.zeros(2 * n)
    for i, a in enumerate(rows):
        similarity = {}
        for k, b in enumerate(rows):
            if k != i:
                similarity[k] = a @ b / np.sqrt((a @ a) * (b @ b)) / temperature
        partner = (i + n) % (2 * n)
        loss[i] = np.log(sum(np.exp(s) for s in similarity.values())) - similarity[partner]
        hit[i] = max(similarity, key=similarity.get) == partner
    return (loss[:n] + loss[n:]) / 2, (hit[:n] + hit[n:]) / 2


def test_the_loss_is_the_written_out_one():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(6, 3))
    second = first + rng.normal(size=(6, 3))
    inputs = [jnp.asarray(a, jnp.float32) for a in (first, second)]
    compare = jit(nt_xent)
    loss, hit = compare(*inputs, jnp.ones(6, bool), 0.3)
    expected = written_out(first, second, 0.3)
    assert_nats(loss, expected[0], rtol=1e-5)
    np.testing.assert_array_equal(hit, expected[1])
    assert 0 < np.mean(hit) < 1
    mask = np.array([True, True, False, True, False, True])
    loss, hit = compare(*inputs, jnp.asarray(mask), 0.3)
    expected = written_out(first[mask], second[mask], 0.3)
    assert_nats(loss[mask], expected[0], rtol=1e-5)
    np.testing.assert_array_equal(hit[mask], expected[1])


def test_equal_codes_have_the_loss_of_a_guess():
    """log(2B − 1), whatever the temperature; its gradient is finite, also at a code of 0."""

    @jit
    @jax.value_and_grad
    def loss(rows):
        return nt_xent(rows, rows, jnp.ones(4, bool), 0.2)[0].mean()

    for rows in (jnp.ones((4, 3)), jnp.zeros((4, 3))):
        value, slope = loss(rows)
        assert_nats(value, np.log(7))
        assert np.isfinite(slope).all()


@jit
def many_views(x, keys, crop, intensity):
    return jax.vmap(lambda key: view(key, x, crop, intensity))(keys)


def views_of(x, keys, crop, intensity):
    return np.asarray(many_views(x, keys, crop, intensity))


def test_views_move_scale_and_recolour():
    x = jnp.asarray(np.random.default_rng(1).random((9, 7, 2)), jnp.float32)
    keys = batch_keys(KEY, 50)
    np.testing.assert_allclose(views_of(x, keys, 0.0, 0.0)[0], x, atol=1e-6)
    views = views_of(x, keys, 0.4, 0.3)
    assert views.shape == (50, 9, 7, 2) and views.min() >= 0 and views.max() <= 1
    assert len(np.unique(views.reshape(50, -1), axis=0)) == 50
    np.testing.assert_array_equal(views_of(x, keys, 0.4, 0.3), views)
    flat = views_of(jnp.full((9, 7, 2), 0.5), keys, 0.4, 0.3)
    np.testing.assert_allclose(flat, flat[:, :1, :1] * np.ones((1, 9, 7, 1)), atol=1e-6)
    assert np.ptp(flat[:, 0, 0, 0]) > 0.4 and not np.allclose(flat[..., 0], flat[..., 1])
    # Of a ramp along the rows, in the middle: its slope is the window's side.
    ramp = jnp.broadcast_to((jnp.arange(9)[:, None, None] + 0.5) / 9, (9, 7, 2))
    slope = 9 * np.diff(views_of(ramp, keys, 0.4, 0.0)[:, :, 3, 0], axis=1)[:, 3:5]
    np.testing.assert_allclose(slope[:, 0], slope[:, 1], atol=1e-4)
    assert 0.6 <= slope.min() < 0.7 and 1.3 < slope.max() <= 1.4 + 1e-4


def test_both_views_differ_between_examples():
    """The same image twice in a batch: four different views, and so four different codes."""
    image = jnp.broadcast_to(BATCH["image"][:1] * 0.1 + 0.5, BATCH["image"].shape)
    objective = OBJECTIVES["contrastive"]

    @jit
    def run(key):
        seen = []

        def encode(params, x):
            seen.append(x)
            return MODEL.encode(params, x)

        params = OTHER | {"objective": objective.init(key, MODEL)}
        objective(MODEL._replace(encode=encode), params, {"image": image}, batch_keys(key))
        return jnp.concatenate(seen)

    views = np.asarray(run(KEY)).reshape(2 * len(image), -1)
    assert len(np.unique(views, axis=0)) == len(views)


def tiny(**fields):
    c = small(optim__name="adam", optim__weight_decay=0.0, optim__eps=1.0)
    c.classifier = config.call("classifier", "none")
    c.decoder = config.call("decoder", "none")
    c.objective = config.call("objective", "contrastive")
    return set_fields(c, fields)


@pytest.fixture(scope="module")
def one():
    return update(tiny(), 1)


@pytest.mark.parametrize("fields", [{}, {"compile": "jit", "mesh__fsdp": 4}], ids=["data", "fsdp"])
def test_the_update_is_the_same_on_8_devices(one, fields):
    """Each of 4 images of a device has the 60 views of the others as rivals, too."""
    assert largest_gap(tiny(**fields), one, 8) <= 1e-5


SHARDED = (
    {"compile": "shard_map"},
    {"compile": "pmap"},
    {"dtype": "bfloat16"},
    {"mesh__fsdp": 2},
    {"mesh__fsdp": -1, "mesh__data": 1},
    {"accumulate": 2},
)


@pytest.mark.parametrize("fields", SHARDED, ids=lambda fields: "-".join(map(str, fields.values())))
def test_programs_that_see_a_part_of_the_batch_are_refused(fields):
    c = tiny(**fields)
    with pytest.raises(UserError, match=r"objective\.name=contrastive: .*; want compile=jit and"):
        models.build_for(c, data.load(c.data))


def test_wrong_numbers_are_one_line():
    for numbers in ({"temperature": 0.0}, {"crop": 1.0}):
        (field,) = numbers
        with pytest.raises(UserError, match=rf"^objective\.{field}=\d\.0: want"):
            OBJECTIVES["contrastive"](MODEL, OTHER, BATCH, batch_keys(KEY), **numbers)
