"""Folders of images with boxes: ``folder:PATH`` with a COCO file ``annotations.json``.

The file is PATH/annotations.json, its images anywhere below PATH; or there is one in each of
PATH/train, PATH/val and PATH/test, as folders of classes have them. It is a JSON object of three
lists (Lin et al. 2014, arXiv:1405.0312):

- ``images``: ``{"id", "file_name"}``, and ``width`` and ``height`` where they are to be checked;
- ``categories``: ``{"id", "name"}``;
- ``annotations``: ``{"id", "image_id", "category_id", "bbox": [x, y, w, h]}`` in pixels of the
  upright image. Those with ``iscrowd`` are left out.

It is a data set of scenes: the label of an image is its number of objects, and the classes of the
objects are the categories in order of their ids. Boxes are resized and cropped with their image.
"""

import hashlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from vae_jax.config import UserError
from vae_jax.data import cache, folders, paths
from vae_jax.data.arrays import sides
from vae_jax.data.folders import Row
from vae_jax.data.predict import printable
from vae_jax.data.sources import Sources, parallel

FILE = "annotations.json"
SLACK = 0.5  # pixels that a box may reach beyond its image
LISTS = ("images", "categories", "annotations")


class Annotated(NamedTuple):
    """What one file says, checked."""

    place: pathlib.Path  # the folder of its images
    names: list[str]  # of the image files
    boxes: list[np.ndarray]  # of each image Mx5: x, y, w, h in its own pixels, class
    categories: list[str]
    sizes: list[tuple[int, int] | None]  # (width, height) that the file says of each image


def is_annotated(name: str) -> bool:
    """Whether ``folder:PATH`` has an annotation file, for all images or for those of training."""
    root = paths.expand(name.removeprefix("folder:"), "data.name")
    try:
        train = _split_folders(name, root).get("train", root)
        return (root / FILE).is_file() or (train / FILE).is_file()
    except OSError:  # named where the folder is read
        return False


def _split_folders(name: str, root: pathlib.Path) -> dict[str, pathlib.Path]:
    """{split: its folder} of the annotated sub-folders that are named as splits."""
    parts = {}
    if not root.is_dir():
        return parts
    for place in sorted(root.iterdir()):
        split = folders.SPLITS.get(place.name.lower())
        if not split or not (place / FILE).is_file():
            continue
        if split in parts:
            both = f"{parts[split].name}/ and {place.name}/"
            raise UserError(f"data.name={name}: {both} are both for {split}; want one of them")
        parts[split] = place
    return parts


def folder(name: str, size: int | tuple[int, int], channels: int) -> Sources:
    """The images of an annotated folder and their objects [N, M, 5], as ``folders.folder`` reads.

    Raises:
      UserError: one line that names the file, the entry and what is wrong with it.
    """
    root = paths.expand(name.removeprefix("folder:"), "data.name")
    name = printable(name)
    parts = {"train": root} if (root / FILE).is_file() else _split_folders(name, root)
    files = {split: read(name, place) for split, place in parts.items()}
    categories = files["train"].categories
    for one in files.values():
        if one.categories != categories:
            raise UserError(f"data.name={name}: {one.place.name}/{FILE}: want train's categories")
    shape = (*sides(size), channels)
    objects = {}
    rows = {}
    for split, one in files.items():
        objects[split] = _on_canvas(name, one, shape[:2])
        rows[split] = []
        for file, inside in zip(one.names, objects[split], strict=True):
            rows[split].append(Row(one.place / file, file, len(inside)))
    most = max(row.label for own in rows.values() for row in own)
    if not most:
        raise UserError(f"data.name={name}: {FILE} has no objects; want one or more")
    found = folders.sources_of(name, root, rows, size, channels, _version(root, parts, rows))
    splits = {}
    for split, source in found.splits.items():
        splits[split] = source._replace(objects=_padded(objects[split], most))
    note = f"objects of {len(categories)} classes: {', '.join(map(printable, categories))}"
    return found._replace(
        classes=tuple(map(str, range(most + 1))), splits=splits, notes=(*found.notes, note)
    )


