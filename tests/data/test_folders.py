"""Folders of images as people and machines leave them."""

import os
import pathlib
import shutil
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import PIL.Image
import pytest

from tests.data.common import config, folder_of_images
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import predict


def test_folder_of_classes(tmp_path: pathlib.Path):
    folder_of_images(tmp_path / "images", {"cat": 20, "dog": 10})
    (tmp_path / "images" / "cat" / ".hidden.png").write_bytes(b"no image")
    (tmp_path / "images" / "cat" / "notes.txt").write_text("no image")
    c = config(name=f"folder:{tmp_path / 'images'}", size=7, validation=0.25)
    d = data.load(c)
    assert d.shape == (7, 7, 3) and d.classes == ("cat", "dog") and d.levels == 256
    assert sum(len(s.image) for s in d[4:7]) == 30
    assert all(set(s.label) == {0, 1} for s in d[4:7])
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


def test_folder_with_train_and_test(tmp_path: pathlib.Path):
    folder_of_images(tmp_path / "train", {"a": 6, "b": 6})
    folder_of_images(tmp_path / "test", {"a": 1, "b": 2})
    d = data.load(config(name=f"folder:{tmp_path}", size=8, validation=0.5))
    assert len(d.train.image) + len(d.validation.image) == 12
    assert all(set(s.label) == {0, 1} for s in d[4:7])
    np.testing.assert_array_equal(d.test.label, [0, 1, 1])


def test_images_of_every_mode_and_size(tmp_path: pathlib.Path):
    def read(
        image: PIL.Image.Image,
        suffix: str = "png",
        size: int | tuple[int, int] = 4,
        channels: int = 3,
        **options: Any,
    ):
        image.save(tmp_path / f"x.{suffix}", **options)
        return predict.read(tmp_path / f"x.{suffix}", (size, size, channels))

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
    np.testing.assert_array_equal(
        read(PIL.Image.fromarray(bands), channels=1), np.full((4, 4, 1), 120)
    )
    upright = np.uint8([[0, 0, 0, 0], [0, 0, 0, 0], [255, 255, 255, 255], [255, 255, 255, 255]])
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # stored turned by a quarter
    np.testing.assert_array_equal(
        read(PIL.Image.fromarray(np.rot90(upright)), channels=1, exif=exif)[..., 0], upright
    )


def _empty(root: pathlib.Path):
    root.mkdir()


def _no_images(root: pathlib.Path):
    folder_of_images(root, {"a": 4})
    (root / "b").mkdir()


def _one_image(root: pathlib.Path):
    folder_of_images(root, {"a": 4, "b": 1})


def _unreadable(root: pathlib.Path):
    folder_of_images(root, {"a": 4, "b": 4})
    (root / "b" / "2.png").write_bytes((root / "b" / "1.png").read_bytes()[:40])


def _test_class_unknown(root: pathlib.Path):
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
def test_bad_folders_are_one_line(
    tmp_path: pathlib.Path, make: Callable[[pathlib.Path], None], message: str
):
    make(tmp_path / "images")
    with pytest.raises(UserError, match=message) as error:
        data.load(config(name=f"folder:{tmp_path / 'images'}", size=8))
    assert "\n" not in str(error.value) and not list(tmp_path.glob("cache/*/*image.npy*"))


def test_folder_needs_a_size(tmp_path: pathlib.Path):
    with pytest.raises(UserError, match=r"^data\.size=0: want"):
        data.load(config(name=f"folder:{tmp_path}"))


def load(root: pathlib.Path, size: int | tuple[int, int] = 8, **changes: Any):
    return data.load(config(name=f"folder:{root}", size=size, **changes))


def pixels(dataset: data.Dataset):
    """All images of a data set with their labels, in order of their bytes."""
    rows = []
    for split in dataset[4:7]:
        for image, label in zip(split.image[:], split.label, strict=True):
            rows.append((image.tobytes(), int(label)))
    return sorted(rows)


def noise(root: pathlib.Path, classes: Iterable[str], n: int, seed: int = 0, mode: str = "RGB"):
    """n images of noise in each class, all different."""
    rng = np.random.default_rng(seed)
    for name in classes:
        (root / name).mkdir(parents=True, exist_ok=True)
        for i in range(n):
            shape = (8, 8, 3) if mode == "RGB" else (8, 8)
            image = PIL.Image.fromarray(rng.integers(0, 256, shape, np.uint8))
            image.save(root / name / f"{seed}_{i}.png")


# ---- links --------------------------------------------------------------------------------------


def test_links_to_folders_and_files_are_followed(tmp_path: pathlib.Path):
    noise(tmp_path / "real", "ab", 12)
    linked = tmp_path / "linked"
    (linked / "b").mkdir(parents=True)
    (linked / "a").symlink_to(tmp_path / "real" / "a")
    (linked / "b" / "below").symlink_to(tmp_path / "real" / "b")
    (linked / "b" / "below" / "circle").symlink_to(linked / "b")
    assert pixels(load(linked)) == pixels(load(tmp_path / "real"))
    files = tmp_path / "files"
    for name in "ab":
        (files / name).mkdir(parents=True)
        for file in (tmp_path / "real" / name).glob("*.png"):
            (files / name / file.name).symlink_to(file)
    assert pixels(load(files)) == pixels(load(tmp_path / "real"))


