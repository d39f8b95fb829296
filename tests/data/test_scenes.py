"""Scenes: what is on a canvas, where it is, and that a canvas is a function of its index."""

import re

import numpy as np
import pytest

from tests.data.common import config
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import scenes

COUNTS = "scenes:digits+counts+train=300+validation=40+test=60"
BOXES = "scenes:digits+boxes+train=300+validation=40+test=60"


def lit_box(image):
    """x, y, w, h of the pixels above 0."""
    y, x = np.nonzero(image.max(-1))
    return [x.min(), y.min(), np.ptp(x) + 1, np.ptp(y) + 1]


def cut(image, box):
    x, y, w, h = box
    return image[y : y + h, x : x + w]


@pytest.fixture(params=[COUNTS, BOXES], ids=["counts", "boxes"])
def split(request):
    return data.load(config(name=request.param)).train


def test_every_object_lies_in_its_box_tight_to_the_pixel(split):
    alone = 0
    for image, objects in zip(split.image, split.objects, strict=True):
        boxes = objects[objects[:, 4] >= 0][:, :4]
        outside = image.copy()
        for x, y, w, h in boxes:
            outside[y : y + h, x : x + w] = 0
        assert outside.max() == 0
        overlap = scenes.iou(boxes, boxes) - np.eye(len(boxes))
        for box, others in zip(boxes, overlap, strict=True):
            part = cut(image, box)
            assert part.shape[:2] == (box[3], box[2]), "within the canvas"
            for edge in (part[0], part[-1], part[:, 0], part[:, -1]):
                assert edge.max() > 0
            if not others.any():
                alone += 1
                inside = np.zeros_like(image)
                inside[box[1] : box[1] + box[3], box[0] : box[0] + box[2]] = part
                assert lit_box(inside) == list(box)
    assert alone > 100


def test_rows_beyond_the_count_are_empty_and_the_label_is_the_count(split):
    real = split.objects[..., 4] >= 0
    assert (split.label == real.sum(1)).all()
    assert (np.diff(real.astype(int), axis=1) <= 0).all(), "objects come first"
    assert (split.objects[~real] == [0, 0, 0, 0, -1]).all()


@pytest.mark.parametrize("name", [COUNTS + "+most=3", BOXES])
def test_the_owner_of_a_pixel_is_an_object_whose_box_holds_it(name):
    c = config(name=name)
    test = data.load(c).test
    owners = scenes.owners_of_test(c, data.load, 30)
    assert owners.shape == (30, *test.image.shape[1:3])
    np.testing.assert_array_equal(owners > 0, test.image[:30].max(-1) > 0)
    tight = 0
    for owner, objects in zip(owners, test.objects, strict=False):
        assert set(np.unique(owner)) - {0} <= set(range(1, (objects[:, 4] >= 0).sum() + 1))
        for number in set(np.unique(owner)) - {0}:
            mine = (owner == number)[..., None]
            x, y, w, h = objects[number - 1, :4]
            assert mine.sum() == cut(mine, (x, y, w, h)).sum()
            tight += lit_box(mine) == [x, y, w, h]
    assert tight > 20


def test_counts_and_sizes_follow_their_law():
    counts = data.load(config(name="scenes:digits+train=1200+validation=1+test=1")).train
    assert counts.image.shape == (1200, 14, 14, 1)
    share = np.bincount(counts.label, minlength=3) / 1200
    assert np.abs(share - 1 / 3).max() < 0.06, "four standard deviations"
    boxes = data.load(
        config(name="scenes:digits+boxes+size=64+train=400+validation=1+test=1")
    ).train
    objects = boxes.objects[boxes.objects[..., 4] >= 0]
    assert set(np.unique(boxes.label)) == {1, 2, 3}
    assert set(np.unique(objects[:, 4])) == set(range(10))
    # 4 to 8 pixels, and the filter's half a pixel of the image on each side.
    longest = objects[:, 2:4].max(1)
    assert longest.min() >= 4 and longest.max() <= 11


@pytest.mark.parametrize("law", ["counts+least=1", "boxes"])
def test_a_scale_changes_the_size_of_objects(law):
    longest = {}
    for scale in (100, 50):
        name = f"scenes:digits+{law}+size=24+scale={scale}+train=200+validation=1+test=1"
        objects = data.load(config(name=name)).train.objects
        longest[scale] = objects[objects[..., 4] >= 0][:, 2:4].max(1)
    # The filter adds a pixel or two to both.
    assert longest[50].max() <= 6 < longest[100].min() + 3
    assert 0.5 < longest[50].mean() / longest[100].mean() < 0.75


def test_boxes_overlap_no_more_than_the_law_says():
    train = data.load(config(name=BOXES + "+size=16")).train
    worst = 0
    for objects in train.objects:
        boxes = objects[objects[:, 4] >= 0][:, :4]
        overlap = scenes.iou(boxes, boxes)
        np.fill_diagonal(overlap, 0)
        worst = max(worst, overlap.max())
    assert 0.1 < worst <= scenes.MAX_IOU


