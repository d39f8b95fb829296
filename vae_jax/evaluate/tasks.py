"""The subjects that ``eval.py --tasks`` adds to an evaluation; each gives (metrics, why, pictures).

A metric with an @ in its name is one of a series, which the report draws and does not list.
"""

import functools

import jax
import numpy as np

from vae_jax import data
from vae_jax.data import evaluation
from vae_jax.evaluate import classification, generative, ood, recognition, robustness
from vae_jax.evaluate.run import looker
from vae_jax.mesh import hosts
from vae_jax.train import program as compile_lib
from vae_jax.train.step import stream

IMAGES = 2_000  # of a set, an even stride apart, for what takes many passes an image
ATTACKED = 1_000  # of these; a gradient for each step of each strength
QUERIES, SHOWN = 8, 9  # rows and columns of the gallery of neighbours
POINTS = 501  # of a curve in the report
DRAWS = 8  # of the classifier that draws its code, and of Bayes' rule under attack
IW = 20  # importance samples of Bayes' rule


def perform(tasks, s, params, *, others=None, ensemble=None, say=print):
    """(metrics, why, pictures) of the named :data:`TASKS`; ``s``: the ``workdir.Setup``.

    ``others``: {name: ``data.Split``} of images that are not of training's kind, for ``ood``. ``ensemble``: the
    parameters of several seeds, stacked, for its WAIC. ``say`` is told in one line what cannot be had, and why.
    """
    if hosts.several():  # what follows is small: each process does it alone
        params = jax.tree.map(hosts.fetch, params)
    look = functools.partial(looker(s.c, s.model, s.dataset.levels, s.mesh), params)
    metrics, why, pictures = {}, {}, {}
    for task in tasks:
        given = (others, ensemble) if task == "ood" else ()
        found = TASKS[task](s, params, look, *given)
        for into, part in zip((metrics, why, pictures), found, strict=True):
            into.update(part)
    for reason in dict.fromkeys(why.values()):
        say(f"without {', '.join(key for key in why if why[key] == reason)}: {reason}")
    return (
        {k: v if isinstance(v, int) else float(v) for k, v in metrics.items()} | dict.fromkeys(why),
        why,
        pictures,
    )


