"""Data sets of Hugging Face's library, written and cached by the library itself."""

import io
import json
import os
import pathlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.data.common import config
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import hub

os.environ.setdefault("HF_HUB_OFFLINE", "1")
datasets = pytest.importorskip("datasets", reason="needs pip install '.[hf]'")

NAMES = ("ant", "bee", "cat")
COUNTS = {"train": 30, "validation": 9, "test": 6}


@pytest.fixture(autouse=True)
def own_library_cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "library")


def images(n: int, mode: str = "L", shape: tuple[int, ...] = (8, 6), seed: int = 0):
    """n images of noise."""
    rng = np.random.default_rng(seed)
    if mode == "RGB":
        shape = (*shape, 3)
    return [PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8)) for _ in range(n)]


def table(n: int, seed: int = 0, mode: str = "L", **columns: list):
    """n images with a class each, and other columns."""
    values = {"image": images(n, mode, seed=seed), "label": [i % 3 for i in range(n)], **columns}
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=list(NAMES))}
    one = datasets.Dataset.from_dict(values)
    return one.cast_column("label", kinds["label"]).cast_column("image", kinds["image"])


def tables():
    """A data set with all three splits."""
    splits = {split: table(n, seed=n) for split, n in COUNTS.items()}
    return datasets.DatasetDict(splits)


def load(path: pathlib.Path | str, size: int | tuple[int, int] = 0, **changes: Any):
    return data.load(config(name=f"hf:{path}", size=size, **{"channels": 0, **changes}))


def check(d: data.Dataset):
    """``d`` is :func:`tables`."""
    assert d.shape == (8, 6, 1) and d.classes == NAMES and d.levels == 256
    for split, n in COUNTS.items():
        own = getattr(d, split)
        expected = np.stack([np.asarray(image) for image in images(n, seed=n)])
        np.testing.assert_array_equal(own.image[:][..., 0], expected)
        np.testing.assert_array_equal(own.label, np.arange(n) % 3)


@pytest.mark.parametrize("memory_mb", [4096, 0])
def test_a_saved_data_set_keeps_its_splits_and_class_names(tmp_path: pathlib.Path, memory_mb: int):
    tables().save_to_disk(tmp_path / "saved")
    d = load(tmp_path / "saved", memory_mb=memory_mb)
    check(d)
    assert isinstance(d.train.image, data.Stream) == (memory_mb == 0)
    assert "images are grey, so data.channels=1" in d.notes


def test_a_folder_of_parquet_files_is_a_data_set(tmp_path: pathlib.Path):
    (tmp_path / "files").mkdir()
    for split, one in tables().items():
        one.to_parquet(tmp_path / "files" / f"{split}-00000-of-00001.parquet")
    check(load(tmp_path / "files"))


def test_a_name_is_looked_up_in_the_cache_of_the_library(tmp_path: pathlib.Path):
    """The cache as the library leaves it after a download, filled by the library's own writer."""
    folder = tmp_path / "library" / "someone___animals" / "plain" / "0.0.0" / ("0" * 40)
    (tmp_path / "files").mkdir()
    for split, one in tables().items():
        one.to_parquet(tmp_path / "files" / f"{split}.parquet")
    builder = datasets.load_dataset_builder("parquet", data_dir=str(tmp_path / "files"))
    builder.download_and_prepare()
    folder.parent.mkdir(parents=True)
    os.rename(builder.cache_dir, folder)
    for file in folder.glob("parquet-*.arrow"):
        file.rename(file.with_name(file.name.replace("parquet-", "animals-")))
    info = folder / "dataset_info.json"
    info.write_text(json.dumps(json.loads(info.read_text()) | {"config_name": "plain"}))
    check(load("someone/animals"))
    check(load("someone/animals:plain"))


def test_a_data_set_that_is_saved_anew_is_seen(tmp_path: pathlib.Path):
    table(40).save_to_disk(tmp_path / "saved")
    before = load(tmp_path / "saved").train.image[:]
    table(40, seed=1).save_to_disk(tmp_path / "saved")
    after = load(tmp_path / "saved").train.image[:]
    assert before.shape == after.shape and (before != after).any()


