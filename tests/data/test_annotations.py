"""COCO folders: boxes follow their image, splits are drawn by name, what is wrong is one line."""

import json
import pathlib
import re
from typing import Any

import jax
import numpy as np
import PIL.Image
import pytest

from benchmarks import parity
from tests.data.common import config
from vae_jax import config as config_lib
from vae_jax import data, models
from vae_jax.config import UserError
from vae_jax.data import annotations
from vae_jax.data.predict import convert
from vae_jax.train import checkpoint, identity

WIDTH = 24
HEIGHT = 16


def picture(boxes: list[list[int]], size: tuple[int, int] = (WIDTH, HEIGHT)) -> PIL.Image.Image:
    """White boxes on black."""
    pixels = np.zeros((size[1], size[0]), np.uint8)
    for x, y, w, h in boxes:
        pixels[y : y + h, x : x + w] = 255
    return PIL.Image.fromarray(pixels)


def write(place: pathlib.Path, count: int = 12, **changes: Any) -> dict:
    """``count`` PNG files with 0 to 2 boxes and their annotations.json; returns its content."""
    rng = np.random.default_rng(0)
    place.mkdir(parents=True, exist_ok=True)
    content = {"images": [], "annotations": []}
    content["categories"] = [{"id": 7, "name": "dog"}, {"id": 3, "name": "cat"}]
    for i in range(count):
        boxes = []
        for _ in range(i % 3):
            x, y = rng.integers(0, (WIDTH - 6, HEIGHT - 6))
            boxes.append([int(x), int(y), 5, 6])
        picture(boxes).save(place / f"{i}.png")
        entry = {"id": 100 + i, "file_name": f"{i}.png", "width": WIDTH, "height": HEIGHT}
        content["images"].append(entry)
        for box in boxes:
            number = len(content["annotations"])
            entry = {"id": number, "image_id": 100 + i, "category_id": 3 + 4 * (number % 2)}
            content["annotations"].append(entry | {"bbox": box})
    save(place, content | changes)
    return content


def save(place: pathlib.Path, content: Any) -> None:
    (place / "annotations.json").write_text(json.dumps(content))


def load(place: pathlib.Path, **fields: Any) -> data.Dataset:
    options = {"size": (HEIGHT, WIDTH), "channels": 0, "validation": 0.25}
    return data.load(config(name=f"folder:{place}", **(options | fields)))


def test_objects_and_counts_of_a_folder(tmp_path: pathlib.Path):
    content = write(tmp_path, 30)
    d = load(tmp_path)
    assert d.shape == (HEIGHT, WIDTH, 1) and d.classes == ("0", "1", "2")
    assert "objects of 2 classes: cat, dog" in d.notes
    classes = []
    for split in d[4:7]:
        assert split.objects.shape[1:] == (2, 5) and split.objects.dtype == np.int32
        np.testing.assert_array_equal((split.objects[..., 4] >= 0).sum(1), split.label)
        for image, objects in zip(split.image, split.objects, strict=True):
            boxes = objects[objects[:, 4] >= 0][:, :4]
            drawn = np.asarray(picture(boxes.tolist()))
            np.testing.assert_array_equal(image[..., 0], drawn)
        classes += split.objects[..., 4][split.objects[..., 4] >= 0].tolist()
    count = len(content["annotations"])
    assert sorted(classes) == sorted(i % 2 for i in range(count)), "in order of the ids"
    streamed = load(tmp_path, memory_mb=0)
    assert isinstance(streamed.train.image, data.Stream)
    np.testing.assert_array_equal(streamed.train.objects, d.train.objects)


def test_other_images_move_none_and_a_changed_box_is_seen(tmp_path: pathlib.Path):
    write(tmp_path, 30)
    before = {bytes(image) for image in np.asarray(load(tmp_path).test.image)}
    content = write(tmp_path, 40)
    after = {bytes(image) for image in np.asarray(load(tmp_path).test.image)}
    assert before <= after
    content["annotations"] = content["annotations"][:1]
    save(tmp_path, content)
    assert sum(split.label.sum() for split in load(tmp_path)[4:7]) == 1