def _version(root: pathlib.Path, parts: dict, rows: dict[str, list[Row]]) -> str:
    """A hash of the annotation files, and of the images' places, sizes and times."""
    digest = hashlib.sha256(folders.version(root, rows).encode())
    for place in parts.values():
        digest.update(cache.stamp(place / FILE))
    return digest.hexdigest()


def _padded(objects: list[np.ndarray], most: int) -> np.ndarray:
    """int32 [N, M, 5]; rows beyond the objects of an image are (0, 0, 0, 0, −1)."""
    rows = np.zeros((len(objects), most, 5), np.int32)
    rows[..., 4] = -1
    for row, inside in zip(rows, objects, strict=True):
        row[: len(inside)] = inside
    return rows


# --- The file ---


def read(name: str, place: pathlib.Path) -> Annotated:
    """The annotation file of a folder."""
    where = f"data.name={name}: {printable(place / FILE)}"
    lists = _lists(where, place / FILE)
    images = _by_id(where, "images", lists["images"])
    categories = _by_id(where, "categories", lists["categories"])
    _by_id(where, "annotations", lists["annotations"])
    names = []
    sizes = []
    for key, image in images.items():
        names.append(_file_name(f"{where}: image {key}", place, image.get("file_name")))
        sizes.append(_size(f"{where}: image {key}", image))
    order = sorted(categories, key=lambda key: (isinstance(key, str), key))
    number = {key: i for i, key in enumerate(order)}
    rows = {key: [] for key in images}
    for one in lists["annotations"]:
        entry = f"{where}: annotation {one['id']}"
        for field, known in (("image_id", images), ("category_id", categories)):
            if not _is_id(one.get(field)) or one[field] not in known:
                raise UserError(f"{entry}: {field}={_short(one.get(field))} is not in the file")
        box = _box(entry, one.get("bbox"))
        if not one.get("iscrowd"):
            rows[one["image_id"]].append([*box, number[one["category_id"]]])
    boxes = [np.array(own, float).reshape(-1, 5) for own in rows.values()]
    titles = [str(categories[key].get("name", key)) for key in order]
    return Annotated(place, names, boxes, titles, sizes)