def test_labels_are_words_switches_numbers_or_another_column(tmp_path: pathlib.Path):
    kinds = np.array(["wild", "tame"])[np.arange(30) // 3 % 2].tolist()
    young = (np.arange(30) // 5 % 2 == 1).tolist()
    one = table(30, kind=kinds, young=young, age=list(range(30)))
    splits = {"train": one.select(range(20)), "test": one.select(range(20, 30))}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")

    def labels(column: str):
        d = load(f"{tmp_path}/saved#{column}", validation=0.2)
        return d.classes, sum(int(split.label.sum()) for split in d[4:7])

    assert labels("kind") == (("tame", "wild"), 15)
    assert labels("young") == (("not young", "young"), 15)
    assert labels("label") == (NAMES, 30)
    with pytest.raises(UserError, match="has no column yuong; nearest: young"):
        labels("yuong")


def test_a_split_whose_labels_are_hidden_is_left_out(tmp_path: pathlib.Path):
    splits = tables()
    hidden = splits["test"].remove_columns("label").add_column("label", [-1] * 6)
    splits["test"] = hidden.cast_column("label", datasets.ClassLabel(names=list(NAMES)))
    splits.save_to_disk(tmp_path / "saved")
    d = load(tmp_path / "saved")
    assert "the split test has no labels and is left out" in d.notes
    assert len(d.train.image) + len(d.test.image) == 30


def test_without_labels_there_are_no_classes(tmp_path: pathlib.Path):
    table(30).remove_columns("label").save_to_disk(tmp_path / "saved")
    d = load(tmp_path / "saved")
    assert d.classes == () and d.train.label is None


def test_images_of_several_sizes_want_one(tmp_path: pathlib.Path):
    one = table(20)
    other = table(20, mode="RGB")
    wide = datasets.Dataset.from_dict({"image": images(2, "RGB", (9, 30)), "label": [0, 1]})
    wide = wide.cast(other.features)
    datasets.concatenate_datasets([one, other, wide]).save_to_disk(tmp_path / "saved")
    with pytest.raises(UserError, match=r"^data\.size=0: .* have 2 sizes; want one side"):
        load(tmp_path / "saved")
    assert load(tmp_path / "saved", size=(5, 4)).shape == (5, 4, 3)
    assert load(tmp_path / "saved", size=7, channels=1).shape == (7, 7, 1)


def write_damaged(folder: pathlib.Path):
    good = [hub_bytes(image) for image in images(20)]
    good[3] = good[3][:50]
    rows = {"image": [{"bytes": value, "path": None} for value in good]}
    one = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    one.save_to_disk(folder)


def hub_bytes(image: PIL.Image.Image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def write_no_images(folder: pathlib.Path):
    datasets.Dataset.from_dict({"text": ["a", "b"]}).save_to_disk(folder)


def write_no_train(folder: pathlib.Path):
    datasets.DatasetDict({"test": table(9)}).save_to_disk(folder)


def write_cut(folder: pathlib.Path):
    table(20).save_to_disk(folder)
    (file,) = folder.glob("*.arrow")
    file.write_bytes(file.read_bytes()[:300])


def write_nothing(folder: pathlib.Path):
    folder.mkdir()


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (write_damaged, "train image 3: not readable"),
        (write_no_images, r"its columns \(text\) have no images"),
        (write_no_train, "has no split 'train', only test"),
        (write_cut, "cannot be read"),
        (write_nothing, "cannot be read"),
    ],
)
def test_a_wrong_data_set_is_one_line(
    tmp_path: pathlib.Path, write: Callable[[pathlib.Path], None], message: str
):
    write(tmp_path / "saved")
    with pytest.raises(UserError, match=message) as error:
        load(tmp_path / "saved")
    assert str(error.value).startswith("data.name=hf:") and "\n" not in str(error.value)


def test_a_name_that_is_not_on_this_disk_says_how_it_comes_there():
    with pytest.raises(UserError, match=r"datasets\.load_dataset\('someone/none', 'v2'\)") as error:
        load("someone/none:v2")
    assert "\n" not in str(error.value)


def test_without_the_library_a_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(UserError, match=r"wants the library datasets; pip install"):
        load("someone/animals")


def test_the_parts_of_a_name():
    assert hub.split_name("hf:a/b") == ("a/b", None, None)
    assert hub.split_name("hf:a/b:plain#fine label") == ("a/b", "plain", "fine label")
    assert hub.split_name("hf:/x.y/b#z") == ("/x.y/b", None, "z")
    with pytest.raises(UserError, match="want hf:NAME"):
        hub.split_name("hf:")
