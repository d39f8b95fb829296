"""Data: order, splits, device preprocessing, cache, preparing, folders, in real processes."""

import gzip
import hashlib
import importlib.util
import io
import lzma
import os
import signal
import subprocess
import sys
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest
from ml_collections import ConfigDict
from scipy import stats

from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import batches, cache, prepare, sources


def config(**changes):
    c = dict(name="digits", dir="", size=0, channels=3, validation=0.1, binarize="none")
    return ConfigDict({**c, "shift": 0, "flip": False, "memory_mb": 4096, **changes})


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("VAE_JAX_CACHE", str(tmp_path / "cache"))


def python(code, *arguments, **kwargs):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, text=True, stderr=subprocess.PIPE, **kwargs)


# ---- order --------------------------------------------------------------------------------------


def order(n, epoch, seed=0):
    return batches.shuffle(np.arange(n, dtype=np.uint32), np.full(n, epoch, np.uint32), n=n, seed=seed)


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
        split = split._replace(image=data.Stream(lambda i: list(image[i]), np.arange(len(image)), (8, 8, 1)))
    run = dict(batch=50, seed=3)
    straight = list(data.host_batches(split, start=0, steps=60, **run))
    resumed = list(data.host_batches(split, start=41, steps=19, prefetch=0, **run))
    assert len(straight) == 60 and len(resumed) == 19
    for step, b in enumerate(resumed, 41):
        ids = data.batch_indices(step, n=len(split.image), **run)
        np.testing.assert_array_equal(b["id"], ids)
        np.testing.assert_array_equal(b["label"], split.label[ids])
        np.testing.assert_array_equal(b["image"], split.image[ids])
        jax.tree.map(np.testing.assert_array_equal, b, straight[step])
    assert b["image"].dtype == np.uint8 and b["label"].dtype == b["id"].dtype == np.int32
    unlabelled = next(data.host_batches(split._replace(label=None), start=0, steps=1, **run))
    np.testing.assert_array_equal(unlabelled["label"], np.zeros(50, np.int32))


# ---- on the device ------------------------------------------------------------------------------

IMAGE = np.arange(6 * 5 * 4 * 2).reshape(6, 5, 4, 2).astype(np.uint8)
IDS = np.array([4, 0, 9, 2, 7, 1], np.int32)
OFF = dict(levels=256, binarize="none", shift=0, flip=False)


def to_input(image, ids, key, **changes):
    return np.asarray(jax.jit(lambda i, n, k: data.to_input(i, n, k, **{**OFF, **changes}))(image, ids, key))


def test_scaling_and_threshold():
    key = jax.random.key(0)
    for k in (key, None):
        x = to_input(IMAGE, IDS, k)
        assert x.dtype == np.float32
        np.testing.assert_allclose(x, IMAGE / 255.0, rtol=1e-6)
        assert x.min() == 0 and to_input(255 - IMAGE, IDS, k).max() == 1
        np.testing.assert_array_equal(to_input(IMAGE, IDS, k, binarize="threshold"), IMAGE > 127)
    digits = np.array([[0, 8, 9, 16]], np.uint8).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(to_input(digits, IDS[:1], None, levels=17).ravel(), [0, 0.5, 0.5625, 1])
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
    assert (np.abs(x.mean((1, 2, 3)) - p) <= 4 * np.sqrt(p * (1 - p) / 1e4)).all()  # 0 and 1 exactly
    y = to_input(grey, IDS[:5], b, binarize="dynamic")
    agree = p**2 + (1 - p) ** 2  # of two independent draws
    assert (np.abs((x == y).mean((1, 2, 3)) - agree) <= 4 * np.sqrt(agree * (1 - agree) / 1e4)).all()
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
        padded = np.pad(before, ((2, 2), (2, 2), (0, 0)))
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
    how = dict(levels=256, binarize="dynamic", shift=2, flip=True)
    f = jax.jit(lambda i, n, k: data.to_input(i, n, k, **how))
    seen = []
    for devices in (1, 8):
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((devices,), ("data",), axis_types=auto, devices=jax.devices()[:devices])
        rows = jax.sharding.NamedSharding(mesh, jax.P("data"))
        x = f(*jax.device_put((image, np.arange(16)), rows), jax.random.key(5))
        assert len(x.sharding.device_set) == devices
        seen.append(np.asarray(x))
    np.testing.assert_array_equal(*seen)


