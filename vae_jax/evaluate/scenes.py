"""Objects in scenes: average precision, counts, and ``eval.py --tasks=scenes``."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import data
from vae_jax.data import evaluation
from vae_jax.data.scenes import PREFIX, iou, owners_of_test
from vae_jax.evaluate import probes
from vae_jax.evaluate.likelihood import over_split
from vae_jax.evaluate.run import Forward, Result
from vae_jax.evaluate.subject import Subject
from vae_jax.models import boxes as boxes_lib
from vae_jax.report.metrics import Metric, register

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).round(2).tolist())
RECALLS = np.linspace(0, 1, 101)
MOST = 100  # boxes of an image that count, as in COCO's measure
AP = ("ap50", "ap", "ap50_any_class", "ap_any_class")
SEGMENTED = 500  # test canvases whose masks are composed again
PROBED = 5000  # training canvases, an even stride apart, whose objects a probe may learn from
LABELS = (10, 100, 1000)  # objects with a class that a probe learns from
PROBES = tuple(f"object_accuracy_{n}" for n in LABELS)
_MEANINGS = {
    "count_accuracy": "Scenes whose number of boxes with probability above 1/2 is true.",
    "ap50": "Average precision at an IoU of 0.5, the mean over classes (COCO).",
    "ap": "Average precision, the mean over IoU 0.5 to 0.95 and classes (COCO).",
    "ap50_any_class": "Average precision at an IoU of 0.5, all objects being one class.",
    "ap_any_class": "Average precision, the mean over IoU 0.5 to 0.95, all objects one class.",
    "ap50_window": "As ap50_any_class, of the windows that the model looks at.",
    "ap_window": "As ap_any_class, of the windows that the model looks at.",
    "foreground_ari": (
        "Adjusted Rand index of the pixels of objects, grouped by object: 100 % is the true "
        "grouping, 0 % chance; the mean over the first 500 scenes with two objects or more."
    ),
}
for _n in LABELS:
    _MEANINGS[f"object_accuracy_{_n}"] = (
        "Test objects that the model finds (IoU of 0.5) whose class a logistic regression on "
        f"z_what tells, with the classes of {_n:,} training objects."
    )
for _name, _meaning in _MEANINGS.items():
    register(Metric(_name, _name.replace("_", " "), "%", "higher", _meaning))


class Boxes(NamedTuple):
    """The boxes of one image; of true objects the score is not used."""

    box: np.ndarray  # Dx4: x, y, w, h
    label: np.ndarray  # D
    score: np.ndarray  # D


def true_boxes(objects_Mx5: np.ndarray) -> Boxes:
    """The objects of one scene, without the empty rows."""
    real = objects_Mx5[objects_Mx5[:, 4] >= 0]
    return Boxes(real[:, :4], real[:, 4], np.ones(len(real)))


def matches(overlap_DxK: np.ndarray, threshold: float) -> np.ndarray:
    """Which of D boxes, in falling order of score, match one of K true boxes; bool, shape D."""
    return assigned(overlap_DxK, threshold) >= 0


def assigned(overlap_DxK: np.ndarray, threshold: float) -> np.ndarray:
    """The true box that each of D boxes, in falling order of score, matches; −1: none.

    Each takes the true box of the highest IoU that no box before it has taken, if that IoU is at
    least ``threshold``.
    """
    overlap = overlap_DxK.copy()
    taken = np.full(len(overlap), -1)
    if not overlap.shape[1]:
        return taken
    for i, row in enumerate(overlap):
        best = row.argmax()
        if row[best] >= threshold:
            taken[i] = best
            overlap[:, best] = -1
    return taken


def precision_at_recalls(score_N: np.ndarray, hit_N: np.ndarray, count: int) -> np.ndarray:
    """Interpolated precision at :data:`RECALLS`: the highest at this recall or a higher one.

    ``count``: true objects. 0 at recalls that are not reached.
    """
    order = np.argsort(-score_N, kind="stable")
    true = np.cumsum(hit_N[order])
    precision = true / np.arange(1, len(true) + 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(true / count, RECALLS, side="left")
    return np.append(precision, 0.0)[place]


def precision_curve(
    detections: Sequence[Boxes], truth: Sequence[Boxes], threshold: float
) -> np.ndarray:
    """Precision at :data:`RECALLS` of the boxes of all images, whatever their class."""
    scores = []
    hits = []
    for one, true in zip(detections, truth, strict=True):
        order = np.argsort(-one.score, kind="stable")[:MOST]
        scores.append(one.score[order])
        hits.append(matches(iou(one.box[order], true.box), threshold))
    count = sum(len(true.label) for true in truth)
    return precision_at_recalls(np.concatenate(scores), np.concatenate(hits), count)


def average_precision(
    detections: Sequence[Boxes],
    truth: Sequence[Boxes],
    thresholds: Sequence[float] = THRESHOLDS,
) -> np.ndarray:
    """COCO's AP at each IoU threshold: the mean over recalls, then over the classes in ``truth``.

    NaN where there are no true objects. Lin et al. 2014 (arXiv:1405.0312).
    """
    classes = np.unique(np.concatenate([true.label for true in truth]))
    values = np.full((len(thresholds), len(classes)), np.nan)
    for y, label in enumerate(classes):
        ours = [_of_class(one, label) for one in detections]
        theirs = [_of_class(one, label) for one in truth]
        for t, threshold in enumerate(thresholds):
            values[t, y] = precision_curve(ours, theirs, threshold).mean()
    if not len(classes):
        return np.full(len(thresholds), np.nan)
    return values.mean(1)


def _of_class(one: Boxes, label: int) -> Boxes:
    mine = one.label == label
    return Boxes(one.box[mine], one.label[mine], one.score[mine])


def without_classes(images: Sequence[Boxes]) -> list[Boxes]:
    """The same boxes, all of one class."""
    return [one._replace(label=np.zeros(len(one.label), int)) for one in images]


def detect(subject: Subject, split: data.Split | None = None) -> dict[str, np.ndarray]:
    """box NxMx4, label NxM, score NxM (log-odds), keep NxM (after suppression); of the test set.

    A model that draws the objects explains each once: nothing of it is suppressed, and ``window``
    NxMx4 and ``what`` NxMxD are there too.
    """
    to_x = evaluation.seen(subject.config, subject.levels)

    def program(params: dict, batch: dict) -> dict:
        d = subject.model.detect(params, to_x(batch))
        label = jnp.argmax(d.class_logits, -1)
        score = d.logit + jax.nn.log_softmax(d.class_logits).max(-1)
        out = {"box": d.boxes, "label": label, "score": score, "logit": d.logit}
        if d.windows is None:
            out["keep"] = jax.vmap(boxes_lib.suppress)(d.boxes, score, label)
            return out
        return out | {"window": d.windows, "what": d.what, "keep": jnp.ones_like(label)}

    return over_split(subject, program, subject.data.test if split is None else split)


def foreground_ari(subject: Subject) -> Result:
    """The adjusted Rand index of the pixels of objects (Hubert & Arabie 1985, eq. 5).

    The mean over those of the first :data:`SEGMENTED` test canvases that have two objects or more;
    with one, every grouping but the whole has the index 0.
    """
    if not subject.config.data.name.startswith(PREFIX):
        return {}, {"foreground_ari": "the data have no masks"}, {}
    from sklearn.metrics import adjusted_rand_score

    to_x = evaluation.seen(subject.config, subject.levels)

    def program(params: dict, batch: dict) -> dict:
        return {"owner": subject.model.nets.segment(params, to_x(batch))}

    true_NxSxS = owners_of_test(subject.config.data, data.load, SEGMENTED)
    split = data.pick(subject.data.test, np.arange(len(true_NxSxS)))
    owner_NxSxS = over_split(subject, program, split)["owner"]
    values = []
    for true, ours in zip(true_NxSxS, owner_NxSxS, strict=True):
        if true.max() >= 2:
            values.append(adjusted_rand_score(true[true > 0], ours[true > 0]))
    if not values:
        return {}, {"foreground_ari": "no scene has two objects"}, {}
    return {"foreground_ari": np.mean(values)}, {}, {}


def found_objects(
    out: dict[str, np.ndarray], objects_NxMx5: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(what_PxD, class_P) of the true objects that a found one matches, at an IoU of 0.5."""
    codes = []
    classes = []
    for i, objects in enumerate(objects_NxMx5):
        true = true_boxes(objects)
        order = np.argsort(-out["score"][i], kind="stable")
        order = order[out["logit"][i][order] > 0]
        taken = assigned(iou(out["box"][i][order], true.box), 0.5)
        codes.append(out["what"][i][order[taken >= 0]])
        classes.append(true.label[taken[taken >= 0]])
    return np.concatenate(codes), np.concatenate(classes).astype(np.int32)


