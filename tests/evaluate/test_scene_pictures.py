"""Which scenes the report shows, and what counts as a miss."""

import numpy as np

from vae_jax.evaluate import scene_pictures
from vae_jax.evaluate.average_precision import Boxes
from vae_jax.report import scenes


def boxes(*rows: tuple) -> Boxes:
    """Boxes from rows of x, y, w, h, class, score."""
    array = np.array(rows, float).reshape(-1, 6)
    return Boxes(array[:, :4], array[:, 4], array[:, 5])


TRUE = boxes((0, 0, 10, 10, 3, 1), (20, 20, 10, 10, 4, 1))


def test_an_error_is_an_object_without_a_box_or_a_box_without_an_object():
    assert scene_pictures.errors(TRUE, TRUE) == 0
    assert scene_pictures.errors(boxes(), TRUE) == 2
    twice = boxes((0, 0, 10, 10, 3, 2), (0, 1, 10, 10, 3, 1), (20, 20, 10, 10, 4, 1))
    assert scene_pictures.errors(twice, TRUE) == 1
    beside = boxes((0, 0, 10, 10, 3, 1), (40, 40, 10, 10, 4, 1))
    assert scene_pictures.errors(beside, TRUE) == 2


def test_every_count_is_shown_and_few_empty_scenes():
    counts = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2])
    index = scene_pictures.spread(counts, 8)
    assert np.bincount(counts[index]).tolist() == [2, 3, 3]


def test_the_worst_scenes_are_first_and_perfect_ones_left_out():
    detections = [TRUE, boxes(), boxes((0, 0, 10, 10, 3, 1))]
    image = np.linspace(0, 1, 3)[:, None, None, None] * np.ones((3, 32, 32, 1))
    curves = {"IoU 0.5": np.ones(101)}
    kept = scene_pictures.pictures(image, detections, [TRUE] * 3, curves, classes=True)
    shown, true, detected = kept["scenes"]["missed"]
    np.testing.assert_allclose(shown[:, 0, 0, 0], [0.5, 1.0])
    assert (true[..., 4] >= 0).sum(1).tolist() == [2, 2]
    assert (detected[..., 4] >= 0).sum(1).tolist() == [0, 1]
    views = scenes.views(kept["scenes"], list("0123456789"))
    assert list(views) == ["scenes", "scene_misses", "scene_precision"]
    assert views["scenes"][2] == "3 scenes with 6 true and 3 detected boxes"