# ---- digits and carving -------------------------------------------------------------------------


def test_digits_are_split_once_and_for_all():
    d = data.load(config())
    assert (d.name, d.shape, d.levels) == ("digits", (8, 8, 1), 17)
    assert d.classes == tuple("0123456789")
    splits = (d.train, d.validation, d.test)
    assert [len(s.image) for s in splits] == [1294, 144, 359]
    assert [len(s.label) for s in splits] == [1294, 144, 359]
    assert d.train.image.dtype == np.uint8 and d.train.label.dtype == np.int32
    assert d.train.image.max() == 16

    from sklearn.datasets import load_digits

    every = np.concatenate([np.c_[s.image.reshape(-1, 64), s.label] for s in splits])
    expected = np.c_[load_digits().data, load_digits().target]
    by_row = lambda a: sorted(map(tuple, a.astype(int).tolist()))  # noqa: E731
    assert by_row(every) == by_row(expected)
    for s in splits:  # stratified: every class within one of its share
        share = np.bincount(expected[:, -1].astype(int)) * len(s.label) / 1797
        assert np.abs(np.bincount(s.label) - share).max() <= 1.5
    # The same test images whatever the validation share.
    np.testing.assert_array_equal(data.load(config(validation=0.3)).test.image, d.test.image)


CARVED = [0, 2, 7, 12, 15, 17, 20, 28, 43, 44, 54, 61, 66, 69, 73, 78, 86, 91, 95]


def test_carve_takes_these_on_every_machine():
    label = np.arange(97) % 10
    _, part = data.carve(data.Split(np.arange(97), label), 0.2, seed=7)
    assert part.image.tolist() == CARVED


def test_carve_gives_the_exact_share_and_every_class_to_both():
    label = np.repeat([0, 1, 2, 3], [5, 2, 1, 92]).astype(np.int32)
    rest, part = data.carve(data.Split(np.arange(100), label), 0.1, seed=0)
    np.testing.assert_array_equal(np.sort(np.r_[rest.image, part.image]), np.arange(100))
    np.testing.assert_array_equal(np.bincount(part.label, minlength=4)[[1, 2]], [1, 0])
    np.testing.assert_array_equal(label[part.image], part.label)
    assert set(rest.label) == {0, 1, 2, 3}
    rest, part = data.carve(data.Split(np.arange(60000), None), 0.1, seed=0)
    assert len(part.image) == 6000 and part.label is None
    assert abs(part.image.mean() - 30000) < 4 * 60000 / np.sqrt(12 * 6000)


@pytest.mark.parametrize(
    "field, value",
    [
        *(("validation", v) for v in (0.0, -0.1, 0.6, float("nan"))),
        *(("size", -1), ("channels", 2), ("binarize", "sometimes")),
        *(("shift", -1), ("shift", 8), ("memory_mb", -1), ("shift", "two")),
    ],
)
def test_wrong_values_are_named(field, value):
    with pytest.raises(UserError, match=rf"^data\.{field}={value}: want") as error:
        data.load(config(**{field: value}))
    assert "\n" not in str(error.value)


# ---- cache --------------------------------------------------------------------------------------

CHUNKS = [np.arange(12, dtype=np.uint8).reshape(3, 4), np.arange(8, dtype=np.uint8).reshape(2, 4)]