def object_probes(subject: Subject, test: dict[str, np.ndarray]) -> Result:
    """Accuracies of a logistic regression of an object's class on its z_what, by :data:`LABELS`.

    It learns from found objects of the training canvases, as many of each class as of another, and
    is asked about found objects of the test canvases; ``test`` is :func:`detect`'s result on them.
    """
    some = data.some(subject.data.train, PROBED)
    what_PxD, label_P = found_objects(detect(subject, some), some.objects)
    test_what, test_label = found_objects(test, subject.data.test.objects)
    metrics = {}
    why = {}
    for key, count in zip(PROBES, LABELS, strict=True):
        kinds = len(np.unique(label_P))
        if len(label_P) < count or kinds < 2 or not len(test_label):
            why[key] = (
                f"the model finds {len(label_P)} objects in {len(some.label)} training scenes"
            )
            continue
        index = data.balanced(label_P, count, int(label_P.max()) + 1, subject.config.seed)
        predict, _ = probes.fit("logistic", (what_PxD[index], label_P[index]), None)
        metrics[key] = (predict(test_what)[0] == test_label).mean()
    return metrics, why, {}


def count_accuracies(count_N: np.ndarray, true_N: np.ndarray) -> dict[str, float]:
    """``count_accuracy`` of all scenes, and of those with n objects as ``count_accuracy@n``."""
    correct = count_N == true_N
    metrics = {"count_accuracy": correct.mean()}
    for n in np.unique(true_N):
        metrics[f"count_accuracy@{n}"] = correct[true_N == n].mean()
    return metrics