def test_a_link_to_the_folder_of_classes_brings_no_other_class(tmp_path: pathlib.Path):
    noise(tmp_path / "images", "ab", 12)
    before = pixels(load(tmp_path / "images"))
    (tmp_path / "images" / "a" / "up").symlink_to(tmp_path / "images")
    assert pixels(load(tmp_path / "images")) == before


def test_an_image_of_the_same_name_and_size_behind_a_link_is_seen(tmp_path: pathlib.Path):
    noise(tmp_path / "real", "ab", 6)
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).symlink_to(tmp_path / "real" / name)
    before = pixels(load(tmp_path / "images"))
    file = tmp_path / "real" / "a" / "0_1.png"
    file.write_bytes((tmp_path / "real" / "b" / "0_1.png").read_bytes())
    assert pixels(load(tmp_path / "images")) != before


@pytest.mark.parametrize("memory_mb", [4096, 0])
def test_images_that_are_replaced_behind_a_link_are_seen(tmp_path: pathlib.Path, memory_mb: int):
    noise(tmp_path / "real", "ab", 12)
    (tmp_path / "images").mkdir()
    for name in "ab":
        (tmp_path / "images" / name).symlink_to(tmp_path / "real" / name)
    before = pixels(load(tmp_path / "images", memory_mb=memory_mb))
    for i in range(12):  # some leave their class, as when labels are mended
        if i % 3 == 0:
            shutil.move(
                tmp_path / "real" / "a" / f"0_{i}.png", tmp_path / "real" / "b" / f"{i}.png"
            )
    after = load(tmp_path / "images", memory_mb=memory_mb)
    shutil.copytree(tmp_path / "real", tmp_path / "copy")
    assert pixels(after) != before
    assert pixels(after) == pixels(load(tmp_path / "copy"))


def test_a_link_that_leads_nowhere_is_an_unreadable_image(tmp_path: pathlib.Path):
    noise(tmp_path, "ab", 6)
    (tmp_path / "a" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UserError, match=r"a/lost\.png: not a readable image"):
        load(tmp_path)


# ---- splits and hidden folders ------------------------------------------------------------------


@pytest.mark.parametrize("names", [("train", "val"), ("Training", "valid", "Test")])
def test_folders_of_splits_are_splits(tmp_path: pathlib.Path, names: tuple[str, ...]):
    for i, name in enumerate(names):
        noise(tmp_path / name, "ab", 5 + i, seed=i)
    d = load(tmp_path)
    assert d.classes == ("a", "b") and len(d.validation.image) == 12
    if len(names) == 3:
        assert [len(s.image) for s in d[4:7]] == [10, 12, 14]
    else:
        assert len(d.train.image) + len(d.test.image) == 10


def test_classes_that_are_called_as_splits_stay_classes(tmp_path: pathlib.Path):
    noise(tmp_path, ("train", "bus", "car"), 6)
    assert load(tmp_path).classes == ("bus", "car", "train")


def test_splits_without_train_are_one_line(tmp_path: pathlib.Path):
    noise(tmp_path / "val", "ab", 6)
    noise(tmp_path / "test", "ab", 6)
    with pytest.raises(UserError, match=r"has test/ and val/, but no train/"):
        load(tmp_path)


def test_hidden_folders_and_other_files_are_never_data(tmp_path: pathlib.Path):
    noise(tmp_path / "images", "ab", 8)
    shutil.copytree(tmp_path / "images", tmp_path / "clean")
    for name in (".ipynb_checkpoints", "@eaDir/0_1.png", "#recycle", "__MACOSX"):
        for place in (tmp_path / "images", tmp_path / "images" / "a"):
            noise(place, (name,), 2, seed=9)
    for name in ("x.heic", "y.HEIC", "notes.txt", "README"):
        (tmp_path / "images" / "b" / name).touch()
    os.mkfifo(tmp_path / "images" / "b" / "pipe.png")
    d = load(tmp_path / "images")
    assert pixels(d) == pixels(load(tmp_path / "clean"))
    left_out = "5 files that are no images are left out (1 without suffix, 1 .txt, 1 .png, 2 .heic)"
    assert sorted(d.notes[0].split("(")[1][:-1].split(", ")) == sorted(
        left_out.split("(")[1][:-1].split(", ")
    )
    found = list(predict.files([str(tmp_path / "images")]))
    assert len(found) == 16 and not any("@" in str(f) or "MAC" in str(f) for f in found)


def test_a_pipe_that_is_named_as_an_image_is_refused(tmp_path: pathlib.Path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ValueError, match=r"pipe\.png: not a readable image \(no regular file\)"):
        predict.read(tmp_path / "pipe.png", (8, 8, 3))