def test_cache_builds_once_and_again_when_damaged(tmp_path):
    path, built = tmp_path / "c" / "x.npy", []

    def load():
        return cache.load(path, (5, 4), np.uint8, lambda: built.append(1) or iter(CHUNKS))

    for _ in range(2):
        np.testing.assert_array_equal(load(), np.concatenate(CHUNKS))
    assert len(built) == 1 and os.listdir(path.parent) == ["x.npy"]
    whole = path.read_bytes()
    flipped = bytearray(whole)
    flipped[-10] ^= 1
    for bad in (whole[:-5], whole[:100], b"", bytes(flipped), whole + b"x", b"\x93NUMPY junk"):
        path.write_bytes(bad)
        np.testing.assert_array_equal(load(), np.concatenate(CHUNKS))
        assert path.read_bytes() == whole
    assert len(built) == 7


WRITER = """
import pathlib, sys, time, numpy as np
from vae_jax.data import cache
def chunks():
    for i in range(20):
        print(i, flush=True)
        time.sleep(float(sys.argv[2]))
        yield np.full((1, 1000), i, np.uint8)
a = cache.load(pathlib.Path(sys.argv[1]), (20, 1000), np.uint8, chunks)
assert (a == np.arange(20)[:, None]).all()
"""


def test_two_writers_at_once_and_a_killed_one(tmp_path):
    path = tmp_path / "c" / "x.npy"
    killed = python(WRITER, path, 0.05, stdout=subprocess.PIPE)
    while killed.stdout.readline().strip() != "5":
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not path.exists() and len(os.listdir(path.parent)) == 1  # its temporary file
    both = [python(WRITER, path, 0.05, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [p.wait() for p in both] == [0, 0]
    image = cache.load(path, (20, 1000), np.uint8, None)  # None: must not be built again
    assert (image == np.arange(20)[:, None]).all()
    left = next(path.parent.glob("*.tmp"))
    os.utime(left, (0, 0))
    cache.load(path.with_name("y.npy"), (5, 4), np.uint8, lambda: CHUNKS)
    assert sorted(os.listdir(path.parent)) == ["x.npy", "y.npy"]


FULL = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]),) * 2)
"""


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    code = FULL + "sys.argv = ['', sys.argv[2], '0']" + WRITER
    run = python(code, 5000, tmp_path / "c" / "x.npy", stdout=subprocess.DEVNULL)
    last = run.communicate()[1].strip().splitlines()[-1]
    assert last.startswith("vae_jax.config.UserError: VAE_JAX_CACHE=") and "cannot write" in last
    assert os.listdir(tmp_path / "c") == []


def test_a_cache_that_cannot_be_a_folder_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("VAE_JAX_CACHE", str(tmp_path / "file"))
    folder_of_images(tmp_path / "images", {"a": 3, "b": 3})
    with pytest.raises(UserError, match=r"^VAE_JAX_CACHE=.*file: cannot write there \(.*\); want"):
        data.load(config(name=f"folder:{tmp_path / 'images'}", size=8))


# ---- folders ------------------------------------------------------------------------------------


def folder_of_images(root, classes):
    for c, (name, count) in enumerate(classes.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            PIL.Image.new("RGB", (9 + i, 12), (10 * i, 100 * c, 7)).save(root / name / f"{i}.png")


def test_folder_of_classes(tmp_path):
    folder_of_images(tmp_path / "images", {"cat": 20, "dog": 10})
    (tmp_path / "images" / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "images" / "cat" / "notes.txt").write_text("no image")
    c = config(name=f"folder:{tmp_path / 'images'}", size=7, validation=0.25)
    d = data.load(c)
    assert d.shape == (7, 7, 3) and d.classes == ("cat", "dog") and d.levels == 256
    assert [len(s.image) for s in d[5:7]] == [6, 6] and len(d.train.image) == 18
    for s in d[4:7]:
        assert s.image.dtype == np.uint8 and s.label.dtype == np.int32
        np.testing.assert_array_equal(s.image[:, 3, 3, 1], 100 * s.label)
    seen = sorted(map(tuple, np.concatenate([s.image[:, 0, 0, :2] for s in d[4:7]]).tolist()))
    assert seen == sorted([(10 * i, 0) for i in range(20)] + [(10 * i, 100) for i in range(10)])
    grey = data.load(config(name=c.name, size=7, channels=1)).train.image
    assert grey.shape[1:] == (7, 7, 1)

    streamed = data.load(config(name=c.name, size=7, validation=0.25, memory_mb=0))
    for a, b in zip(d[4:7], streamed[4:7], strict=True):
        assert isinstance(b.image, data.Stream) and b.image.shape == a.image.shape
        np.testing.assert_array_equal(b.image[np.arange(len(a.image))], a.image)
        np.testing.assert_array_equal(b.label, a.label)

    # A changed image is seen although there is a cache.
    PIL.Image.new("RGB", (9, 9), (255, 0, 0)).save(tmp_path / "images" / "cat" / "0.png")
    assert 255 in np.concatenate([s.image[:, 0, 0, 0] for s in data.load(c)[4:7]])


def test_folder_with_train_and_test(tmp_path):
    folder_of_images(tmp_path / "train", {"a": 6, "b": 6})
    folder_of_images(tmp_path / "test", {"a": 1, "b": 2})
    d = data.load(config(name=f"folder:{tmp_path}", size=8, validation=0.5))
    assert [len(s.image) for s in d[4:7]] == [6, 6, 3]
    np.testing.assert_array_equal(d.test.label, [0, 1, 1])


def test_images_of_every_mode_and_size(tmp_path):
    def read(image, suffix="png", size=4, channels=3, **options):
        image.save(tmp_path / f"x.{suffix}", **options)
        return sources.read_image(tmp_path / f"x.{suffix}", size, channels)

    exact = np.random.default_rng(0).integers(0, 256, (4, 4, 3), np.uint8)
    np.testing.assert_array_equal(read(PIL.Image.fromarray(exact)), exact)
    grey16 = np.array([[0, 255], [256, 65535]], np.uint16)
    got = read(PIL.Image.fromarray(grey16), size=2, channels=1)[..., 0]
    np.testing.assert_array_equal(got, [[0, 0], [1, 255]])
    np.testing.assert_array_equal(read(PIL.Image.fromarray(grey16), "tif", 2, 1)[..., 0], got)
    rgba = PIL.Image.new("RGBA", (5, 9), (0, 0, 200, 0))
    np.testing.assert_array_equal(read(rgba), np.full((4, 4, 3), 255))
    rgba.putalpha(255)
    np.testing.assert_array_equal(read(rgba), np.broadcast_to([0, 0, 200], (4, 4, 3)))
    palette = PIL.Image.new("P", (3, 5), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    np.testing.assert_array_equal(read(palette, "gif"), np.broadcast_to([10, 20, 30], (4, 4, 3)))
    np.testing.assert_array_equal(read(palette, transparency=1), np.full((4, 4, 3), 255))
    assert read(PIL.Image.new("1", (1, 30), 1), channels=1).tolist() == [[[255]] * 4] * 4
    assert read(PIL.Image.new("CMYK", (31, 7)), "jpg").min() > 250
    bands = np.repeat(np.uint8([0, 120, 240]), 4)[None].repeat(4, 0)  # centre crop: the middle
    np.testing.assert_array_equal(read(PIL.Image.fromarray(bands), channels=1), np.full((4, 4, 1), 120))
    upright = np.uint8([[0, 0, 0, 0], [0, 0, 0, 0], [255, 255, 255, 255], [255, 255, 255, 255]])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    np.testing.assert_array_equal(read(PIL.Image.fromarray(np.rot90(upright)), channels=1, exif=exif)[..., 0], upright)


def _empty(root):
    root.mkdir()


def _no_images(root):
    folder_of_images(root, {"a": 4})
    (root / "b").mkdir()


def _one_image(root):
    folder_of_images(root, {"a": 4, "b": 1})


def _unreadable(root):
    folder_of_images(root, {"a": 4, "b": 4})
    (root / "b" / "2.png").write_bytes((root / "b" / "1.png").read_bytes()[:40])


def _test_class_unknown(root):
    folder_of_images(root / "train", {"a": 4, "b": 4})
    folder_of_images(root / "test", {"a": 4, "c": 4})


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda root: None, "no such folder"),
        (_empty, "no classes; want a sub-folder"),
        (_no_images, "class b has 0 images; want at least 3"),
        (_one_image, "class b has 1 image; want at least 3"),
        (_unreadable, r"b/2\.png: not a readable image"),
        (_test_class_unknown, "class c is in test/, not in train/"),
    ],
)
def test_bad_folders_are_one_line(tmp_path, make, message):
    make(tmp_path / "images")
    with pytest.raises(UserError, match=message) as error:
        data.load(config(name=f"folder:{tmp_path / 'images'}", size=8))
    assert "\n" not in str(error.value) and not list(tmp_path.glob("cache/*/*image.npy*"))


def test_folder_needs_a_size(tmp_path):
    with pytest.raises(UserError, match=r"^data\.size=0: want"):
        data.load(config(name=f"folder:{tmp_path}"))


# ---- preparing ----------------------------------------------------------------------------------


def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + b"".join(s.to_bytes(4, "big") for s in array.shape)
    return gzip.compress(head + array.astype(np.uint8).tobytes(), mtime=0)


def tiny(manual_dir, damage=lambda i: None):
    """A small set in MNIST's file format, as one more :class:`prepare.Original`."""
    rng = np.random.default_rng(0)
    files, rows = {}, {}
    for split, prefix, n in (("train", "train", 200), ("test", "t10k", 50)):
        image, label = rng.integers(0, 256, (n, 28, 28), np.uint8), np.arange(n) % 10
        files |= {f"{prefix}-images-idx3-ubyte.gz": idx(image)}
        files |= {f"{prefix}-labels-idx1-ubyte.gz": idx(label)}
        rows[split] = sorted(map(tuple, np.c_[image.reshape(n, -1), label].tolist()))
    manual_dir.mkdir()
    for name, value in files.items():
        (manual_dir / name).write_bytes(value)
    sha256 = {name: hashlib.sha256(value).hexdigest() for name, value in files.items()}
    original = prepare.ORIGINALS["mnist"]

    def read(get):
        def watched(split):
            for i, row in enumerate(split):
                damage(i)
                yield row

        return {name: watched(split) for name, split in original.read(get).items()}

    return original._replace(version="1.2.3", read=read, sha256=sha256), rows


