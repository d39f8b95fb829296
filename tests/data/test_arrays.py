"""Data sets that are arrays: made ones, .npz files, a user's own functions."""

import pathlib

import numpy as np
import pytest

from tests.data.common import config
from vae_jax import data
from vae_jax.config import UserError


def test_synthetic_images_are_always_the_same_and_have_classes_to_learn():
    c = config(name="synthetic", size=8)
    a, b = data.load(c), data.load(c)
    np.testing.assert_array_equal(a.train.image, b.train.image)
    assert a.shape == (8, 8, 3) and len(a.classes) == 10 and len(a.test.image) > 500
    means = np.stack([a.train.image[a.train.label == y].mean(0) for y in range(10)])
    nearest = ((a.test.image[:, None] - means) ** 2).sum((2, 3, 4)).argmin(1)
    assert (nearest == a.test.label).mean() > 0.99
    assert data.load(config(name="synthetic", size=(6, 9))).shape == (6, 9, 3)
    c.size = 0
    with pytest.raises(UserError, match=r"data\.size=0: want the side of the images"):
        data.load(c)


RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 256, (60, 5, 4), np.uint8)
LABEL = np.arange(60) % 3
WORDS = np.array(["ant", "bee", "cat"])


def load(tmp_path: pathlib.Path, **arrays: np.ndarray):
    np.savez(tmp_path / "x.npz", **arrays)
    return data.load(config(name=f"npz:{tmp_path / 'x.npz'}"))


def pairs(*splits: data.Split):
    rows = []
    for split in splits:
        for image, label in zip(split.image, split.label, strict=True):
            rows.append((image.tobytes(), int(label)))
    return sorted(rows)


EVERY = pairs(data.Split(IMAGE, LABEL))


def test_an_npz_file_is_a_data_set(tmp_path: pathlib.Path):
    d = load(tmp_path, images=IMAGE, labels=LABEL, classes=WORDS)
    assert d.shape == (5, 4, 1) and d.levels == 256 and d.classes == ("ant", "bee", "cat")
    assert pairs(d.train, d.validation, d.test) == EVERY
    assert all(len(split.image) for split in d[4:7])
    assert d.train.image.dtype == np.uint8 and d.train.label.dtype == np.int32
    by_word = load(tmp_path, images=IMAGE, labels=WORDS[LABEL])
    assert by_word.classes == d.classes and pairs(by_word.test) == pairs(d.test)
    assert load(tmp_path, images=IMAGE, labels=LABEL).classes == ("0", "1", "2")
    plain = load(tmp_path, images=IMAGE)
    assert plain.classes == () and plain.test.label is None
    assert load(tmp_path, images=IMAGE > 99, labels=LABEL).levels == 2


def test_an_npy_file_has_the_images_alone(tmp_path: pathlib.Path):
    np.save(tmp_path / "x.npy", IMAGE)
    d = data.load(config(name=f"npz:{tmp_path / 'x.npy'}"))
    assert d.shape == (5, 4, 1) and d.classes == ()
    assert sum(len(split.image) for split in d[4:7]) == 60


def test_arrays_that_grow_keep_their_splits(tmp_path: pathlib.Path):
    image = RNG.integers(0, 256, (600, 5, 4), np.uint8)
    label = np.arange(600) % 3
    before = load(tmp_path, images=image[:500], labels=label[:500])
    after = load(tmp_path, images=image[::-1], labels=label[::-1])
    for name in ("train", "validation", "test"):
        assert set(pairs(getattr(before, name))) <= set(pairs(getattr(after, name)))


def test_splits_of_arrays_are_kept(tmp_path: pathlib.Path):
    split = np.array(["train"] * 40 + ["val"] * 12 + ["test"] * 8)
    d = load(tmp_path, images=IMAGE, labels=LABEL, splits=split)
    np.testing.assert_array_equal(d.test.image[..., 0], IMAGE[52:])
    np.testing.assert_array_equal(d.validation.label, LABEL[40:52])
    parts = {"train_images": IMAGE[:40], "train_labels": LABEL[:40, None]}
    parts |= {"val_images": IMAGE[40:52], "val_labels": LABEL[40:52, None]}
    parts |= {"test_images": IMAGE[52:], "test_labels": LABEL[52:, None]}
    keras = {"x_train": IMAGE[:52], "y_train": LABEL[:52], "x_test": IMAGE[52:]}
    for arrays in (parts, keras | {"y_test": LABEL[52:]}):
        np.testing.assert_array_equal(load(tmp_path, **arrays).test.image, d.test.image)


