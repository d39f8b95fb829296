"""Objects in scenes: average precision, counts, and ``eval.py --tasks=scenes``."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import data
from vae_jax.data import evaluation
from vae_jax.evaluate import objects as objects_lib
from vae_jax.evaluate import scene_pictures
from vae_jax.evaluate.average_precision import (
    Boxes,
    average_precision,
    precision_curve,
    true_boxes,
    without_classes,
)
from vae_jax.evaluate.likelihood import over_split
from vae_jax.evaluate.run import Forward, Result
from vae_jax.evaluate.subject import Subject
from vae_jax.models import boxes as boxes_lib
from vae_jax.report.metrics import Metric, register

AP = ("ap50", "ap", "ap50_any_class", "ap_any_class")
PROBED = 5000  # training canvases, an even stride apart, whose objects a probe may learn from
_MEANINGS = {
    "count_accuracy": "Scenes whose number of boxes with probability above 1/2 is true.",
    "ap50": "Average precision at an IoU of 0.5, the mean over classes (COCO).",
    "ap": "Average precision, the mean over IoU 0.5 to 0.95 and classes (COCO).",
    "ap50_any_class": "Average precision at an IoU of 0.5, all objects being one class.",
    "ap_any_class": "Average precision, the mean over IoU 0.5 to 0.95, all objects one class.",
    "ap50_window": "As ap50_any_class, of the windows that the model looks at.",
    "ap_window": "As ap_any_class, of the windows that the model looks at.",
}
for _name, _meaning in _MEANINGS.items():
    register(Metric(_name, _name.replace("_", " "), "%", "higher", _meaning))


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


def chosen(out: dict[str, np.ndarray], i: int, mine_M: np.ndarray) -> Boxes:
    """Those boxes of image i in what :func:`detect` gives for which ``mine_M`` is true."""
    return Boxes(out["box"][i][mine_M], out["label"][i][mine_M], out["score"][i][mine_M])


def count_accuracies(count_N: np.ndarray, true_N: np.ndarray) -> dict[str, float]:
    """``count_accuracy`` of all scenes, and of those with n objects as ``count_accuracy@n``."""
    correct = count_N == true_N
    metrics = {"count_accuracy": correct.mean()}
    for n in np.unique(true_N):
        metrics[f"count_accuracy@{n}"] = correct[true_N == n].mean()
    return metrics


def of_drawn_objects(subject: Subject, out: dict[str, np.ndarray]) -> Result:
    """Masks and codes of a model that draws its objects; ``out`` is :func:`detect` on the test set.

    See :func:`vae_jax.evaluate.objects.foreground_ari` and ``object_probes``.
    """
    some = data.some(subject.data.train, PROBED)
    train = objects_lib.found_objects(detect(subject, some), some.objects)
    test = objects_lib.found_objects(out, subject.data.test.objects)
    metrics, why, _ = objects_lib.foreground_ari(subject)
    accuracies, missing, _ = objects_lib.object_probes(train, test, subject.config.seed)
    return metrics | accuracies, why | missing, {}


def task(subject: Subject, look: Forward) -> Result:
    """``scenes``: AP by class and of all classes together, and the accuracy of counts.

    The count of an image is its number of boxes with a probability above 1/2 after suppression. Of
    a model that draws its objects also :func:`of_drawn_objects`.
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
    probable = []  # those with a probability above 1/2
    windows = []
    for i, mine in enumerate(keep):
        one = chosen(out, i, mine)
        detections.append(one)
        probable.append(chosen(out, i, mine & (out["logit"][i] > 0)))
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
        drawn, why, _ = of_drawn_objects(subject, out)
        metrics |= drawn
        why |= dict.fromkeys(("ap50", "ap"), "the model does not tell classes apart")
    else:
        by_class = average_precision(detections, truth)
        metrics |= {"ap50": by_class[0], "ap": by_class.mean()}
    curves = {}
    for threshold in (0.5, 0.75):
        pair = (without_classes(detections), without_classes(truth))
        curves[f"IoU {threshold}"] = precision_curve(*pair, threshold)
    image = subject.data.test.image[:] / (subject.levels - 1)
    panels = scene_pictures.pictures(image, probable, truth, curves, classes=not windows)
    return metrics, why, panels