def rows_of(split):
    image = np.asarray(split.image[np.arange(len(split.image))])
    return sorted(map(tuple, np.c_[image.reshape(len(image), -1), split.label].tolist()))


def test_prepared_set_reads_back_exactly(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    original, rows = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    for file in (tmp_path / "manual").glob("train*"):  # half of them packed
        file.with_name(f"{file.name}.xz").write_bytes(lzma.compress(file.read_bytes()))
        file.unlink()
    c = config(name="tiny", dir=str(tmp_path / "data"))
    with pytest.raises(UserError) as error:
        data.load(c)
    command = f"run: python -m vae_jax.data prepare tiny --data_dir={tmp_path / 'data'}"
    assert str(error.value).endswith(command)

    path = prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    assert path == tmp_path / "data" / "tiny" / "1.2.3"
    assert "tensorflow" not in sys.modules
    plain = tfds.data_source("tiny", split="test", data_dir=tmp_path / "data", download=False)
    got = sorted(tuple(e["image"].ravel().tolist()) + (int(e["label"]),) for e in plain)
    assert got == rows["test"]

    for memory_mb in (4096, 0):
        c.memory_mb = memory_mb
        d = data.load(c)
        assert isinstance(d.train.image, data.Stream) == (memory_mb == 0)
        assert d.shape == (28, 28, 1) and d.classes == tuple("0123456789")
        assert [len(s.image) for s in d[4:7]] == [180, 20, 50]
        np.testing.assert_array_equal(np.bincount(d.validation.label), np.full(10, 2))
        assert sorted(rows_of(d.train) + rows_of(d.validation)) == rows["train"]
        assert rows_of(d.test) == rows["test"]
    # A newer version beside it is taken; an incomplete one is not.
    (tmp_path / "data" / "tiny" / "incomplete.X_2.0.0").mkdir()
    (tmp_path / "data" / "tiny" / "2.0.0").mkdir()
    assert sources._prepared("tiny", tmp_path / "data") == path


def test_altered_or_missing_originals_are_refused(tmp_path, monkeypatch):
    original, _ = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    file = tmp_path / "manual" / "t10k-labels-idx1-ubyte.gz"
    value = bytearray(file.read_bytes())
    value[-1] ^= 1
    file.write_bytes(value)
    with pytest.raises(UserError, match=rf"^{file}: sha256 is [0-9a-f]{{64}}, want"):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    file.unlink()
    packed = file.with_name(f"{file.name}.xz")
    packed.write_bytes(lzma.compress(value)[:-9])
    with pytest.raises(UserError, match=rf"^{packed}: cannot be read"):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    packed.unlink()
    with pytest.raises(UserError, match=r"^prepare=tiny: want --manual_dir=DIR that holds t10k-labels"):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    with pytest.raises(UserError, match=r"^--manual_dir=.*nowhere: no such folder"):
        prepare.prepare("tiny", tmp_path / "data", tmp_path / "nowhere")
    assert not (tmp_path / "data" / "tiny" / "1.2.3").exists()


PREPARE = """
import os, pathlib, signal, sys
sys.path.insert(0, "tests")
import test_data
from vae_jax.data import prepare
root = pathlib.Path(sys.argv[1])
kill = lambda i: i == 100 and os.kill(os.getpid(), signal.SIGKILL)
damage = kill if sys.argv[2] == "kill" else lambda i: None
prepare.ORIGINALS["tiny"] = test_data.tiny(root / sys.argv[2], damage)[0]
if sys.argv[2] == "full":
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000,) * 2)
prepare.prepare("tiny", root / "data", root / sys.argv[2])
"""


@pytest.mark.parametrize("how", ["kill", pytest.param("full", marks=pytest.mark.slow)])
def test_interrupted_preparing_leaves_nothing_complete(tmp_path, monkeypatch, how):
    run = python(PREPARE, tmp_path, how, stdout=subprocess.DEVNULL)
    error = run.communicate()[1]
    assert run.returncode == (-signal.SIGKILL if how == "kill" else 1)
    if how == "full":
        line = next(e for e in error.splitlines() if e.startswith("vae_jax.config.UserError"))
        assert "--data_dir=" in line and "cannot write there (File too large)" in line
    original, rows = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    c = config(name="tiny", dir=str(tmp_path / "data"))
    with pytest.raises(UserError, match="not prepared in"):
        data.load(c)
    prepare.prepare("tiny", tmp_path / "data", tmp_path / "manual")
    assert rows_of(data.load(c).test) == rows["test"]


def test_a_data_dir_that_is_a_file_is_one_line(tmp_path, monkeypatch):
    original, _ = tiny(tmp_path / "manual")
    monkeypatch.setitem(prepare.ORIGINALS, "tiny", original)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^--data_dir=.*file: cannot write there"):
        prepare.prepare("tiny", tmp_path / "file", tmp_path / "manual")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["prepare", "mnits"], "prepare=mnits: unknown data set; nearest: mnist"),
        (["prepare"], "the following arguments are required: name; want: python -m"),
        (["fetch", "mnist"], "invalid choice"),
        (["prepare", "cifar10_20k", "--data_dir={}"], "cifar10_20k: want --manual_dir=DIR that"),
        *(
            [(["prepare", "emnist"], "prepare=emnist: TFDS prepares it with TensorFlow")]
            if importlib.util.find_spec("tensorflow") is None
            else []
        ),
    ],
)
def test_command_line_errors_are_one_line(tmp_path, arguments, message):
    from vae_jax.data.__main__ import main

    with pytest.raises(UserError, match=message) as error:
        main(["", *(a.format(tmp_path) for a in arguments)])
    assert "\n" not in str(error.value)