def _lists(where: str, file: pathlib.Path) -> dict[str, list[dict]]:
    """The three lists of the file, each of objects."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise UserError(f"{where}: cannot be read ({error.strerror})") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deep for JSON of annotations") from None
    except ValueError as error:  # also bytes that are not UTF-8, and numbers of too many digits
        why = printable(" ".join(str(error).split())[:100])
        raise UserError(f"{where}: no JSON ({why})") from None
    for key in LISTS:
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise UserError(f"{where}: {key}: want a list of JSON objects")
    if not content["images"]:
        raise UserError(f"{where}: images: the list is empty; want one or more")
    return content


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _by_id(where: str, key: str, rows: list[dict]) -> dict[int | str, dict]:
    """{id: entry} of a list, whose ids differ."""
    entries = {}
    for place, row in enumerate(rows):
        own = row.get("id")
        if not _is_id(own):
            raise UserError(f"{where}: {key}[{place}]: id={_short(own)}: want a whole number")
        if own in entries:
            raise UserError(f"{where}: {key}[{place}]: id={_short(own)} is there twice")
        entries[own] = row
    return entries


def _short(value: Any) -> str:
    return printable(str(value)[:40])


def _file_name(entry: str, place: pathlib.Path, value: Any) -> str:
    """The name of an image file that lies below the folder and is there."""
    if not isinstance(value, str) or not value or "\0" in value:
        raise UserError(f"{entry}: file_name={_short(value)}: want a path below the folder")
    path = pathlib.PurePosixPath(value)
    if path.is_absolute() or ".." in path.parts:
        raise UserError(f"{entry}: file_name={_short(value)}: want a path below the folder")
    if not (place / path).is_file():
        raise UserError(f"{entry}: file_name={_short(value)}: no such file in {printable(place)}")
    return str(path)


def _size(entry: str, image: dict) -> tuple[int, int] | None:
    """(width, height) that an entry says, None where it says neither."""
    if "width" not in image and "height" not in image:
        return None
    for field in ("width", "height"):
        value = image.get(field)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{entry}: {field}={_short(value)}: want a whole number > 0")
    return image["width"], image["height"]


def _box(entry: str, value: Any) -> tuple[float, ...]:
    """x, y, w, h of a box with an area."""
    wrong = f"{entry}: bbox={_short(value)}: want [x, y, w, h], numbers"
    if not isinstance(value, list) or len(value) != 4:
        raise UserError(wrong)
    for number in value:
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise UserError(wrong)
        if not abs(number) < 2**31:  # nor is NaN
            raise UserError(wrong)
    if min(value[2:]) <= 0:
        raise UserError(f"{entry}: bbox={_short(value)}: want a width and a height > 0")
    return tuple(map(float, value))


# --- On the canvas ---


def _on_canvas(name: str, one: Annotated, shape: tuple[int, int]) -> list[np.ndarray]:
    """The boxes of each image on its canvas of ``shape`` = (H, W), checked against the image."""
    sizes = parallel(_upright_size(name, one.place), one.names)
    canvases = []
    for file, (width, height), said, rows in zip(
        one.names, sizes, one.sizes, one.boxes, strict=True
    ):
        entry = f"data.name={name}: {printable(one.place / FILE)}: {printable(file)}"
        if said not in (None, (width, height)):
            wrong = f"{said[0]}x{said[1]}, width x height: the file has {width}x{height}"
            raise UserError(f"{entry} is said to be {wrong}")
        low = rows[:, :2]
        high = low + rows[:, 2:4]
        outside = (low < -SLACK) | (high > np.array([width, height]) + SLACK)
        if outside.any():
            box = rows[outside.any(1)][0, :4].tolist()
            raise UserError(f"{entry}: bbox={box} lies outside the image of {width}x{height}")
        canvases.append(place_boxes(rows, (width, height), shape))
    return canvases


def _upright_size(name: str, place: pathlib.Path) -> Callable[[str], tuple[int, int]]:
    """A function: image file → its (width, height) as it is seen."""

    def size_of(file: str) -> tuple[int, int]:
        import PIL.Image
        import PIL.ImageOps

        try:
            with PIL.Image.open(place / file) as image:
                turned = image.getexif().get(0x0112, 1) >= 5  # EXIF's orientation: on its side
                return image.size[::-1] if turned else image.size
        except Exception as error:  # Pillow raises many kinds for a damaged file
            why = printable(" ".join(str(error).split())[:100])
            raise UserError(
                f"data.name={name}: {printable(place / file)}: not a readable image ({why})"
            ) from None

    return size_of


def place_boxes(rows_Mx5: np.ndarray, size: tuple[int, int], shape: tuple[int, int]) -> np.ndarray:
    """int32 [M, 5]: boxes of an image of ``size`` = (w, h) on a canvas of ``shape`` = (H, W).

    As ``predict.convert`` resizes: by the side that then covers the rest, and cropped to the
    centre. A box is cut at the canvas's edge, its corners are rounded to whole pixels, one pixel at
    the least; one that lies beyond the edge is left out.
    """
    size = np.array(size, float)
    canvas = np.array(shape[::-1], float)
    scale = (canvas / size).max()
    corner = (size - canvas / scale) / 2
    low = np.clip((rows_Mx5[:, :2] - corner) * scale, 0, canvas)
    high = np.clip((rows_Mx5[:, :2] + rows_Mx5[:, 2:4] - corner) * scale, 0, canvas)
    seen = (high > low).all(1)
    first = np.minimum(np.rint(low), canvas - 1)
    sides_Mx2 = np.maximum(np.rint(high) - first, 1)
    return np.concatenate([first, sides_Mx2, rows_Mx5[:, 4:]], axis=1)[seen].astype(np.int32)