def gallery(dataset, look):
    """(latent means of training images, their labels or None, their places)."""
    split = dataset.train if dataset.train.label is None else data.labelled(dataset.train)
    every = -(-len(split.image) // recognition.NEIGHBOURS)
    mu = look(split, every)["mu"]
    return mu, None if split.label is None else split.label[::every], split.image[::every]


def _unlabelled(model, dataset):
    """None, or why there is nothing to be classified."""
    if dataset.test.label is None:
        return "the data has no labels"
    return "the model has no classifier" if model.classify is None else None


def calibration(s, params, look):
    """``classification``: the temperature that validation asks for, and what it does to the test set; of a conditional
    model also the answers by Bayes' rule."""
    model, dataset = s.model, s.dataset
    keys, reason = (
        ("temperature", "calibrated_cross_entropy_nats", "calibrated_ece"),
        _unlabelled(model, dataset),
    )
    if not reason and not (dataset.validation.label >= 0).any():
        reason = "no validation image has a label"
    if reason:
        return {}, dict.fromkeys(keys, reason), {}
    fit, label = data.labelled(dataset.validation), dataset.test.label
    fitted, test = (look(split)["logits"] for split in (fit, dataset.test))
    t = classification.temperature(fitted, fit.label)
    curves = {}
    for name, logits in (("as trained", test), (f"at temperature {t:.2f}", test / t)):
        log_p = classification.log_softmax(logits)
        curves[name] = classification.reliability(np.exp(log_p.max(1)), log_p.argmax(1) == label)
    figures, _ = classification.figures(test / t, label)
    metrics = dict(zip(keys, (t, figures["cross_entropy_nats"], figures["ece"]), strict=True))
    if model.spec.labelled and model.decode is not None:
        more, curves["by Bayes' rule"] = bayes(s, params)
        metrics |= more
    return metrics, {}, {"reliability": curves}


def bayes(s, params):
    """(figures, reliability) of a conditional model as generative classifier; images that it finds least probable are
    rejected first."""
    test, key = s.dataset.test, stream(s.c.seed, "test")
    log_pxy = generative.class_evidence(
        s.c, s.model, params, test, s.dataset.levels, s.mesh, key, k=IW
    )
    log_p, hit = classification.log_softmax(log_pxy), log_pxy.argmax(1) == test.label
    found, _ = classification.figures(log_pxy, test.label)
    figures = {f"bayes_{name}": found[name] for name in ("accuracy", "cross_entropy_nats", "ece")}
    _, kept = generative.rejection(log_pxy, test.label)
    return figures | {"bayes_rejection_accuracy": kept.mean()}, classification.reliability(
        np.exp(log_p.max(1)), hit
    )


def recognise(s, params, look):
    """``recognition``: retrieval among training images; verification and open set where classes were held out."""
    pairs = ("verification_auroc", "verification_eer")
    opened = ("open_set_confidence_auroc", "open_set_latent_auroc", "rejection_accuracy")
    model, dataset = s.model, s.dataset
    test, unseen, levels = dataset.test, dataset.unseen, dataset.levels
    if test.label is None:
        return (
            {},
            dict.fromkeys(
                ("knn1_accuracy", "map_at_10", *pairs, *opened), _unlabelled(model, dataset)
            ),
            {},
        )
    out = look(test)
    mu, label, image = gallery(dataset, look)
    near = recognition.neighbours(mu, out["mu"], 10)
    same = label[near] == test.label[:, None]
    metrics = {
        "knn1_accuracy": same[:, 0].mean(),
        "map_at_10": recognition.mean_average_precision(same),
    }
    rows = np.arange(QUERIES) * len(near) // QUERIES
    shown = [np.stack([image[i] for i in near[row, :SHOWN]]) for row in rows]
    asked = np.stack([test.image[row] for row in rows])
    pictures = {
        "retrieval": (asked / (levels - 1), np.stack(shown) / (levels - 1), same[rows, :SHOWN])
    }
    if unseen is None:
        reason = "no class was held out of training; want a run with --config.data.hold_out, such as (8,9)"
        return metrics, dict.fromkeys((*pairs, *opened), reason), pictures

    few = data.some(unseen, recognition.PAIRS)
    found = recognition.verification(look(few)["mu"], few.label)
    metrics |= dict(zip(pairs, (found["auroc"], found["eer"]), strict=True))
    share = np.linspace(0, 1, POINTS)
    roc = np.interp(share, found["false"], found["true"])
    pictures["verification"] = {"cosine of latent means": (share, roc)}
    if model.classify is None:
        return metrics, dict.fromkeys(opened, _unlabelled(model, dataset)), pictures
    strange, gauss = look(unseen), ood.Gaussians(mu, label)
    sets = (out, strange)
    doubt = [-classification.log_softmax(o["logits"]).max(1) for o in sets]
    far = [gauss(o["mu"]) for o in sets]
    right = np.concatenate(
        [out["logits"].argmax(1) == test.label, np.zeros(len(unseen.label), bool)]
    )
    curves = {
        name: recognition.rejection(-np.concatenate(score), right)
        for name, score in (("by confidence", doubt), ("by distance in latent space", far))
    }
    values = (ood.auroc(*doubt), ood.auroc(*far), curves["by confidence"][1].mean())
    pictures["rejection"] = {
        name: (share, np.interp(share, *curve)) for name, curve in curves.items()
    }
    return metrics | dict(zip(opened, values, strict=True)), {}, pictures


def strangers(s, params, look, others, ensemble):
    """``ood``: the AUROC of each of ``ood.SCORES`` against each other data set, with its bootstrap interval."""
    dataset, key, why = (
        s.dataset,
        stream(s.c.seed, "ood"),
        ood.without(s.c, s.model, params, ensemble),
    )
    gauss = ood.Gaussians(*gallery(dataset, look)[:2])
    usual = None

    def scores(split):
        found = {"latent": gauss(look(split)["mu"])}
        if s.model.decode is None:
            return found
        given = (s.c, s.model, params, split, dataset.levels, s.mesh, key)
        return found | ood.scores(*given, usual=usual, ensemble=ensemble, but=why)

    if s.model.decode is not None:
        usual = scores(data.some(dataset.validation, IMAGES))["iw"]
    own = data.some(dataset.test, IMAGES)
    inside, metrics, panels = scores(own), {"ood_images": len(own.image)}, {}
    for name, other in others.items():
        outside, rows = scores(other), {}
        metrics[f"ood_images@{name}"] = len(other.image)
        for score in (name for name in ood.SCORES if name in inside):
            rows[score] = (
                ood.auroc(inside[score], outside[score]),
                *ood.interval(inside[score], outside[score]),
            )
            for end, value in zip(("", "_low", "_high"), rows[score], strict=True):
                metrics[f"ood_{score}_auroc{end}@{name}"] = value
        best = max(rows, key=lambda score: rows[score][0])
        seen = {
            score: (inside[score], outside[score])
            for score in dict.fromkeys(("elbo", best))
            if score in rows
        }
        panels[name] = {"auroc": rows, "scores": seen}
    return metrics, {f"ood_{score}_auroc": reason for score, reason in why.items()}, {"ood": panels}


def withstand(s, params, look):
    """``robustness``: accuracy under each corruption and attack, five strengths each, and the means over these; of a
    conditional model also by Bayes' rule."""
    model, dataset = s.model, s.dataset
    names, reason = [*robustness.CORRUPTIONS, "fgsm", "pgd"], _unlabelled(model, dataset)
    if reason:
        return {}, dict.fromkeys([f"{name}_accuracy" for name in names], reason), {}
    levels, key = dataset.levels, stream(s.c.seed, "robustness")
    # How the model may be asked: at the mean, at draws of its code, by Bayes' rule.
    asked = {"": (0, False)}
    if robustness.drawing(model):
        asked["_drawn"] = (DRAWS, False)
    if model.spec.labelled and model.decode is not None:
        asked["_bayes"] = (DRAWS, True)
    log_p = {end: robustness.log_probabilities(model, *how) for end, how in asked.items()}
    judge = {end: compile_lib.simple(f) for end, f in log_p.items()}
    to_x, curves = compile_lib.simple(evaluation.seen(s.c, levels)), {}

    def shown(split):
        """(what the nets see, labels), 200 images at a time."""
        for start in range(0, len(split.image), 200):
            image, label = split.image[start : start + 200], split.label[start : start + 200]
            yield to_x({"image": image, "id": np.arange(start, start + len(image))}), label

    def right(end, x, label):
        return (np.asarray(judge[end](params, x, key)).argmax(1) == label).sum()

    split, read = data.some(dataset.test, IMAGES), [end for end in asked if end != "_drawn"]
    for name, (_, strengths) in robustness.CORRUPTIONS.items():
        for end in read:
            curves[name + end] = (strengths, np.zeros(len(strengths)))
        for i, strength in enumerate(strengths):
            worse = split._replace(image=robustness.corrupted(split.image, levels, name, strength))
            for x, label in shown(worse):
                for end in read:
                    curves[name + end][1][i] += right(end, x, label) / len(split.image)
    split = data.some(dataset.test, ATTACKED)
    for end in asked:
        run, hits = robustness.attacks(log_p[end]), np.zeros((2, len(robustness.EPSILON)))
        for x, label in shown(split):
            for e, epsilon in enumerate(robustness.EPSILON):
                hits[:, e] += [
                    right(end, fooled, label) for fooled in run(params, x, label, key, epsilon)
                ]
        for name, hit in zip(("fgsm", "pgd"), hits / len(split.image), strict=True):
            curves[name + end] = (robustness.EPSILON, hit)
    metrics = {f"{name}_accuracy": np.mean(hits) for name, (_, hits) in curves.items()}
    for name, (strengths, hits) in curves.items():
        metrics |= {
            f"{name}_accuracy@{strength}": hit
            for strength, hit in zip(strengths, hits, strict=True)
        }
    return metrics, {}, {"robustness": curves}


TASKS = {
    "classification": calibration,
    "recognition": recognise,
    "ood": strangers,
    "robustness": withstand,
}