def test_unknown_names_get_the_nearest(tmp_path):
    for name, near in (("mnits", "mnist"), ("digit", "digits"), ("cifar_10", "cifar10")):
        with pytest.raises(UserError, match=rf"^data\.name={name}: unknown.*nearest: .*\b{near}\b"):
            data.load(config(name=name, dir=str(tmp_path)))


def test_checksums_are_the_catalogues():
    mnist = prepare.catalogue_checksums("mnist")
    assert mnist["train-images-idx3-ubyte.gz"][1].startswith("440fcabf73cc546fa21475e81ea37026")
    assert set(prepare.catalogue_checksums("kmnist")) == set(mnist)
    assert set(prepare.catalogue_checksums("cifar10")) == {"cifar-10-binary.tar.gz"}
    assert len(prepare.catalogue_checksums("binarized_mnist")) == 3


def test_cifar10_is_read_from_its_archive():
    rng = np.random.default_rng(0)
    names = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]
    records = {name: rng.integers(0, 10, (2, 3073), np.uint8) for name in names}
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, value in records.items():
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = value.size
            tar.addfile(member, io.BytesIO(value.tobytes()))
    files = {"cifar-10-binary.tar.gz": buffer.getvalue()}
    splits = {s: list(r) for s, r in prepare.ORIGINALS["cifar10"].read(files.get).items()}
    assert [len(splits["train"]), len(splits["test"])] == [10, 2]
    image, label = splits["train"][3]
    row = records["data_batch_2.bin"][1]
    assert label == row[0]
    assert image[5, 7].tolist() == [row[1 + 1024 * c + 32 * 5 + 7] for c in range(3)]


