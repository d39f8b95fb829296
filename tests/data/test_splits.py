"""Digits, carving, held-out classes, and images of another data set."""

import numpy as np
import PIL.Image
import pytest

from tests.data.common import config
from vae_jax import data
from vae_jax.config import UserError


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
    assert sorted(every.astype(int).tolist()) == sorted(expected.astype(int).tolist())
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


def test_a_data_set_that_is_not_here_is_described_by_the_catalogue(tmp_path):
    c = config(name="imagenet_resized/64x64", dir=str(tmp_path))
    found = data.described(c)
    assert (
        found.shape == (64, 64, 3)
        and len(found.classes) == 1000
        and found.train.image.strides == (0, 0, 0, 0)
    )
    c.name = "digits"
    assert len(data.described(c).train.image) == len(data.load(c).train.image)


def test_held_out_classes_are_in_no_split_and_nothing_else_moves():
    whole, open_ = data.load(config()), data.load(config(hold_out=(8, 2)))
    assert whole.unseen is None and open_.classes == tuple("01345679")
    known = [0, 1, 3, 4, 5, 6, 7, 9]
    for name in ("train", "validation", "test"):
        a, b = getattr(whole, name), getattr(open_, name)
        stays = np.isin(a.label, known)
        np.testing.assert_array_equal(b.image, a.image[stays])
        np.testing.assert_array_equal(np.array(known)[b.label], a.label[stays])
    splits = (whole.train, whole.validation, whole.test)
    image = np.concatenate([split.image for split in splits])
    label = np.concatenate([split.label for split in splits])
    out = ~np.isin(label, known)
    assert out.sum() == 351, "all images of two of ten classes"
    np.testing.assert_array_equal(open_.unseen.image, image[out])
    np.testing.assert_array_equal(np.array([2, 8])[open_.unseen.label], label[out])
    budget = data.load(
        config(hold_out=(8, 2), labels=32, labels_seed=0)
    )  # counts the classes that are left
    assert (budget.train.label >= 0).sum() + (budget.validation.label >= 0).sum() == 32


@pytest.mark.parametrize("memory_mb", [4096, 0])
def test_classes_are_held_out_by_name(tmp_path, memory_mb):
    """From a folder too, whether its images are in memory or streamed."""
    for y, name in enumerate(("ant", "bee", "cat", "dog")):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(6):
            image = PIL.Image.fromarray(np.full((4, 4), 10 * y + i, np.uint8))
            image.save(tmp_path / "images" / name / f"{i}.png")
    c = config(name=f"folder:{tmp_path / 'images'}", size=4, memory_mb=memory_mb)
    c.hold_out = ("dog", "bee")
    dataset = data.load(c)
    assert dataset.classes == ("ant", "cat")
    assert isinstance(dataset.unseen.image, data.Stream) == (memory_mb == 0)
    values = dataset.unseen.image[:][:, 0, 0, 0]
    assert sorted(values.tolist()) == [*range(10, 16), *range(30, 36)]
    np.testing.assert_array_equal(dataset.unseen.label, values // 10 == 3)
    c.hold_out = (3, "bee")
    np.testing.assert_array_equal(data.load(c).unseen.image[:], dataset.unseen.image[:])
    c.hold_out = ("dgo",)
    with pytest.raises(UserError, match=r"hold_out=.*has no class dgo; nearest: dog"):
        data.load(c)


def test_one_class_has_nothing_to_tell_apart(tmp_path):
    (tmp_path / "images" / "ant").mkdir(parents=True)
    for i in range(9):
        image = PIL.Image.fromarray(np.full((4, 4), i, np.uint8))
        image.save(tmp_path / "images" / "ant" / f"{i}.png")
    dataset = data.load(config(name=f"folder:{tmp_path / 'images'}", size=4))
    assert dataset.classes == () and dataset.test.label is None
    assert any("one class only (ant)" in note for note in dataset.notes)


def test_images_of_another_data_set_become_of_this_ones_kind():
    digits = data.load(config())
    found = data.foreign("synthetic", config(), digits, 50)
    assert (
        found.image.shape == (50, 8, 8, 1)
        and found.image.dtype == np.uint8
        and found.image.max() <= 16
    )
    raw = data.load(config(name="synthetic", size=8, channels=1)).test.image
    want = np.rint(raw[np.arange(50) * len(raw) // 50] / 255 * 16)
    np.testing.assert_array_equal(found.image, want)  # 256 levels made 17
    colour = data.load(config(name="synthetic", size=12, channels=3))
    grown = data.foreign("digits", config(name="synthetic", size=12), colour, 30)
    assert grown.image.shape == (30, 12, 12, 3) and grown.image.max() > 240  # 17 levels made 256
    assert (grown.image == grown.image[..., :1]).all()
    same = data.foreign("digits", config(), digits, 10**6)
    np.testing.assert_array_equal(same.image, digits.test.image)


def test_a_split_by_draw_is_of_each_example_alone():
    n = 4000
    draw = np.random.default_rng(0).uniform(size=n)
    label = np.arange(n) % 4
    parts = data.carve_by_draw(data.Split(np.arange(n), label), draw, 0.2, 0.1)
    assert sorted(np.concatenate([s.image for s in parts.values()]).tolist()) == list(range(n))
    for name, share in (("test", 0.2), ("validation", 0.08), ("train", 0.72)):
        error = np.sqrt(share * (1 - share) / n)
        assert abs(len(parts[name].image) / n - share) < 4 * error
    fewer = data.carve_by_draw(data.Split(np.arange(n // 2), label[: n // 2]), draw, 0.2, 0.1)
    for name, split in fewer.items():
        assert set(split.image) == {i for i in parts[name].image if i < n // 2}


@pytest.mark.parametrize("stratified", [True, False])
def test_images_that_are_added_make_no_test_image_of_a_training_image(stratified):
    rng = np.random.default_rng(1)
    for _ in range(200):
        n = rng.integers(8, 40)
        draw = rng.uniform(size=n)
        label = np.arange(n) % 2
        before, after = (
            data.carve_by_draw(
                data.Split(np.arange(m), label[:m]), draw[:m], 0.2, 0.1, stratified=stratified
            )
            for m in (n - 2, n)
        )
        assert all(len(split.image) for split in before.values())
        assert n < 12 or not set(before["train"].image) & set(after["test"].image)


def test_identity_tells_what_a_run_must_find_again():
    whole = data.identity(data.load(config()))
    assert whole == data.identity(data.load(config()))
    assert whole["splits"]["test"]["count"] == 359 and whole["classes"] == list("0123456789")
    other = data.load(config())
    label = other.test.label.copy()
    label[0] = (label[0] + 1) % 10
    changed = data.identity(other._replace(test=other.test._replace(label=label)))
    assert changed["splits"]["train"] == whole["splits"]["train"]
    assert changed["splits"]["test"] != whole["splits"]["test"]