def task(subject: Subject, look: Forward) -> Result:
    """``scenes``: AP by class and of all classes together, and the accuracy of counts.

    The count of an image is its number of boxes with a probability above 1/2 after suppression. Of
    a model that draws its objects also :func:`foreground_ari` and :func:`object_probes`.
    """
    objects = subject.data.test.objects
    if objects is None or subject.model.detect is None:
        reason = "the model finds no objects" if objects is not None else "the data are no scenes"
        return {}, dict.fromkeys((*AP, "count_accuracy"), reason), {}
    out = detect(subject)
    truth = [true_boxes(one) for one in objects]
    keep = out["keep"] > 0
    metrics = count_accuracies((keep & (out["logit"] > 0)).sum(1), subject.data.test.label)
    detections = []
    windows = []
    for i, mine in enumerate(keep):
        one = Boxes(out["box"][i][mine], out["label"][i][mine], out["score"][i][mine])
        detections.append(one)
        if "window" in out:
            windows.append(one._replace(box=out["window"][i][mine]))
    why = {}
    if objects[..., 4].max() < 0:
        return metrics, dict.fromkeys(AP, "no scene has an object"), {}
    any_class = average_precision(without_classes(detections), without_classes(truth))
    metrics |= {"ap50_any_class": any_class[0], "ap_any_class": any_class.mean()}
    if windows:
        of_windows = average_precision(without_classes(windows), without_classes(truth))
        metrics |= {"ap50_window": of_windows[0], "ap_window": of_windows.mean()}
        why = dict.fromkeys(("ap50", "ap"), "the model does not tell classes apart")
        for values, missing, _ in (foreground_ari(subject), object_probes(subject, out)):
            metrics |= values
            why |= missing
    else:
        by_class = average_precision(detections, truth)
        metrics |= {"ap50": by_class[0], "ap": by_class.mean()}
    return metrics, why, {}