def test_real_files_hold_what_their_authors_say(data_dir):
    folder = data_dir / "mnist"
    label = prepare.read_idx((folder / "t10k-labels-idx1-ubyte.gz").read_bytes())
    image = prepare.read_idx((folder / "t10k-images-idx3-ubyte.gz").read_bytes())
    assert image.shape == (10000, 28, 28) and label[:8].tolist() == [7, 2, 1, 0, 4, 1, 4, 9]
    np.testing.assert_allclose(image.mean() / 255, 0.1325, atol=5e-5)
    packed = data_dir / "binarized_mnist" / "binarized_mnist_test.amat.xz"
    image = prepare.read_amat(lzma.decompress(packed.read_bytes()))
    assert image.shape == (10000, 28, 28, 1) and np.unique(image).tolist() == [0, 1]
    packed = data_dir / "cifar10" / "data_batch_1.bin.xz"
    image, label = prepare.read_cifar(lzma.decompress(packed.read_bytes()))
    assert image.shape == (10000, 32, 32, 3) and label[:5].tolist() == [6, 9, 9, 4, 1]
    assert image[0, 0, 0].tolist() == [59, 62, 63]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, folder, sizes, levels",
    [
        ("mnist", "mnist", [54000, 6000, 10000], 256),
        ("fashion_mnist", "fashion_mnist", [54000, 6000, 10000], 256),
        ("binarized_mnist", "binarized_mnist", [50000, 10000, 10000], 2),
        ("cifar10_20k", "cifar10", [18000, 2000, 10000], 256),
    ],
)
def test_real_sets_are_prepared_and_read(data_dir, tmp_path, name, folder, sizes, levels):
    import tensorflow_datasets as tfds

    prepare.prepare(name, tmp_path, data_dir / folder)
    d = data.load(config(name=name, dir=str(tmp_path)))
    assert [len(s.image) for s in d[4:7]] == sizes and d.levels == levels
    assert all(int(np.max(s.image)) == levels - 1 for s in d[4:7])
    plain = tfds.data_source(name, split="test", data_dir=tmp_path, download=False)
    for i in (0, 77, 9999):
        np.testing.assert_array_equal(plain[i]["image"], d.test.image[i])
        assert not d.classes or plain[i]["label"] == d.test.label[i]

    # The whole test split is that of the original file, in another order.
    def get(file):
        path = prepare._find(data_dir / folder, file)
        value = path.read_bytes()
        return lzma.decompress(value) if path.suffix == ".xz" else value

    def summary(pairs):
        return sorted(hashlib.md5(bytes(x) + bytes([0 if y is None else y])).digest() for x, y in pairs)

    labels = [None] * sizes[2] if d.test.label is None else d.test.label.tolist()
    pairs = [(np.ascontiguousarray(x), y) for x, y in prepare.ORIGINALS[name].read(get)["test"]]
    assert summary(pairs) == summary(zip(d.test.image, labels, strict=True))