# ---- names --------------------------------------------------------------------------------------


def test_names_that_are_not_utf8_are_read_and_escaped(tmp_path: pathlib.Path):
    root = tmp_path / "images"
    noise(root, ("plain", os.fsdecode(b"caf\xe9"), "red\x1b[31m", "日本"), 6)
    os.rename(root / "plain" / "0_1.png", os.fsencode(root / "plain") + b"/r\xe9.png")
    (root / os.fsdecode(b"r\xe9sum\xe9.txt")).touch()
    d = load(root)
    assert set(d.classes) == {"plain", r"caf\xe9", r"red\x1b[31m", "日本"}
    assert len(pixels(d)) == 24
    (root / os.fsdecode(b"caf\xe9") / "0_2.png").write_bytes(b"no image")
    with pytest.raises(UserError) as error:
        load(root)
    assert r"caf\xe9/0_2.png" in str(error.value)
    str(error.value).encode()


def test_all_unreadable_images_are_named_at_once(tmp_path: pathlib.Path):
    root = tmp_path / "images"
    noise(root / "train", "ab", 8)
    noise(root / "test", "ab", 8)
    bad = ["train/a/0_3.png", "train/b/0_5.png", "test/b/0_0.png"]
    for name in bad:
        (root / name).write_bytes((root / name).read_bytes()[:60])
    with pytest.raises(UserError, match="3 images cannot be read") as error:
        load(root)
    assert all(name in str(error.value) for name in bad) and "\n" not in str(error.value)


# ---- splits of a folder that grows, channels ----------------------------------------------------


def test_a_folder_that_grows_keeps_its_splits(tmp_path: pathlib.Path):
    root = tmp_path / "images"
    noise(root, "ab", 50)
    before = load(root)
    noise(root, "ab", 3, seed=1)
    os.rename(root / "b", root / "c")
    after = load(root)
    for name in ("train", "validation", "test"):
        old = {image.tobytes() for image in getattr(before, name).image}
        new = {image.tobytes() for image in getattr(after, name).image}
        assert old <= new


@pytest.mark.parametrize("kind", ["grey", "grey stored as colour", "colour"])
def test_channels_are_found_by_looking(tmp_path: pathlib.Path, kind: str):
    root = tmp_path / "images"
    noise(root, "ab", 6, mode="RGB" if kind == "colour" else "L")
    if kind == "grey stored as colour":
        for file in root.glob("*/*.png"):
            PIL.Image.open(file).convert("RGB").save(file)
    d = load(root, channels=0)
    assert d.shape == ((8, 8, 3) if kind == "colour" else (8, 8, 1))
    assert f"so data.channels={d.shape[2]}" in d.notes[0]
    assert load(root, channels=3).shape == (8, 8, 3)


def test_rectangles_are_not_cropped_without_a_word(tmp_path: pathlib.Path):
    root = tmp_path / "images"
    noise(root, "ab", 6)
    assert not any("proportions" in note for note in load(root).notes)
    PIL.Image.new("L", (640, 480)).save(root / "a" / "wide.png")
    (note,) = [note for note in load(root).notes if "proportions" in note]
    assert note == (
        "1 of 13 images looked at have other proportions (such as 480x640, height x width): "
        "of each the middle is used, at 8x8"
    )


def test_a_size_of_height_and_width_keeps_rectangles_whole(tmp_path: pathlib.Path):
    rng = np.random.default_rng(0)
    rows = {}
    for split in ("train", "validation", "test"):
        for name in "ab":
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            for i in range(3):
                image = rng.integers(0, 256, (12, 9, 3), np.uint8)
                PIL.Image.fromarray(image).save(folder / f"{i}.png")
                rows.setdefault(split, []).append(image)
    d = load(tmp_path, size=(12, 9))
    assert d.shape == (12, 9, 3) and not any("proportions" in note for note in d.notes)
    for split, images in rows.items():
        np.testing.assert_array_equal(getattr(d, split).image[:], np.stack(images))
    assert load(tmp_path, size=(4, 3)).shape == (4, 3, 3)
    assert "12x9" in " ".join(load(tmp_path, size=6).notes)
    for size in ((12,), (12, 0), (12, 9, 3), "12x9", 1.5):
        with pytest.raises(UserError, match=r"^data\.size=.*: want the side of the images"):
            load(tmp_path, size=size)


def test_a_data_set_of_rectangles_is_ood_for_another(tmp_path: pathlib.Path):
    folder_of_images(tmp_path / "a", {"x": 8, "y": 8})
    c = config(name=f"folder:{tmp_path / 'a'}", size=(12, 9), channels=3)
    d = data.load(c)
    assert data.foreign("synthetic", c, d, 5).image.shape == (5, 12, 9, 3)
    assert data.foreign("digits", c, d, 5).image.shape == (5, 12, 9, 3)
