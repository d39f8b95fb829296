"""What ``eval.py --tasks`` adds to an evaluation; each task returns (metrics, why, pictures).

A metric with an @ in its name is one of a series, which the report draws and does not list.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from vae_jax import data
from vae_jax.data import evaluation
from vae_jax.evaluate import (
    attacks,
    classification,
    generative,
    ood,
    quality,
    recognition,
    robustness,
    scenes,
)
from vae_jax.evaluate.clusters import clustering
from vae_jax.evaluate.codes import code_use
from vae_jax.evaluate.factors import factor_scores
from vae_jax.evaluate.ood_scores import shown_maps
from vae_jax.evaluate.run import Forward, Result, forward
from vae_jax.evaluate.subject import Subject
from vae_jax.evaluate.trained import why_unclassified
from vae_jax.mesh import hosts
from vae_jax.train import program as compile_lib
from vae_jax.train.step import stream

IMAGES = 2_000  # of a set, an even stride apart, for what takes many passes an image
ATTACKED = 1_000  # of these; a gradient for each step of each strength
QUERIES = 8  # rows of the gallery of neighbours
SHOWN = 9  # its columns
POINTS = 501  # of a curve in the report
DRAWS = 8  # of the classifier that draws its code, and of Bayes' rule under attack
IW = 20  # importance samples of Bayes' rule


def perform(
    tasks: Sequence[str],
    subject: Subject,
    *,
    others: Mapping[str, data.Split] | None = None,
    ensemble: dict | None = None,
    features: tuple[str, quality.See] | None = None,
    say: Callable[[str], Any] = print,
) -> dict[str, Result]:
    """{task: (metrics, why, pictures)} of the named :data:`TASKS`.

    ``others``: {name: images} of other data sets, for ``ood``. ``ensemble``: the stacked parameters
    of several seeds, for its WAIC. ``features``: their mark and images → features, for ``quality``.
    ``say`` is called with one line for each missing metric's reason.
    """
    if hosts.several():  # what follows is small: each process does it alone
        params = jax.tree.map(hosts.fetch, subject.params)
        subject = dataclasses.replace(subject, params=params)
    look = forward(subject)
    needs = {"ood": (others, ensemble), "quality": (features,)}
    results = {}
    reasons: dict[str, list[str]] = {}
    for task in tasks:
        metrics, why, pictures = TASKS[task](subject, look, *needs.get(task, ()))
        for key, value in metrics.items():
            metrics[key] = value if isinstance(value, int | None) else float(value)
        results[task] = (metrics | dict.fromkeys(why), why, pictures)
        for key, reason in why.items():
            reasons.setdefault(reason, []).append(key)
    for reason, keys in reasons.items():
        say(f"without {', '.join(keys)}: {reason}")
    return results


def gallery(
    dataset: data.Dataset, look: Forward
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """(latent means of training images, their labels or None, the images)."""
    split = dataset.train
    if split.label is not None:
        split = data.labelled(split)
    every = -(-len(split.image) // recognition.NEIGHBOURS)
    mu = look(split, every)["mu"]
    label = None if split.label is None else split.label[::every]
    return mu, label, split.image[::every]


def calibration(subject: Subject, look: Forward) -> Result:
    """``classification``: the temperature fitted on validation, and what it changes on test.

    Of a conditional model also the classification by Bayes' rule.
    """
    dataset = subject.data
    keys = ("temperature", "calibrated_cross_entropy_nats", "calibrated_ece")
    reason = why_unclassified(subject)
    if not reason and not (dataset.validation.label >= 0).any():
        reason = "no validation image has a label"
    if reason:
        return {}, dict.fromkeys(keys, reason), {}
    fit = data.labelled(dataset.validation)
    label = dataset.test.label
    test = look(dataset.test)["logits"]
    t = classification.temperature(look(fit)["logits"], fit.label)
    curves = {}
    for name, logits in (("as trained", test), (f"at temperature {t:.2f}", test / t)):
        log_p = classification.log_softmax(logits)
        curves[name] = classification.reliability_of(log_p, label)
    figures, _ = classification.figures(test / t, label)
    values = (t, figures["cross_entropy_nats"], figures["ece"])
    metrics = dict(zip(keys, values, strict=True))
    if subject.model.spec.labelled and subject.model.decode is not None:
        more, curves["by Bayes' rule"] = bayes(subject)
        metrics |= more
    return metrics, {}, {"reliability": curves}


def bayes(subject: Subject) -> tuple[dict[str, float], classification.Bins]:
    """(metrics, reliability) of a conditional model as generative classifier."""
    label = subject.data.test.label
    key = stream(subject.config.seed, "test")
    log_pxy = generative.class_evidence(subject, subject.data.test, key, k=IW)
    figures, _ = classification.figures(log_pxy, label)
    metrics = {}
    for name in ("accuracy", "cross_entropy_nats", "ece"):
        metrics[f"bayes_{name}"] = figures[name]
    _, accuracy_N = generative.rejection(log_pxy, label)
    metrics["bayes_rejection_accuracy"] = accuracy_N.mean()
    log_p = classification.log_softmax(log_pxy)
    return metrics, classification.reliability_of(log_p, label)


RETRIEVAL = ("knn1_accuracy", "map_at_10", "map")
VERIFIED = ("verification_auroc", "verification_eer")
BETWEEN = tuple(f"{name}_{end}" for name in VERIFIED for end in ("low", "high"))
COUNTS = tuple(f"verification_{name}" for name in ("classes", "images", "same", "different"))
OPEN_SET = ("open_set_confidence_auroc", "open_set_latent_auroc", "rejection_accuracy")


def recognise(subject: Subject, look: Forward) -> Result:
    """``recognition``: retrieval; verification and open set where classes were held out."""
    test = subject.data.test
    unseen = subject.data.unseen
    unknown = (*VERIFIED, *BETWEEN, *COUNTS, *OPEN_SET)
    if test.label is None:
        return {}, dict.fromkeys((*RETRIEVAL, *unknown), why_unclassified(subject)), {}
    out = look(test)
    codes = gallery(subject.data, look)
    metrics, pictures = _retrieval(subject, out["mu"], codes)
    if unseen is None:
        advice = "want a run with --config.data.hold_out, such as (8,9)"
        reason = f"no class was held out of training; {advice}"
        return metrics, dict.fromkeys(unknown, reason), pictures
    why = {}
    for values, reasons, panels in (
        _verified(look, unseen),
        _open_set(subject, look, out, codes),
    ):
        metrics |= values
        why |= reasons
        pictures |= panels
    return metrics, why, pictures


def _retrieval(subject: Subject, mu_MxD: np.ndarray, codes: tuple) -> tuple[dict, dict]:
    test = subject.data.test
    white = subject.levels - 1
    mu, label, image = codes
    near = recognition.neighbours(mu, mu_MxD, 10)
    same = label[near] == test.label[:, None]
    metrics = {
        "knn1_accuracy": same[:, 0].mean(),
        "map_at_10": recognition.mean_average_precision(same),
        "map": recognition.retrieval_map(mu, label, mu_MxD, test.label),
    }
    rows = np.arange(QUERIES) * len(near) // QUERIES
    shown = np.stack([image[near[row, :SHOWN]] for row in rows])
    queries = np.stack([test.image[row] for row in rows])
    return metrics, {"retrieval": (queries / white, shown / white, same[rows, :SHOWN])}


def _verified(look: Forward, unseen: data.Split) -> Result:
    """Verification of the pairs of all images of unseen classes."""
    few = data.some(unseen, recognition.PAIRS)
    rates = recognition.verification(look(few)["mu"], few.label)
    classes = len(np.unique(few.label))
    counts = (classes, len(few.label), rates["same"], rates["different"])
    metrics = dict(zip(COUNTS, counts, strict=True))
    if rates["auroc"] is None:
        reason = "the held-out images have pairs of one kind only; want two classes or more"
        return metrics, dict.fromkeys((*VERIFIED, *BETWEEN), reason), {}
    metrics |= {f"verification_{name}": rates[name] for name in ("auroc", "eer")}
    why = {}
    if rates["auroc_interval"] is None:
        reason = f"{classes} held-out classes have no spread; want three or more"
        why = dict.fromkeys(BETWEEN, reason)
    else:
        ends = (*rates["auroc_interval"], *rates["eer_interval"])
        metrics |= dict(zip(BETWEEN, ends, strict=True))
    share = np.linspace(0, 1, POINTS)
    curve = (share, np.interp(share, rates["false"], rates["true"]))
    return metrics, why, {"verification": {"cosine of latent means": curve}}


def _open_set(subject: Subject, look: Forward, out: dict, codes: tuple) -> Result:
    """Test images against images of unseen classes, by confidence and by distance of the code."""
    reason = why_unclassified(subject)
    if reason:
        return {}, dict.fromkeys(OPEN_SET, reason), {}
    unseen = look(subject.data.unseen)
    gauss = ood.Gaussians(*codes[:2])
    doubt = [-classification.log_softmax(o["logits"]).max(1) for o in (out, unseen)]
    distance = [gauss(o["mu"]) for o in (out, unseen)]
    correct = out["logits"].argmax(1) == subject.data.test.label
    correct = np.append(correct, np.zeros(len(unseen["mu"]), bool))
    share = np.linspace(0, 1, POINTS)
    curves = {}
    means = []
    for name, score in (("by confidence", doubt), ("by distance in latent space", distance)):
        kept, accuracy = recognition.rejection(-np.concatenate(score), correct)
        curves[name] = (share, np.interp(share, kept, accuracy))
        means.append(accuracy.mean())
    values = (ood.auroc(*doubt), ood.auroc(*distance), means[0])
    return dict(zip(OPEN_SET, values, strict=True)), {}, {"rejection": curves}


def ood_scores(
    subject: Subject, look: Forward, others: Mapping[str, data.Split], ensemble: dict | None
) -> Result:
    """``ood``: the AUROC of each of ``ood.SCORES`` against each data set, with its interval."""
    key = stream(subject.config.seed, "ood")
    why = ood.without(subject, ensemble)
    gauss = ood.Gaussians(*gallery(subject.data, look)[:2])
    decodes = subject.model.decode is not None
    usual = None

    def scores(split: data.Split) -> dict[str, np.ndarray]:
        out = {"latent": gauss(look(split)["mu"])}
        if decodes:
            out |= ood.scores(subject, split, key, usual=usual, ensemble=ensemble, but=why)
        return out

    if decodes:
        usual = scores(data.some(subject.data.validation, IMAGES))["iw"]
    own = data.some(subject.data.test, IMAGES)
    inside = scores(own)
    metrics = {"ood_images": len(own.image)}
    if "regret" in inside:
        metrics["ood_regret_nats"] = inside["regret"].mean() / ood.BITS
        metrics["ood_regret_late_nats"] = inside["regret_late"].mean()
    panels = {}
    for name, other in others.items():
        outside = scores(other)
        rows = {}
        metrics[f"ood_images@{name}"] = len(other.image)
        for score in ood.SCORES:
            if score not in inside:
                continue
            pair = (inside[score], outside[score])
            rows[score] = (ood.auroc(*pair), *ood.interval(*pair))
            for end, value in zip(("", "_low", "_high"), rows[score], strict=True):
                metrics[f"ood_{score}_auroc{end}@{name}"] = value
        best = max(rows, key=lambda score: rows[score][0])
        drawn = {}
        for score in ("elbo", best):
            if score in rows:
                drawn[score] = (inside[score], outside[score])
        panels[name] = {"auroc": rows, "scores": drawn}
    pictures = {"ood": panels}
    if decodes and not subject.model.spec.auxiliary:
        pictures["anomaly"] = shown_maps(subject, {"test images": own, **others})
    return metrics, {f"ood_{score}_auroc": reason for score, reason in why.items()}, pictures


def robust(subject: Subject, look: Forward) -> Result:
    """``robustness``: accuracy under each corruption and attack, and the means over strengths.

    Of a conditional model also by Bayes' rule.
    """
    model = subject.model
    reason = why_unclassified(subject)
    if reason:
        kinds = (*robustness.CORRUPTIONS, "fgsm", "pgd", *attacks.NAMES)
        names = [f"{name}_accuracy" for name in kinds]
        return {}, dict.fromkeys(names, reason), {}
    readings = {"": robustness.log_probabilities(model)}
    if robustness.drawing(model):
        readings["_drawn"] = robustness.log_probabilities(model, DRAWS)
    if model.spec.labelled and model.decode is not None:
        readings["_bayes"] = robustness.log_probabilities(model, DRAWS, True)
    judges = {end: compile_lib.simple(log_p) for end, log_p in readings.items()}
    curves = _under_corruptions(subject, {e: j for e, j in judges.items() if e != "_drawn"})
    for end, log_p in readings.items():
        curves |= _under_attacks(subject, end, log_p, judges[end])
        curves |= _worst_case(subject, end, log_p)
    metrics = {f"{name}_accuracy": np.mean(hits) for name, (_, hits) in curves.items()}
    for name, (strengths, hits) in curves.items():
        for strength, hit in zip(strengths, hits, strict=True):
            metrics[f"{name}_accuracy@{strength}"] = hit
    return metrics, {}, {"robustness": curves}


Curves = dict[str, tuple[Sequence[float], np.ndarray]]  # strengths, accuracy at each
Judge = Callable[[dict, jax.Array, jax.Array], jax.Array]


def _inputs(subject: Subject, split: data.Split) -> Iterator[tuple[jax.Array, np.ndarray]]:
    """(the nets' inputs, labels), 200 images at a time."""
    to_x = compile_lib.simple(evaluation.seen(subject.config, subject.levels))
    for start in range(0, len(split.image), 200):
        image = split.image[start : start + 200]
        batch = {"image": image, "id": np.arange(start, start + len(image))}
        yield to_x(batch), split.label[start : start + 200]


def _hits(subject: Subject, judge: Judge, x: jax.Array, label: np.ndarray) -> int:
    key = stream(subject.config.seed, "robustness")
    return (np.asarray(judge(subject.params, x, key)).argmax(1) == label).sum()


def _under_corruptions(subject: Subject, judges: Mapping[str, Judge]) -> Curves:
    split = data.some(subject.data.test, IMAGES)
    curves = {}
    for name, (_, strengths) in robustness.CORRUPTIONS.items():
        for end in judges:
            curves[name + end] = (strengths, np.zeros(len(strengths)))
        for i, strength in enumerate(strengths):
            image = robustness.corrupted(split.image, subject.levels, name, strength)
            for x, label in _inputs(subject, split._replace(image=image)):
                for end, judge in judges.items():
                    hits = _hits(subject, judge, x, label)
                    curves[name + end][1][i] += hits / len(split.image)
    return curves


def _under_attacks(subject: Subject, end: str, log_p: robustness.LogP, judge: Judge) -> Curves:
    split = data.some(subject.data.test, ATTACKED)
    key = stream(subject.config.seed, "robustness")
    run = robustness.attacks(log_p)
    hits = np.zeros((2, len(robustness.EPSILON)))
    for x, label in _inputs(subject, split):
        for e, epsilon in enumerate(robustness.EPSILON):
            for i, attacked in enumerate(run(subject.params, x, label, key, epsilon)):
                hits[i, e] += _hits(subject, judge, attacked, label)
    curves = {}
    for name, hit in zip(("fgsm", "pgd"), hits / len(split.image), strict=True):
        curves[name + end] = (robustness.EPSILON, hit)
    return curves


def _worst_case(subject: Subject, end: str, log_p: robustness.LogP) -> Curves:
    count = min(attacks.IMAGES, ATTACKED)
    inputs = _inputs(subject, data.some(subject.data.test, count))
    key = stream(subject.config.seed, "robustness")
    found = attacks.curves(subject.params, inputs, log_p, key, robustness.EPSILON)
    return {name + end: curve for name, curve in found.items()}


def image_quality(subject: Subject, _: Forward, features: tuple[str, quality.See]) -> Result:
    """``quality``: FID, KID, precision and recall of samples in these features; PSNR and SSIM."""
    mark, see = features
    if subject.model.decode is None:
        names = (f"fid_{mark}", f"kid_{mark}", "psnr")
        return {}, dict.fromkeys(names, "the model has no decoder"), {}
    metrics, _ = quality.figures(subject, see, mark, quality.IMAGES)
    metrics["quality_images"] = metrics.pop("n")
    return metrics, {}, {}


TASKS = {
    "classification": calibration,
    "recognition": recognise,
    "ood": ood_scores,
    "robustness": robust,
    "quality": image_quality,
    "scenes": scenes.task,
    "codes": code_use,
    "factors": factor_scores,
    "clusters": clustering,
}