def test_synthetic_images_are_always_the_same_and_have_classes_to_learn():
    c = config(name="synthetic", size=8)
    a, b = data.load(c), data.load(c)
    np.testing.assert_array_equal(a.train.image, b.train.image)
    assert a.shape == (8, 8, 3) and len(a.classes) == 10 and len(a.test.image) > 500
    means = np.stack([a.train.image[a.train.label == y].mean(0) for y in range(10)])
    nearest = ((a.test.image[:, None] - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == a.test.label).mean() > 0.99
    c.size = 0
    with pytest.raises(UserError, match=r"data\.size=0: want the side of the images"):
        data.load(c)


def test_a_data_set_that_is_not_here_is_described_by_the_catalogue(tmp_path):
    c = config(name="imagenet_resized/64x64", dir=str(tmp_path))
    found = data.described(c)
    assert found.shape == (64, 64, 3) and len(found.classes) == 1000 and found.train.image.strides == (0, 0, 0, 0)
    c.name = "digits"
    assert len(data.described(c).train.image) == len(data.load(c).train.image)


# ---- classes held out, and images of another kind ---------------------------------------------------


def test_held_out_classes_are_in_no_split_and_nothing_else_moves():
    whole, open_ = data.load(config()), data.load(config(hold_out=(8, 2)))
    assert whole.unseen is None and open_.classes == tuple("01345679")
    known = [0, 1, 3, 4, 5, 6, 7, 9]
    for name in ("train", "validation", "test"):
        a, b = getattr(whole, name), getattr(open_, name)
        stays = np.isin(a.label, known)
        np.testing.assert_array_equal(b.image, a.image[stays])
        np.testing.assert_array_equal(np.array(known)[b.label], a.label[stays])
    out = ~np.isin(whole.test.label, known)
    np.testing.assert_array_equal(open_.unseen.image, whole.test.image[out])
    np.testing.assert_array_equal(np.array([2, 8])[open_.unseen.label], whole.test.label[out])
    budget = data.load(config(hold_out=(8, 2), labels=32, labels_seed=0))  # counts the classes that are left
    assert (budget.train.label >= 0).sum() + (budget.validation.label >= 0).sum() == 32


def test_images_of_another_data_set_become_of_this_ones_kind():
    digits = data.load(config())
    found = data.foreign("synthetic", config(), digits, 50)
    assert found.image.shape == (50, 8, 8, 1) and found.image.dtype == np.uint8 and found.image.max() <= 16
    raw = data.load(config(name="synthetic", size=8, channels=1)).test.image
    want = np.rint(raw[np.arange(50) * len(raw) // 50] / 255 * 16)
    np.testing.assert_array_equal(found.image, want)  # 256 levels made 17
    colour = data.load(config(name="synthetic", size=12, channels=3))
    grown = data.foreign("digits", config(name="synthetic", size=12), colour, 30)
    assert grown.image.shape == (30, 12, 12, 3) and grown.image.max() > 240  # 17 levels made 256
    assert (grown.image == grown.image[..., :1]).all()
    same = data.foreign("digits", config(), digits, 10**6)
    np.testing.assert_array_equal(same.image, digits.test.image)
