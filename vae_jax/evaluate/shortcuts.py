"""Does a classifier read the class, or a cue that agreed with it in training?

    python eval.py --workdir=runs/shortcut \
        --metrics=vae_jax/evaluate/shortcuts.py:worst_group_accuracy

Metrics of runs whose data set comes from :mod:`vae_jax.data.shortcuts`. A group is all test images
of one label whose cue names one class (Sagawa et al. 2020, arXiv:1911.08731, section 2).
Checkpoints are selected on validation, whose cues agree as they do in training; no metric here
selects anything.
"""

import numpy as np

from vae_jax.config import UserError
from vae_jax.data import shortcuts
from vae_jax.evaluate import generative
from vae_jax.evaluate.run import forward
from vae_jax.evaluate.subject import Subject, metric
from vae_jax.train.step import stream

SEED = 0  # of the cues, as ``shortcuts.arrays`` has it
LEAST = 10  # test images of a group that is judged
IW = 20  # importance samples of Bayes' rule


def group_accuracy(
    predicted_N: np.ndarray, label_N: np.ndarray, cue_N: np.ndarray, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """(accuracy, images) of each group, rows labels and columns cues; NaN where there are none."""
    cell_N = label_N * classes + cue_N
    count = np.bincount(cell_N, minlength=classes**2)
    right = np.bincount(cell_N, predicted_N == label_N, classes**2)
    accuracy = right / np.where(count > 0, count, np.nan)
    return accuracy.reshape(classes, classes), count.reshape(classes, classes)


def worst_group(accuracy_YxY: np.ndarray, count_YxY: np.ndarray, least: int = LEAST) -> float:
    """The lowest accuracy of a group of at least ``least`` images.

    Raises:
      UserError: there is no such group.
    """
    judged = accuracy_YxY[count_YxY >= least]
    if not len(judged):
        most = int(count_YxY.max())
        raise UserError(
            f"worst_group_accuracy: the largest group has {most} test images; "
            f"want {least} or more, as MNIST has"
        )
    return float(judged.min())


def conflicting(accuracy_YxY: np.ndarray, count_YxY: np.ndarray) -> float:
    """Accuracy of all images whose cue names another class than theirs.

    Raises:
      UserError: there are none.
    """
    others = ~np.eye(len(count_YxY), dtype=bool) & (count_YxY > 0)
    if not others.any():
        raise UserError("conflicting_accuracy: every cue names its image's class; want another set")
    return float((accuracy_YxY[others] * count_YxY[others]).sum() / count_YxY[others].sum())


def _groups(subject: Subject, bayes: bool) -> tuple[np.ndarray, np.ndarray]:
    """:func:`group_accuracy` of the test set, by the classifier or by Bayes' rule."""
    test = subject.data.test
    classes = len(subject.data.classes)
    if bayes:
        key = stream(subject.config.seed, "test")
        scores = generative.class_evidence(subject, test, key, k=IW)
    else:
        scores = forward(subject)(test)["logits"]
    cue = shortcuts.cues(test.label, classes, 1 / classes, SEED, "test")
    return group_accuracy(scores.argmax(1), test.label, cue, classes)


@metric(
    "worst_group_accuracy",
    unit="%",
    better="higher",
    meaning="Lowest accuracy over the groups of one label and one cue.",
)
def worst_group_accuracy(subject: Subject) -> float:
    return worst_group(*_groups(subject, bayes=False))


@metric(
    "conflicting_accuracy",
    title="Accuracy where the cue misleads",
    unit="%",
    better="higher",
    meaning="Of test images whose cue names another class.",
)
def conflicting_accuracy(subject: Subject) -> float:
    return conflicting(*_groups(subject, bayes=False))


@metric(
    "bayes_worst_group_accuracy",
    title="… worst group by Bayes' rule",
    unit="%",
    better="higher",
    meaning="By the label under which the bound on log p(x|y) is the highest.",
)
def bayes_worst_group_accuracy(subject: Subject) -> float:
    return worst_group(*_groups(subject, bayes=True))


@metric(
    "bayes_conflicting_accuracy",
    title="… by Bayes' rule",
    unit="%",
    better="higher",
    meaning="Of test images whose cue names another class, by Bayes' rule.",
)
def bayes_conflicting_accuracy(subject: Subject) -> float:
    return conflicting(*_groups(subject, bayes=True))
