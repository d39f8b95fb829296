"""Faces, or other images of people who are not in training: verification and identification.

    python train.py --config=configs/digits.py --workdir=runs/faces \
        --config.data.name=folder:faces '--config.data.size=(112,92)' \
        '--config.data.hold_out=(0,1,2,3,4,5,6,7,8,9)'
    python -m vae_jax.evaluate.verification --workdir=runs/faces --folds=5

A class is a person. Those of ``data.hold_out`` are asked about; nothing is trained on them. The
score of a pair of images is the cosine of their codes. Writes verification.json into the run's
folder:

    pairs_accuracy      the pairs protocol of Labelled Faces in the Wild (Huang et al. 2007, UMass
                        07-49): people are dealt to folds; the threshold is the best on the other
                        folds, the accuracy that on this one; the mean, with its standard error
    eer, tar_at_far     of all pairs of all folds: the equal error rate, and the share of pairs of
                        one person that pass where 1 % of the others pass
    rank1               identification: the nearest of one image of each person has the person of
                        the image that is asked about, all other images being asked about
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax.config import UserError
from vae_jax.evaluate import command, recognition
from vae_jax.evaluate.run import forward

FAR = 0.01
PER_FOLD = 300  # pairs of one person, and as many of two people, at most


class Pairs(NamedTuple):
    """P pairs of images."""

    first: np.ndarray  # P, places
    second: np.ndarray  # P
    same: np.ndarray  # P, bool: of one person
    fold: np.ndarray  # P


def deal(label_N: np.ndarray, folds: int, seed: int = 0) -> list[np.ndarray]:
    """The people of each fold, in a random order; no person is in two folds.

    Raises:
      UserError: a fold would have fewer than two people.
    """
    people = np.unique(label_N)
    if folds < 2:
        raise UserError(f"folds={folds}: one chooses no threshold for another; want 2 or more")
    if len(people) < 2 * folds:
        most = len(people) // 2
        if most < 2:
            raise UserError(f"data.hold_out: {len(people)} people; want four or more")
        raise UserError(
            f"folds={folds}: {len(people)} people were held out, and a fold wants two; "
            f"want folds={most} or more of data.hold_out"
        )
    return np.array_split(np.random.default_rng(seed).permutation(people), folds)


def draw_pairs(label_N: np.ndarray, folds: int, seed: int = 0, most: int = PER_FOLD) -> Pairs:
    """In each fold as many pairs of one person as of two, ``most`` of each kind at most.

    Raises:
      UserError: a fold has too few people, or none with two images.
    """
    rng = np.random.default_rng(seed + 1)
    parts = []
    for number, people in enumerate(deal(label_N, folds, seed)):
        place = np.flatnonzero(np.isin(label_N, people))
        a_P, b_P = (place[index] for index in np.triu_indices(len(place), 1))
        same_P = label_N[a_P] == label_N[b_P]
        kinds = [np.flatnonzero(same_P), np.flatnonzero(~same_P)]
        count = min(most, *map(len, kinds))
        if not count:
            names = ", ".join(map(str, people))
            raise UserError(f"folds={folds}: people {names} have one image each; want fewer folds")
        chosen = np.concatenate([rng.permutation(kind)[:count] for kind in kinds])
        fold = np.full(len(chosen), number)
        parts.append(Pairs(a_P[chosen], b_P[chosen], same_P[chosen], fold))
    return Pairs(*map(np.concatenate, zip(*parts, strict=True)))


def unit(mu_NxD: np.ndarray) -> np.ndarray:
    """Codes scaled to length 1."""
    mu = np.asarray(mu_NxD, np.float64)
    return mu / np.maximum(np.linalg.norm(mu, axis=1, keepdims=True), 1e-12)


def best_threshold(score_P: np.ndarray, same_P: np.ndarray) -> float:
    """The threshold with the most right answers, score >= threshold being "the same person".

    It lies in the middle between two scores; of several the lowest.
    """
    score = np.unique(score_P)
    middles = np.concatenate([[score[0] - 1], (score[1:] + score[:-1]) / 2, [score[-1] + 1]])
    sorted_same = np.sort(score_P[same_P])
    sorted_other = np.sort(score_P[~same_P])
    passed = len(sorted_same) - np.searchsorted(sorted_same, middles)
    refused = np.searchsorted(sorted_other, middles)
    return float(middles[np.argmax(passed + refused)])


def fold_accuracies(score_P: np.ndarray, pairs: Pairs) -> np.ndarray:
    """Accuracy on each fold at the best threshold of the others; shape F."""
    accuracies = []
    for fold in np.unique(pairs.fold):
        mine = pairs.fold == fold
        threshold = best_threshold(score_P[~mine], pairs.same[~mine])
        accuracies.append(((score_P[mine] >= threshold) == pairs.same[mine]).mean())
    return np.array(accuracies)


def tar_at_far(score_P: np.ndarray, same_P: np.ndarray, far: float = FAR) -> float:
    """The highest true accept rate of a threshold whose false accept rate is at most ``far``."""
    from sklearn.metrics import roc_curve

    false, true, _ = roc_curve(same_P, score_P, drop_intermediate=False)
    return float(true[false <= far].max())


def rank1(mu_NxD: np.ndarray, label_N: np.ndarray) -> float:
    """Share of images whose nearest gallery image, by cosine, is of the same person.

    The gallery is the first image of each person; the others are asked about.
    """
    _, first = np.unique(label_N, return_index=True)
    asked = np.setdiff1d(np.arange(len(label_N)), first)
    if not len(asked):
        raise UserError("data.hold_out: each person has one image; want two or more of some")
    code = unit(mu_NxD)
    nearest = recognition.neighbours(code[first], code[asked], 1)[:, 0]
    return float((label_N[first][nearest] == label_N[asked]).mean())


def measure(
    mu_NxD: np.ndarray, label_N: np.ndarray, folds: int, seed: int = 0
) -> dict[str, float | int | Sequence[float]]:
    """The content of verification.json, from codes and the person of each."""
    from sklearn.metrics import roc_curve

    pairs = draw_pairs(label_N, folds, seed)
    code = unit(mu_NxD)
    score_P = (code[pairs.first] * code[pairs.second]).sum(1)
    accuracies = fold_accuracies(score_P, pairs)
    false, true, _ = roc_curve(pairs.same, score_P)
    return {
        "people": len(np.unique(label_N)),
        "images": len(label_N),
        "pairs": len(score_P),
        "folds": folds,
        "pairs_accuracy": float(accuracies.mean()),
        "pairs_accuracy_se": float(accuracies.std(ddof=1) / np.sqrt(folds)),
        "eer": recognition.equal_error(false, true),
        "tar_at_far": tar_at_far(score_P, pairs.same),
        "far": FAR,
        "rank1": rank1(mu_NxD, label_N),
    }


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    command.define(values)
    flags.DEFINE_integer("folds", 10, "of people, for the pairs protocol", flag_values=values)


def run(argv: list[str]) -> int:
    """Measure the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    subject = command.subject_of(values, "verification.json")
    unseen = subject.data.unseen
    if unseen is None:
        raise UserError("data.hold_out=(): nobody is unseen; want a run that held people out")
    mu = forward(subject)(unseen)["mu"]
    content = measure(mu, unseen.label, values.folds)
    command.write(values, "verification.json", content)
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