def test_a_sum_is_never_brighter_than_white():
    dataset = data.load(config(name="scenes:digits+size=10+train=200+validation=5+test=5"))
    assert dataset.levels == 17 and dataset.train.image.max() == 16


def test_a_canvas_is_a_function_of_its_index():
    law = scenes.law_of(COUNTS, 8)
    base = data.load(config(name="digits")).train
    dataset = data.load(config(name=COUNTS))
    for index in (0, 7, 299):
        one = scenes.compose(law, base.image, base.label, 17, (0, 0, index))
        np.testing.assert_array_equal(one.image, dataset.train.image[index])
        np.testing.assert_array_equal(one.objects, dataset.train.objects[index])
    longer = data.load(config(name=COUNTS.replace("train=300", "train=350")))
    np.testing.assert_array_equal(longer.train.image[:300], dataset.train.image)
    other = data.load(config(name=COUNTS + "+seed=1"))
    assert (other.train.image != dataset.train.image).any()
    again = data.load(config(name=COUNTS))  # from the cache
    np.testing.assert_array_equal(again.train.image, dataset.train.image)


def test_test_canvases_hold_test_images_only(tmp_path):
    """Images of train are as bright as 100, those of test as 200."""
    rng = np.random.default_rng(0)
    images = rng.integers(1, 100, (40, 8, 8), np.uint8)
    images[30:] += 100
    parts = np.array(["train"] * 20 + ["validation"] * 10 + ["test"] * 10)
    np.savez(tmp_path / "x.npz", images=images, labels=np.arange(40) % 4, splits=parts)
    name = f"scenes:npz:{tmp_path / 'x.npz'}+boxes+train=30+validation=10+test=10"
    dataset = data.load(config(name=name))
    assert dataset.train.image.max() < 100 and dataset.validation.image.max() < 100
    assert (dataset.test.image.max((1, 2, 3)) > 100).all()
    assert dataset.classes == ("0", "1", "2", "3"), "the label is the count"


def test_resampling_moves_whole_pixels_exactly():
    image = np.random.default_rng(1).random((5, 5))
    rows = scenes.resampling(9, 5, 2, 5)
    canvas = rows @ image @ scenes.resampling(9, 5, 3, 5).T
    np.testing.assert_allclose(canvas[2:7, 3:8], image, atol=1e-12)
    assert canvas.sum() == pytest.approx(image.sum())
    # Half as large: the sum is that of a quarter of the pixels.
    half = scenes.resampling(20, 16, 5, 8) @ np.ones((16, 16)) @ scenes.resampling(20, 16, 5, 8).T
    assert half.sum() == pytest.approx(64)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("scenes:", "want scenes:BASE, such as scenes:mnist"),
        ("scenes:digits+boxs", "boxs is no law; nearest: boxes"),
        ("scenes:digits+mots=3", "mots is no field; nearest: most"),
        ("scenes:digits+most=x", "most=x: want a whole number >= 0"),
        ("scenes:digits+most=0", "most=0: want a number > 0"),
        ("scenes:digits+least=3", "least=3: want no more than most=2"),
        ("scenes:digits+size=7", "size=7: objects of up to 8 pixels do not fit; want at least 8"),
        ("scenes:digits+scale=0", "scale=0: want a number > 0"),
        ("scenes:digits+scale=200", "size=14: objects of up to 16 pixels do not fit"),
        ("scenes:digits+boxes+size=8+least=4+most=4+train=1", "no canvas of 4 objects on 8 pixels"),
    ],
)
def test_a_scene_that_cannot_be_composed_is_one_line(name, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        data.load(config(name=name))
    assert str(error.value).startswith(f"data.name={name}") and "\n" not in str(error.value)


def test_a_base_without_labels_and_moving_augmentations_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", images=np.ones((20, 8, 8), np.uint8))
    with pytest.raises(UserError, match="has no labels; want a base with classes"):
        data.load(config(name=f"scenes:npz:{tmp_path / 'x.npz'}"))
    with pytest.raises(UserError, match=r"data\.shift=1: scenes keep their boxes"):
        data.load(config(name=COUNTS, shift=1))


def test_a_base_that_is_not_prepared_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"^data\.name=mnist: not prepared in ") as error:
        data.described(config(name="scenes:mnist", dir=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_objects_stay_with_their_images():
    dataset = data.load(config(name=COUNTS))
    part = data.pick(dataset.train, np.array([5, 3]))
    np.testing.assert_array_equal(part.objects, dataset.train.objects[[5, 3]])
    assert dataset.object_shape == (2, 5)
    (batch,) = data.host_batches(dataset.train, range(3, 4), batch=7, seed=0, prefetch=0)
    np.testing.assert_array_equal(batch["objects"], dataset.train.objects[batch["id"]])
    assert data.load(config(name="digits")).object_shape == ()
