"""Order of batches, and what the device does to images before the model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from tests.data.common import config
from vae_jax import data
from vae_jax.data import batches
from vae_jax.data.batches import Inputs


def order(n, epoch, seed=0):
    return batches.shuffle(
        np.arange(n, dtype=np.uint32), np.full(n, epoch, np.uint32), n=n, seed=seed
    )


def over_epochs(n, offset, epochs, seed=0):
    """Where ``offset`` goes in each of many epochs."""
    x = np.full(epochs, offset, np.uint32)
    return batches.shuffle(x, np.arange(epochs, dtype=np.uint32), n=n, seed=seed).astype(int)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 64, 1000, 1437, 60000])
def test_shuffle_is_a_bijection(n):
    for epoch in (0, 1, 2**31):
        np.testing.assert_array_equal(np.sort(order(n, epoch)), np.arange(n))


def test_shuffle_stays_in_range_on_the_largest_domain():
    n = 2**31
    x = np.array([0, 1, n // 2, n - 1], np.uint32)
    y = batches.shuffle(x, np.zeros(4, np.uint32), n=n, seed=0)
    assert len(set(y.tolist())) == 4 and (y < n).all()


@pytest.mark.parametrize("n, batch", [(1437, 128), (10, 32), (60000, 20)])
def test_numpy_and_jax_give_the_same_indices(n, batch):
    jitted = jax.jit(lambda s: data.batch_indices(s, n=n, batch=batch, seed=7, xp=jnp))
    steps = np.array([0, 1, 11, 470, 2**25])
    for step in steps.tolist():
        host = data.batch_indices(step, n=n, batch=batch, seed=7)
        assert host.dtype == np.int32 and host.shape == (batch,)
        np.testing.assert_array_equal(jitted(step), host)
    many = data.batch_indices(steps, n=n, batch=batch, seed=7)
    np.testing.assert_array_equal(jitted(steps), many)
    np.testing.assert_array_equal(many[3], data.batch_indices(470, n=n, batch=batch, seed=7))


def test_every_example_once_per_epoch_across_batches():
    n, batch = 10, 4  # 5 batches are two epochs; batch 2 lies in both
    drawn = np.concatenate([data.batch_indices(s, n=n, batch=batch, seed=1) for s in range(25)])
    epochs = drawn.reshape(-1, n)
    np.testing.assert_array_equal(np.sort(epochs, 1), np.tile(np.arange(n), (10, 1)))
    assert len({tuple(e) for e in epochs}) == 10
    other = np.concatenate([data.batch_indices(s, n=n, batch=batch, seed=2) for s in range(25)])
    assert (drawn != other).mean() > 0.7


def test_all_permutations_are_equally_likely():
    epochs = 24_000
    x = np.tile(np.arange(4, dtype=np.uint32), epochs)
    e = np.repeat(np.arange(epochs, dtype=np.uint32), 4)
    orders = batches.shuffle(x, e, n=4, seed=0).reshape(epochs, 4)
    _, count = np.unique(orders, axis=0, return_counts=True)
    assert len(count) == 24
    assert stats.chisquare(count).pvalue > 1e-3


@pytest.mark.parametrize("n", [10, 100, 1437])
def test_positions_are_uniform_and_neighbours_independent(n):
    epochs = 50 * n
    a, b = over_epochs(n, n // 2, epochs), over_epochs(n, n // 2 - 1, epochs)
    assert stats.chisquare(np.bincount(a, minlength=n)).pvalue > 1e-3
    gap = np.bincount((b - a) % n, minlength=n)
    assert gap[0] == 0 and stats.chisquare(gap[1:]).pvalue > 1e-3
    # Without replacement the correlation of two places is -1/(n - 1).
    assert abs(np.corrcoef(a, b)[0, 1] + 1 / (n - 1)) < 4 / np.sqrt(epochs)
    assert abs(np.corrcoef(a[:-1], a[1:])[0, 1]) < 4 / np.sqrt(epochs)


def test_one_epoch_of_mnist_size_looks_random():
    n = 60000
    for epoch in range(3):
        o = order(n, epoch).astype(float)
        for r in (np.corrcoef(o, np.arange(n))[0, 1], np.corrcoef(o[1:], o[:-1])[0, 1]):
            assert abs(r) < 4 / np.sqrt(n)
        assert abs((np.diff(o) > 0).sum() - (n - 1) / 2) < 4 * np.sqrt((n + 1) / 12)


@pytest.mark.parametrize("n, batch", [(10, 4), (8, 4), (3, 8)])
def test_evaluation_meets_every_example_once(n, batch):
    pairs = list(data.eval_batches(n, batch))
    assert all(i.shape == m.shape == (batch,) and i.dtype == np.int32 for i, m in pairs)
    np.testing.assert_array_equal(np.concatenate([i[m] for i, m in pairs]), np.arange(n))
    # Padding wraps round, so that statistics over a padded batch are not those of one example.
    everything = np.concatenate([i for i, _ in pairs])
    np.testing.assert_array_equal(everything, np.arange(len(everything)) % n)
    assert len(pairs) == -(-n // batch)


@pytest.mark.parametrize("stream", [False, True])
def test_host_batches_are_exact_from_any_start(stream):
    split = data.load(config()).train
    if stream:
        image = split.image
        split = split._replace(
            image=data.Stream(lambda i: list(image[i]), np.arange(len(image)), (8, 8, 1))
        )
    run = dict(batch=50, seed=3)
    straight = list(data.host_batches(split, range(60), **run))
    resumed = list(data.host_batches(split, range(41, 60), **run))
    assert len(straight) == 60 and len(resumed) == 19
    for step, b in enumerate(resumed, 41):
        ids = data.batch_indices(step, n=len(split.image), **run)
        np.testing.assert_array_equal(b["id"], ids)
        np.testing.assert_array_equal(b["label"], split.label[ids])
        np.testing.assert_array_equal(b["image"], split.image[ids])
        jax.tree.map(np.testing.assert_array_equal, b, straight[step])
    assert b["image"].dtype == np.uint8 and b["label"].dtype == b["id"].dtype == np.int32
    unlabelled = next(data.host_batches(split._replace(label=None), range(1), **run))
    np.testing.assert_array_equal(unlabelled["label"], np.zeros(50, np.int32))


IMAGE = np.arange(6 * 5 * 4 * 2).reshape(6, 5, 4, 2).astype(np.uint8)
IDS = np.array([4, 0, 9, 2, 7, 1], np.int32)


def to_input(image, ids, key, levels=256, **changes):
    how = Inputs(levels, **changes)
    return np.asarray(jax.jit(functools.partial(data.to_input, how=how))(image, ids, key))


def test_scaling_and_threshold():
    key = jax.random.key(0)
    for k in (key, None):
        x = to_input(IMAGE, IDS, k)
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, IMAGE / 255.0, rtol=1e-6)
        assert x.min() == 0 and to_input(255 - IMAGE, IDS, k).max() == 1
        np.testing.assert_array_equal(to_input(IMAGE, IDS, k, binarize="threshold"), IMAGE > 127)
    digits = np.array([[0, 8, 9, 16]], np.uint8).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(
        to_input(digits, IDS[:1], None, levels=17).ravel(), [0, 0.5, 0.5625, 1]
    )
    got = to_input(digits, IDS[:1], None, levels=17, binarize="threshold").ravel()
    np.testing.assert_array_equal(got, [0, 0, 1, 1])


def test_static_binarisation_belongs_to_the_example():
    a, b = jax.random.split(jax.random.key(0))
    grey = np.full((6, 8, 8, 1), 128, np.uint8)
    x = to_input(grey, IDS, a, binarize="static")
    np.testing.assert_array_equal(x, to_input(grey, IDS, b, binarize="static"))
    np.testing.assert_array_equal(x[::-1], to_input(grey, IDS[::-1], None, binarize="static"))
    assert set(np.unique(x)) == {0, 1} and len(np.unique(x.reshape(6, -1), axis=0)) == 6


def test_dynamic_binarisation_is_drawn_per_step_and_fixed_in_evaluation():
    a, b = jax.random.split(jax.random.key(0))
    value = np.array([0, 32, 128, 224, 255], np.uint8)
    grey = np.broadcast_to(value[:, None, None, None], (5, 100, 100, 1))
    x = to_input(grey, IDS[:5], a, binarize="dynamic")
    p = value / 255
    assert (
        np.abs(x.mean((1, 2, 3)) - p) <= 4 * np.sqrt(p * (1 - p) / 1e4)
    ).all()  # 0 and 1 exactly
    y = to_input(grey, IDS[:5], b, binarize="dynamic")
    agree = p**2 + (1 - p) ** 2  # of two independent draws
    assert (
        np.abs((x == y).mean((1, 2, 3)) - agree) <= 4 * np.sqrt(agree * (1 - agree) / 1e4)
    ).all()
    fixed = to_input(grey, IDS[:5], None, binarize="dynamic")
    np.testing.assert_array_equal(fixed, to_input(grey, IDS[:5], None, binarize="static"))


@pytest.mark.parametrize("binarize", ["threshold", "static", "dynamic"])
def test_binary_data_stays_as_it_is(binarize):
    image = (IMAGE % 2).astype(np.uint8)
    x = to_input(image, IDS, jax.random.key(0), levels=2, binarize=binarize)
    np.testing.assert_array_equal(x, image)


def test_shift_and_flip_give_translates_and_mirror_images():
    image = np.random.default_rng(0).integers(1, 256, (600, 5, 4, 1), np.uint8)
    x = to_input(image, np.arange(600), jax.random.key(0), shift=2, flip=True)
    seen = {}
    for before, after in zip(image, np.rint(x * 255).astype(np.uint8), strict=True):
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)), mode="edge")
        match = [
            (dy, dx, flip)
            for dy in range(5)
            for dx in range(5)
            for flip in (False, True)
            if np.array_equal(after[:, :: -1 if flip else 1], padded[dy : dy + 5, dx : dx + 4])
        ]
        assert len(match) == 1
        seen[match[0]] = seen.get(match[0], 0) + 1
    assert len(seen) == 50 and stats.chisquare(list(seen.values())).pvalue > 1e-3
    plain = to_input(image, np.arange(600), None, shift=2, flip=True)
    np.testing.assert_allclose(plain, image / 255.0, rtol=1e-6)


def test_draws_do_not_depend_on_the_number_of_devices():
    image = np.random.default_rng(0).integers(0, 256, (16, 6, 6, 1), np.uint8)
    how = Inputs(256, binarize="dynamic", shift=2, flip=True)
    f = jax.jit(functools.partial(data.to_input, how=how))
    seen = []
    for devices in (1, 8):
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh(
            (devices,), ("data",), axis_types=auto, devices=jax.devices()[:devices]
        )
        rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
        x = f(*jax.device_put((image, np.arange(16)), rows), jax.random.key(5))
        assert len(x.sharding.device_set) == devices
        seen.append(np.asarray(x))
    np.testing.assert_array_equal(*seen)


def test_shift_draws_no_black_into_white_paper():
    paper = np.full((64, 8, 8, 1), 255, np.uint8)
    x = to_input(paper, np.arange(64), jax.random.key(0), shift=3)
    np.testing.assert_array_equal(x, 1)