def test_folders_of_splits(tmp_path: pathlib.Path):
    write(tmp_path / "train", 12)
    write(tmp_path / "test", 3)
    d = load(tmp_path)
    assert len(d.train.image) + len(d.validation.image) == 12
    np.testing.assert_array_equal(d.test.label, [0, 1, 2])
    content = write(tmp_path / "val", 3)
    assert len(load(tmp_path).validation.image) == 3
    save(tmp_path / "val", content | {"categories": [{"id": 3}, {"id": 7, "name": "fox"}]})
    with pytest.raises(UserError, match=r"val/annotations\.json: want train's categories"):
        load(tmp_path)
    write(tmp_path / "valid", 3)
    with pytest.raises(UserError, match="val/ and valid/ are both for validation"):
        load(tmp_path)


@pytest.mark.parametrize("shape", [(8, 12), (16, 16), (20, 10), (32, 48)])
def test_boxes_are_resized_and_cropped_with_their_image(shape: tuple[int, int]):
    """A box is where its pixels are after the conversion, up to a pixel that is half covered."""
    rng = np.random.default_rng(1)
    gaps = []
    for _ in range(60):
        x, y = rng.integers(0, (36, 28))
        w, h = rng.integers(8, 13, 2)
        box = [int(x), int(y), int(w), int(h)]
        image = convert(picture([box], (48, 40)), (*shape, 1))[..., 0] >= 128
        rows = annotations.place_boxes(np.array([[*box, 1.0]]), (48, 40), shape)
        if not len(rows):
            assert not image.any()
            continue
        left, top, wide, high, _ = rows[0]
        assert left >= 0 and top >= 0 and left + wide <= shape[1] and top + high <= shape[0]
        if image.sum() < 4:
            continue
        lit_y, lit_x = np.nonzero(image)
        lit = [lit_x.min(), lit_y.min(), lit_x.max() + 1, lit_y.max() + 1]
        gaps.append(np.abs(np.array([left, top, left + wide, top + high]) - lit))
    assert len(gaps) > 20 and np.max(gaps) <= 1 and np.mean(gaps) < 0.3


def test_a_box_on_the_edge_keeps_a_pixel_and_crowds_are_left_out(tmp_path: pathlib.Path):
    rows = np.array([[47.9, 0.0, 0.1, 0.1, 2.0]])
    np.testing.assert_array_equal(
        annotations.place_boxes(rows, (48, 48), (8, 8)), [[7, 0, 1, 1, 2]]
    )
    content = write(tmp_path)
    for one in content["annotations"][1:]:
        one["iscrowd"] = 1
    save(tmp_path, content)
    assert sum(split.label.sum() for split in load(tmp_path)[4:7]) == 1


def entry(key: str, **fields: Any):
    """A change of the first entry of a list."""
    return lambda content: content[key][0].update(fields)