OWN = """
from __future__ import annotations
import numpy as np

def as_dict():
    image = np.random.default_rng(0).integers(0, 256, (60, 5, 4, 3), np.uint8)
    return {"images": image, "labels": np.arange(60) % 3, "classes": ["ant", "bee", "c\x1b[1mat"]}

def as_tuple():
    return as_dict()["images"], as_dict()["labels"]

def with_splits():
    return *as_tuple(), ["train"] * 40 + ["test"] * 20

def nothing():
    return None

def ragged():
    return {"images": [[1, 2], [3]]}

def with_an_argument(path):
    return as_dict()

def floats():
    return as_dict()["images"] / 255, as_dict()["labels"]
"""


def test_a_function_of_ones_own_is_a_data_set(tmp_path: pathlib.Path):
    (tmp_path / "own.py").write_text(OWN)
    d = data.load(config(name=f"{tmp_path}/own.py:as_dict"))
    assert d.shape == (5, 4, 3) and d.classes == ("ant", "bee", r"c\x1b[1mat")
    assert pairs(*d[4:7]) == pairs(*data.load(config(name=f"{tmp_path}/own.py:as_tuple"))[4:7])
    assert len(data.load(config(name=f"{tmp_path}/own.py:with_splits")).test.image) == 20
    for name, message in (
        ("nothing", "returned NoneType; want images"),
        ("floats", r"images are float64 \[60, 5, 4, 3\]; want uint8"),
        ("other", "no function other"),
        ("ragged", "images is no array of numbers"),
        ("with_an_argument", "called without arguments, but missing a required argument: 'path'"),
    ):
        with pytest.raises(UserError, match=rf"^data\.name=.*:{name}: .*{message}"):
            data.load(config(name=f"{tmp_path}/own.py:{name}"))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": IMAGE}, "has pictures; want images"),
        ({"images": IMAGE, "labels": LABEL[1:]}, "59 labels of 60 images"),
        ({"images": IMAGE, "labels": LABEL, "classes": WORDS[:2]}, "2 classes, but a label 2"),
        ({"images": IMAGE, "labels": LABEL - 1}, "labels are int64; want 0"),
        ({"images": IMAGE, "labels": LABEL / 2}, "labels are float64; want 0"),
        ({"images": IMAGE, "labels": np.eye(60, dtype=int)}, r"labels have shape \(60, 60\)"),
        ({"images": IMAGE, "labels": LABEL * 10**9}, "has a label 2000000000; want 0 .. Y - 1"),
        ({"images": IMAGE, "labels": LABEL, "classes": WORDS[[0, 0, 0]]}, "two classes have one"),
        ({"train_images": IMAGE, "train_labels": LABEL[1:]}, "59 labels of 60 images"),
        ({"images": np.uint8(3)}, "images are one number; want images"),
        ({"images": IMAGE[0]}, "train images are uint8"),
        ({"images": IMAGE, "splits": np.array(["trian"] * 60)}, "splits has trian; want train"),
        ({"train_images": IMAGE, "test_images": IMAGE[:, 1:]}, "images of shapes"),
        ({"images": np.array([{}], object)}, "not an .npz file of numbers"),
    ],
)
def test_wrong_arrays_are_one_line(
    tmp_path: pathlib.Path, arrays: dict[str, np.ndarray], message: str
):
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path, **arrays)
    assert "\n" not in str(error.value)


def test_a_missing_or_damaged_file_is_one_line(tmp_path: pathlib.Path):
    load(tmp_path, images=IMAGE)
    whole = (tmp_path / "x.npz").read_bytes()
    for value in (b"", b"junk", whole[:-30], whole[: len(whole) // 2]):
        (tmp_path / "x.npz").write_bytes(value)
        with pytest.raises(UserError, match=r"^data\.name=npz:.*x\.npz: ") as error:
            data.load(config(name=f"npz:{tmp_path / 'x.npz'}"))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none\.npz: No such file"):
        data.load(config(name=f"npz:{tmp_path / 'none.npz'}"))
