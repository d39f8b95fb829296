"""Average precision on boxes whose value is known by hand; suppression; the code of boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax.data.scenes import iou
from vae_jax.evaluate import scenes
from vae_jax.evaluate.average_precision import average_precision, without_classes
from vae_jax.evaluate.scenes import Boxes
from vae_jax.models import boxes as boxes_lib
from vae_jax.train import program


def boxes(*rows):
    """Rows (x, y, w, h, class, score)."""
    table = np.array(rows, float).reshape(-1, 6)
    return Boxes(table[:, :4], table[:, 4].astype(int), table[:, 5])


def random_boxes(seed, images=20, most=6, classes=3):
    """True boxes, and detections that are near some of them."""
    rng = np.random.default_rng(seed)
    truth = []
    detections = []
    for _ in range(images):
        true = rng.uniform(4, 40, (rng.integers(0, most), 4))
        label = rng.integers(classes, size=len(true))
        near = np.concatenate([true + rng.normal(0, 2, true.shape), rng.uniform(4, 40, (2, 4))])
        own_label = np.append(np.where(rng.random(len(true)) < 0.8, label, 0), [0, 1])
        truth.append(Boxes(true, label, np.ones(len(true))))
        score = rng.choice(np.arange(1000), len(near), replace=False) / 1000
        detections.append(Boxes(near, own_label, score))
    return detections, truth


TRUE = boxes((0, 0, 10, 10, 0, 1), (30, 30, 10, 10, 0, 1))
ELSEWHERE = (60, 60, 5, 5, 0)
RECALL_HALF = 51  # of 101 recalls, 0 to 0.5


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0, 0, 10, 10, 0, 0.9), (30, 30, 10, 10, 0, 0.8)], 1.0),
        ([], 0.0),
        ([(0, 0, 10, 10, 0, 0.9)], RECALL_HALF / 101),
        # A false box between two true ones: precision 1, then 2/3.
        (
            [(0, 0, 10, 10, 0, 0.9), (*ELSEWHERE, 0.8), (30, 30, 10, 10, 0, 0.7)],
            (RECALL_HALF + 50 * 2 / 3) / 101,
        ),
        # The second box of the same object is false.
        ([(0, 0, 10, 10, 0, 0.9), (0, 0, 10, 10, 0, 0.8)], RECALL_HALF / 101),
        # A false box first: 1/2 at every recall that is reached.
        ([(*ELSEWHERE, 0.9), (0, 0, 10, 10, 0, 0.8)], RECALL_HALF * 0.5 / 101),
        ([(0, 0, 10, 10, 1, 0.9), (30, 30, 10, 10, 1, 0.8)], 0.0),
    ],
)
def test_average_precision_of_known_boxes(rows, expected):
    ap = average_precision([boxes(*rows)], [TRUE])
    assert ap[0] == pytest.approx(expected)


def test_a_box_counts_up_to_its_iou():
    """IoU 0.62 passes the thresholds 0.5, 0.55 and 0.6."""
    one = boxes((0, 0, 10, 6.2, 0, 0.9))
    ap = average_precision([one], [boxes((0, 0, 10, 10, 0, 1))])
    np.testing.assert_allclose(ap, [1, 1, 1, 0, 0, 0, 0, 0, 0, 0])


def test_classes_count_alike_and_images_are_ranked_together():
    truth = [boxes((0, 0, 9, 9, 0, 1), (20, 0, 9, 9, 1, 1)), boxes((0, 0, 9, 9, 0, 1))]
    detections = [boxes((0, 0, 9, 9, 0, 0.5)), boxes((40, 0, 9, 9, 0, 0.9))]
    # Class 0: false, true of two: precision 1/2 to recall 1/2. Class 1: nothing.
    ap = average_precision(detections, truth)
    assert ap[0] == pytest.approx(RECALL_HALF * 0.5 / 101 / 2)
    together = average_precision(*map(without_classes, (detections, truth)))
    assert together[0] == pytest.approx(34 * 0.5 / 101), "recall 1/3: 34 recalls"


def test_average_precision_is_pycocotools(capsys):
    coco_lib = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    detections, truth = random_boxes(0)
    oracle = coco_lib.COCO()
    oracle.dataset = {"images": [], "annotations": [], "categories": []}
    oracle.dataset["categories"] = [{"id": y} for y in range(3)]
    rows = []
    for i, (one, true) in enumerate(zip(detections, truth, strict=True)):
        oracle.dataset["images"].append({"id": i})
        for box, label in zip(true.box, true.label, strict=True):
            number = len(oracle.dataset["annotations"]) + 1
            annotation = {"id": number, "image_id": i, "category_id": int(label)}
            annotation |= {"bbox": box.tolist(), "area": box[2] * box[3], "iscrowd": 0}
            oracle.dataset["annotations"].append(annotation)
        for box, label, score in zip(*one, strict=True):
            rows.append([i, *box, score, label])
    oracle.createIndex()
    measure = COCOeval(oracle, oracle.loadRes(np.array(rows)), "bbox")
    measure.evaluate()
    measure.accumulate()
    measure.summarize()
    capsys.readouterr()
    ap = average_precision(detections, truth)
    assert ap.mean() == pytest.approx(measure.stats[0], abs=1e-6)
    assert ap[0] == pytest.approx(measure.stats[1], abs=1e-6)
    assert 0.1 < ap.mean() < 0.9


def test_counts():
    out = scenes.count_accuracies(np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]))
    assert out == {
        "count_accuracy": 0.75,
        "count_accuracy@0": 1,
        "count_accuracy@1": 0.5,
        "count_accuracy@2": 1,
    }


def suppressed(box, score, label, limit):
    """A plain loop."""
    keep = []
    for i in sorted(range(len(score)), key=lambda i: -score[i]):
        rivals = [j for j in keep if label[j] == label[i]]
        if all(iou(box[i : i + 1], box[j : j + 1])[0, 0] <= limit for j in rivals):
            keep.append(i)
    return np.isin(np.arange(len(score)), keep)


@pytest.mark.parametrize("seed", range(3))
def test_suppression_is_the_plain_loop(seed):
    rng = np.random.default_rng(seed)
    box = rng.uniform(5, 20, (40, 4))
    score = rng.integers(0, 15, 40) / 15.0  # with ties
    label = rng.integers(0, 2, 40)
    run = program.simple(boxes_lib.suppress)
    for limit in (0.3, 0.5):
        keep = np.asarray(run(box, score, label, limit))
        np.testing.assert_array_equal(keep, suppressed(box, score, label, limit))
        assert 2 < keep.sum() < 38


@pytest.mark.parametrize(("grid", "size"), [(8, 64), (5, 23)])
def test_the_code_of_a_box_is_exact(grid, size):
    rng = np.random.default_rng(1)
    corner = rng.uniform(0, size, (200, 2)) * [0.9, 0.9]
    sides = rng.uniform(1, size / 3, (200, 2))
    box = jnp.asarray(np.concatenate([corner, sides], 1))
    cell, code = boxes_lib.encode(box, grid, size)
    np.testing.assert_allclose(boxes_lib.decode(code, cell, grid, size), box, atol=1e-4)
    inside = np.asarray(box[:, :2] + box[:, 2:] / 2) < size
    assert (np.abs(np.asarray(code[:, :2])[inside.all(1)]) <= 0.5 + 1e-5).all()
    again = boxes_lib.encode(boxes_lib.decode(code, cell, grid, size), grid, size)
    np.testing.assert_allclose(again[1], code, atol=1e-3)


def test_generalised_iou():
    a = jnp.array([0.0, 0, 2, 2])
    assert boxes_lib.generalised_iou(a, a) == pytest.approx(1)
    # Beside it: no intersection, the hull is covered whole.
    assert boxes_lib.generalised_iou(a, jnp.array([2.0, 0, 2, 2])) == pytest.approx(0, abs=1e-6)
    # Apart by 2: a third of the hull is empty.
    b = jnp.array([4.0, 0, 2, 2])
    assert boxes_lib.generalised_iou(a, b) == pytest.approx(-1 / 3)
    slope = jax.grad(boxes_lib.generalised_iou, argnums=1)(a, b)
    assert slope[0] < 0, "nearer is better"
    np.testing.assert_allclose(boxes_lib.iou(a, jnp.array([1.0, 0, 2, 2])), 1 / 3, rtol=1e-6)