def twice(key: str):
    return lambda content: content[key].append(dict(content[key][0]))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (entry("annotations", bbox=[20, 2, 5, 6]), "bbox=[20.0, 2.0, 5.0, 6.0] lies outside"),
        (entry("annotations", bbox=[-2, 2, 5, 6]), "lies outside the image of 24x16"),
        (
            entry("annotations", bbox=[2, 2, -5, 6]),
            "annotation 0: bbox=[2, 2, -5, 6]: want a width",
        ),
        (entry("annotations", bbox=[2, 2, 0, 6]), "want a width and a height > 0"),
        (entry("annotations", bbox=[2, 2, 5]), "want [x, y, w, h], numbers"),
        (entry("annotations", bbox=[2, 2, 5, float("nan")]), "want [x, y, w, h], numbers"),
        (entry("annotations", bbox=[2, 2, 5, 10**400]), "want [x, y, w, h], numbers"),
        (entry("annotations", category_id=9), "annotation 0: category_id=9 is not in the file"),
        (entry("annotations", image_id=9), "annotation 0: image_id=9 is not in the file"),
        (entry("annotations", image_id=[9]), "image_id=[9] is not in the file"),
        (entry("images", file_name="x.png"), "image 100: file_name=x.png: no such file in"),
        (entry("images", file_name="../x.png"), "want a path below the folder"),
        (entry("images", file_name=3), "file_name=3: want a path below the folder"),
        (entry("images", width=23), "is said to be 23x16, width x height: the file has 24x16"),
        (entry("images", height="16"), "height=16: want a whole number > 0"),
        (entry("images", id=None), "images[0]: id=None: want a whole number"),
        (twice("images"), "images[12]: id=100 is there twice"),
        (twice("categories"), "categories[2]: id=7 is there twice"),
        (twice("annotations"), "annotations[12]: id=0 is there twice"),
        (lambda content: content.pop("images"), "images: want a list of JSON objects"),
        (lambda content: content["annotations"].append(3), "annotations: want a list of JSON"),
        (lambda content: content["images"].clear(), "images: the list is empty"),
        (lambda content: content["annotations"].clear(), "has no objects; want one or more"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: pathlib.Path, change: Any, words: str):
    content = write(tmp_path)
    change(content)
    save(tmp_path, content)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load(tmp_path)
    assert "\n" not in str(error.value) and "data.name=folder:" in str(error.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b'{"images": [', "no JSON (Expecting value"),
        (b"\xff\xfe\x00", "no JSON ("),
        (b"[" * 200_000, "nested too deep for JSON of annotations"),
        (b'{"images": ' + b"9" * 5000 + b"}", "no JSON ("),
        (b"[1, 2]", "images: want a list of JSON objects"),
    ],
)
def test_a_file_that_is_no_json_is_one_line(tmp_path: pathlib.Path, text: bytes, words: str):
    write(tmp_path)
    (tmp_path / "annotations.json").write_bytes(text)
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_an_image_that_is_none_and_augmentations_are_one_line(tmp_path: pathlib.Path):
    write(tmp_path)
    with pytest.raises(UserError, match=r"data\.shift=1: scenes keep their boxes"):
        load(tmp_path, shift=1)
    (tmp_path / "3.png").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"3\.png: not a readable image"):
        load(tmp_path)


def test_a_detector_trains_on_a_folder(tmp_path: pathlib.Path):
    write(tmp_path, 30)
    c = config_lib.default()
    c.data.name = f"folder:{tmp_path}"
    c.data.size = 16
    c.batch = 8
    c.encoder = config_lib.call("encoder", "mlp", widths=(8,))
    c.decoder = config_lib.call("decoder", "none")
    c.model = config_lib.call("model", "detector", grid=4, classes=2, widths=())
    c.objective = config_lib.call("objective", "detection")
    config_lib.validate(c)
    losses, _ = parity.trace(c, jax.devices()[:1], 3)
    assert len(losses) == 3 and np.isfinite(losses).all()
    c.model.classes = 1
    with pytest.raises(UserError, match=r"model\.classes=1: the boxes are of 2 classes; want 2"):
        models.build_for(c, data.load(c.data))


def test_a_box_that_moved_is_other_data(tmp_path: pathlib.Path):
    """The images are as they were; runs of before boxes were looked at go on."""
    content = write(tmp_path / "boxes", 30)
    c = config(name=f"folder:{tmp_path / 'boxes'}", size=(HEIGHT, WIDTH), channels=0)
    before = data.load(c)
    checkpoint.write_json(tmp_path / "data.json", data.identity(before) | {"sources": {}})
    whole = config_lib.default()
    whole.data = c
    identity.check(str(tmp_path), whole, before)
    for box in content["annotations"]:
        box["bbox"][0] += 1
    save(tmp_path / "boxes", content)
    moved = data.load(c)
    assert data.identity(moved)["splits"] == data.identity(before)["splits"]
    with pytest.raises(UserError, match=r"its data changed since it was trained \(objects"):
        identity.check(str(tmp_path), whole, moved)
    old = data.identity(before)
    del old["objects"]
    checkpoint.write_json(tmp_path / "data.json", old)
    identity.check(str(tmp_path), whole, moved)
