"""What a model that draws objects knows of each: its pixels, and its class by its code."""

from typing import NamedTuple

import numpy as np

from vae_jax import data
from vae_jax.data import evaluation
from vae_jax.data.scenes import PREFIX, iou, owners_of_test
from vae_jax.evaluate import probes
from vae_jax.evaluate.average_precision import assigned, true_boxes
from vae_jax.evaluate.likelihood import over_split
from vae_jax.evaluate.run import Result
from vae_jax.evaluate.subject import Subject
from vae_jax.report.metrics import Metric, register

SEGMENTED = 500  # test canvases whose masks are composed again
LABELS = (10, 100, 1000)  # objects with a class that a probe learns from
PROBES = tuple(f"object_accuracy_{n}" for n in LABELS)
_MEANINGS = {
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


class Objects(NamedTuple):
    """True objects that the model finds."""

    what: np.ndarray  # PxD: the code of the found one
    label: np.ndarray  # P: the class of the true one


def found_objects(out: dict[str, np.ndarray], objects_NxMx5: np.ndarray) -> Objects:
    """The true objects that one with a probability above 1/2 matches, at an IoU of 0.5.

    ``out`` has box NxMx4, score and logit NxM and what NxMxD of the same images.
    """
    codes = []
    classes = []
    for i, objects in enumerate(objects_NxMx5):
        true = true_boxes(objects)
        order = np.argsort(-out["score"][i], kind="stable")
        order = order[out["logit"][i][order] > 0]
        taken = assigned(iou(out["box"][i][order], true.box), 0.5)
        codes.append(out["what"][i][order[taken >= 0]])
        classes.append(true.label[taken[taken >= 0]])
    return Objects(np.concatenate(codes), np.concatenate(classes).astype(np.int32))


def object_probes(train: Objects, test: Objects, seed: int) -> Result:
    """Accuracies of a logistic regression of an object's class on its z_what, by :data:`LABELS`.

    It learns from found objects of training canvases, as many of each class as of another, and is
    asked about found objects of test canvases; see :func:`found_objects`.
    """
    metrics = {}
    why = {}
    for key, count in zip(PROBES, LABELS, strict=True):
        kinds = len(np.unique(train.label))
        if len(train.label) < count or kinds < 2 or not len(test.label):
            why[key] = f"the model finds {len(train.label)} objects in the training scenes"
            continue
        index = data.balanced(train.label, count, int(train.label.max()) + 1, seed)
        predict, _ = probes.fit("logistic", (train.what[index], train.label[index]), None)
        metrics[key] = (predict(test.what)[0] == test.label).mean()
    return metrics, why, {}
