"""Every OOD score of a run against near and far data sets, as OpenOOD counts it.

    python -m vae_jax.evaluate.ood_benchmark --workdir=runs/mnist --near=fashion_mnist \
        --far=cifar10_20k,textures

Writes ood_benchmark.json into the run's folder and prints a table. Without ``--near`` and ``--far``
the sets are those of ``detection.SETS`` that are prepared. ``--background=RUN`` is a run on mutated
images of the same data set, for the likelihood ratio. The threshold of each score is chosen on
validation images, at ``--false_alarm``; its rate on test images is printed beside it. Nothing here
is chosen by looking at an OOD image.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import evaluation, sources, textures
from vae_jax.distributions import example_keys, sample_keys
from vae_jax.evaluate import command, detection, likelihood, ood, ood_scores, tasks
from vae_jax.evaluate.run import Forward, forward
from vae_jax.evaluate.subject import Subject, restored
from vae_jax.evaluate.trained import why_unclassified
from vae_jax.models import Model
from vae_jax.train import checkpoint, step

DEEPEST = 4  # LLR>k for k up to this, or to the number of levels less one
FITTED = 1_000  # training images that the corrections of grey levels are taken from
CLASSIFIER = ("softmax", "energy", "odin")
CODE = ("mahalanobis", "knn")
BOUND = ("elbo", "iw", "typicality", "complexity", "regret")
IMAGE = ("bias", "bias_stretched", "ratio")
LABELLED = ("class_kl", "reconstruction")
LEVELS = tuple(f"llr_{k}" for k in range(1, DEEPEST + 1))
NAMES = (*CLASSIFIER, *CODE, *BOUND, *IMAGE, *LABELLED, *LEVELS)
Scores = dict[str, np.ndarray]  # one number per image
Sets = Mapping[str, Mapping[str, data.Split]]  # {"near" or "far": {name: images}}


@dataclasses.dataclass(frozen=True)
class Reference:
    """What scores compare an image with.

    Args:
      subject: the run.
      forward: the outputs of its nets.
      code_NxD: latent means of training images.
      gaussians: their Mahalanobis distance.
      bits_M: −log2 p(x) of validation images; None of a model without a decoder.
      corrections_V: of each grey level (``ood_scores.level_corrections``); None where missing.
      background: the run on mutated images, or None.
      missing: {score: why it is missing}.
    """

    subject: Subject
    forward: Forward
    code_NxD: np.ndarray
    gaussians: ood.Gaussians
    bits_M: np.ndarray | None
    corrections_V: np.ndarray | None
    background: Subject | None
    missing: dict[str, str]

    @property
    def key(self) -> jax.Array:
        return step.stream(self.subject.config.seed, "ood")


def depths(model: Model) -> range:
    """The k of LLR>k."""
    return range(1, min(model.levels - 1, DEEPEST) + 1)


def reference(
    subject: Subject, background: Subject | None = None, without: Sequence[str] = ()
) -> Reference:
    """What training and validation say; ``without``: scores that are not wanted."""
    missing = _missing(subject, background) | dict.fromkeys(without, "it was not asked for")
    look = forward(subject)
    code, label, _ = tasks.gallery(subject.data, look)
    key = step.stream(subject.config.seed, "ood")
    bits = None
    if subject.model.decode is not None:
        few = data.some(subject.data.validation, tasks.IMAGES)
        rows = ood.scores(subject, few, key, usual=None, ensemble=None, but=())
        bits = rows["iw"]
    corrections = None
    if not {"bias", "bias_stretched"} <= missing.keys():
        rows = _pixels(subject, data.some(subject.data.train, FITTED))
        levels = _levels(subject)
        corrections = ood_scores.level_corrections(rows["log_px"], _whole(rows["level"]), levels)
    gaussians = ood.Gaussians(code, label)
    return Reference(subject, look, code, gaussians, bits, corrections, background, missing)


def _missing(subject: Subject, background: Subject | None) -> dict[str, str]:
    """{score: why the run has none}."""
    model = subject.model
    missing = {}
    why = why_unclassified(subject)
    if why:
        missing |= dict.fromkeys(CLASSIFIER, why)
    missing |= ood.without(subject, None)
    del missing["waic"]  # of an ensemble: eval.py --tasks=ood
    missing.pop("latent", None)
    if model.decode is None:
        return missing | dict.fromkeys(IMAGE, "the model has no decoder")
    likelihood_config = subject.config.likelihood
    if background is None:
        missing["ratio"] = "there is no run on mutated images; want --background=RUN"
    reason = None
    if model.shape[2] != 1:
        reason = "the images are in colour, and grey levels are corrected"
    elif likelihood_config.name == "gaussian_optimal" or likelihood_config.get("per") == "image":
        reason = f"the pixels of likelihood {likelihood_config.name} share their variance"
    if reason:
        missing |= dict.fromkeys(("bias", "bias_stretched"), reason)
    return missing


def _levels(subject: Subject) -> int:
    """Grey levels of what the model is of."""
    return subject.levels if subject.config.data.binarize == "none" else 2


def _whole(level_NxP: np.ndarray) -> np.ndarray:
    return level_NxP.astype(np.int64)


def _pixels(subject: Subject, split: data.Split) -> dict[str, np.ndarray]:
    """{'log_px': log p of each pixel with z at q's mean, 'level': its grey level}, NxP each."""
    model = subject.model
    to_x = evaluation.inputs(subject.config, subject.levels)
    top = _levels(subject) - 1

    def program(params: dict, batch: dict) -> dict[str, jax.Array]:
        x = to_x(batch)
        y = model.map_label(params, x)
        out = model.decode(params, model.encode(params, x, y).mu, y)
        log_px = ood_scores.pixel_log_px(model.likelihood, out, x)
        level = jnp.rint(top * x)
        return {"log_px": log_px.reshape(len(x), -1), "level": level.reshape(len(x), -1)}

    return likelihood.over_split(subject, program, split)


def scores(ref: Reference, split: data.Split) -> Scores:
    """{score: N} of a split: all that the run has."""
    out = _code_scores(ref, split)
    if ref.subject.model.decode is not None:
        out |= _bound_scores(ref, split)
    return {name: score for name, score in out.items() if name not in ref.missing}


def _code_scores(ref: Reference, split: data.Split) -> Scores:
    """Scores of the code and of the classifier."""
    outputs = ref.forward(split)
    out = {
        "mahalanobis": ref.gaussians(outputs["mu"]),
        "knn": ood_scores.knn_distance(ref.code_NxD, outputs["mu"]),
    }
    model = ref.subject.model
    if set(CLASSIFIER) <= ref.missing.keys():
        return out
    out["softmax"] = ood_scores.max_softmax(outputs["logits"])
    out["energy"] = ood_scores.energy(outputs["logits"])
    to_x = evaluation.seen(ref.subject.config, ref.subject.levels)
    score = ood_scores.odin(model)

    def program(params: dict, batch: dict) -> dict[str, jax.Array]:
        return {"odin": score(params, to_x(batch))}

    return out | likelihood.over_split(ref.subject, program, split)


def _bound_scores(ref: Reference, split: data.Split) -> Scores:
    """Scores of bounds on log p(x); those of ``ood.scores`` are in bits."""
    subject = ref.subject
    options = {"usual": ref.bits_M, "ensemble": None, "but": {*ref.missing, "waic"}}
    out = ood.scores(subject, split, ref.key, **options)
    out.pop("regret_late", None)
    nats = out["iw"] / ood.BITS
    if ref.corrections_V is not None:
        level = _whole(_pixels(subject, split)["level"])
        out["bias"] = ood_scores.bias_corrected(nats, level, ref.corrections_V)
    if ref.corrections_V is not None and "bias_stretched" not in ref.missing:
        stretched = ood_scores.contrast_stretched(split.image, subject.levels)
        part = split._replace(image=stretched)
        rows = likelihood.log_likelihood(subject, part, ref.key, k=ood.SAMPLES)
        level = _whole(_pixels(subject, part)["level"])
        out["bias_stretched"] = ood_scores.bias_corrected(-rows["iw"], level, ref.corrections_V)
    if ref.background is not None:
        rows = likelihood.log_likelihood(ref.background, split, ref.key, k=ood.SAMPLES)
        out["ratio"] = ood_scores.likelihood_ratio(nats, -rows["iw"])
    spec = subject.model.spec
    if spec.labelled and not spec.auxiliary:
        out |= _class_scores(ref, split)
    if spec.levels > 1 and not spec.labelled:
        out |= _level_ratios(ref, split)
    return out


def _class_scores(ref: Reference, split: data.Split) -> Scores:
    """Distance to the predicted class and error of the reconstruction, in nats."""
    subject = ref.subject
    to_x = evaluation.inputs(subject.config, subject.levels)

    def program(params: dict, batch: dict) -> dict[str, jax.Array]:
        keys = example_keys(ref.key, batch["id"])
        keys_KxB = sample_keys(keys, jnp.arange(ood.SAMPLES))
        return ood_scores.class_scores(subject.model, params, to_x(batch), keys_KxB)

    images, _ = likelihood.call_size(subject.model, subject.mesh, ood.SAMPLES)
    return likelihood.over_split(subject, program, split, images)


def _level_ratios(ref: Reference, split: data.Split) -> Scores:
    """LLR>k in nats, of one program for all k."""
    subject = ref.subject
    to_x = evaluation.inputs(subject.config, subject.levels)

    def program(params: dict, batch: dict) -> dict[str, jax.Array]:
        keys = example_keys(ref.key, batch["id"])
        keys_KxB = sample_keys(keys, jnp.arange(ood.SAMPLES))
        score = functools.partial(ood_scores.level_ratio, subject.model, params, to_x(batch))
        return {f"llr_{k}": score(keys_KxB, k) for k in depths(subject.model)}

    images, _ = likelihood.call_size(subject.model, subject.mesh, ood.SAMPLES)
    return likelihood.over_split(subject, program, split, images)


def ood_sets(
    subject: Subject,
    near: Sequence[str],
    far: Sequence[str],
    images: int,
    say: Callable[[str], Any] = print,
) -> Sets:
    """The named sets, ``images`` of each at most, in the run's own format.

    Without names those of ``detection.SETS``; of these, sets that are not prepared are left out,
    and ``say`` is told in one line.

    Raises:
      UserError: a named set is unknown or not prepared, or there is none.
    """
    names = {"near": near, "far": far}
    default = not near and not far
    if default:
        names = detection.SETS.get(subject.config.data.name, {"far": ("textures",)})
    sets = {}
    for kind, members in names.items():
        sets[kind] = {}
        for name in members:
            try:
                sets[kind][name] = _ood_set(subject, kind, name, images)
            except sources.NotPrepared as error:
                if not default:
                    raise
                say(f"{kind}: without {name}: {error}")
    if not any(sets.values()):
        raise UserError("far=: no set of images to be told apart; want a name such as textures")
    return sets


def _ood_set(subject: Subject, kind: str, name: str, images: int) -> data.Split:
    if name == "textures":
        made = textures.textures(images, subject.data.shape, subject.levels)
        return data.Split(made, None)
    if config_lib.absolute_name(name) == subject.config.data.name:
        raise UserError(f"{kind}={name}: is what the run was trained on; want another data set")
    return data.foreign(name, subject.config.data, subject.data, images)


def page(
    inside: Scores, validation: Scores, outside: Mapping[str, Mapping[str, Scores]], rate: float
) -> dict[str, dict[str, Any]]:
    """{score: its threshold, its false alarms and its detection} as plain JSON.

    ``inside``: scores of test images; ``outside``: {"near" or "far": {set: scores}}; ``rate``: of
    false alarms, for the threshold that validation gives. A row is {"threshold", "test_alarms":
    (rate, low, high), "near", "far": the mean AUROC of these sets, "sets": {set: {"auroc",
    "auroc_low", "auroc_high", "aupr_in", "aupr_out", "fpr95", "alarms"}}}.
    """
    rows = {}
    for score, inside_N in inside.items():
        limit = detection.threshold(validation[score], rate)
        row = {"threshold": limit, "test_alarms": detection.alarm_rate(inside_N, limit), "sets": {}}
        for kind, members in outside.items():
            for name, scored in members.items():
                row["sets"][name] = _against(inside_N, scored[score], limit)
            if members:
                row[kind] = float(np.mean([row["sets"][name]["auroc"] for name in members]))
        rows[score] = row
    return rows


def measure(ref: Reference, sets: Sets, images: int, rate: float) -> dict[str, Any]:
    """{"images", "false_alarm", "missing", "scores": :func:`page`} as plain JSON."""
    inside = scores(ref, data.some(ref.subject.data.test, images))
    if not inside:
        raise UserError(f"without={','.join(ref.missing)}: leaves no score; want fewer")
    validation = scores(ref, data.some(ref.subject.data.validation, images))
    outside = {}
    for kind, members in sets.items():
        outside[kind] = {name: scores(ref, split) for name, split in members.items()}
    return {
        "images": len(next(iter(inside.values()))),
        "false_alarm": rate,
        "missing": ref.missing,
        "scores": page(inside, validation, outside, rate),
    }


def _against(inside_N: np.ndarray, outside_M: np.ndarray, limit: float) -> dict[str, float]:
    low, high = ood.interval(inside_N, outside_M)
    alarms, _, _ = detection.alarm_rate(outside_M, limit)
    ends = {"auroc_low": low, "auroc_high": high, "alarms": alarms}
    return detection.detection(inside_N, outside_M) | ends


def table(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The AUROC of each score (rows) and set (columns), and the false alarms on test images."""
    names = list(next(iter(rows.values()))["sets"])
    lines = [" ".join([f"{'AUROC':<16}", *(f"{name:>14}" for name in names), "  false alarms"])]
    for score, row in rows.items():
        cells = [f"{row['sets'][name]['auroc']:>14.3f}" for name in names]
        lines.append(" ".join([f"{score:<16}", *cells, f"{row['test_alarms'][0]:>14.3f}"]))
    return "\n".join(lines)


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    command.define(values)
    flags.DEFINE_list("near", [], "data sets in the run's format", flag_values=values)
    flags.DEFINE_list("far", [], "data sets of another kind, or textures", flag_values=values)
    flags.DEFINE_string("background", "", "folder of a run on mutated images", flag_values=values)
    flags.DEFINE_list("without", [], "scores to leave out, such as regret", flag_values=values)
    flags.DEFINE_integer(
        "images", tasks.IMAGES, "of each set, at most", lower_bound=20, flag_values=values
    )
    flags.DEFINE_float("false_alarm", 0.05, "rate of the thresholds", flag_values=values)


def background_of(values: flags.FlagValues, subject: Subject) -> Subject | None:
    """The run on mutated images that the flags name, or None."""
    folder = values.background
    if not folder:
        return None
    if os.path.realpath(folder) == os.path.realpath(values.workdir):
        raise UserError(f"background={folder}: is the run itself; want one on mutated images")
    background = restored(folder, values.data_dir)
    same = (background.model.shape, background.levels) == (subject.model.shape, subject.levels)
    if not same or background.model.decode is None:
        raise UserError(f"background={folder}: want a VAE of the same images")
    for field, (theirs, ours) in config_lib.changed(background.config, subject.config).items():
        if field.startswith(("likelihood", "data.binarize")):
            said = f"its {field} is {theirs}, the run's {ours}"
            raise UserError(f"background={folder}: {said}; want the same")
    return background


def run(argv: list[str]) -> int:
    """Measure the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    for name in values.without:
        if name not in NAMES:
            raise UserError(f"without={name}: no score; {config_lib.nearest(name, NAMES)}")
    subject = command.subject_of(values, "ood_benchmark.json")
    few = min(values.images, len(subject.data.validation.image))
    detection.threshold(np.zeros(few), values.false_alarm)  # raises before the work
    background = background_of(values, subject)
    sets = ood_sets(subject, values.near, values.far, values.images)
    ref = reference(subject, background, values.without)
    content = measure(ref, sets, values.images, values.false_alarm)
    checkpoint.write_json(os.path.join(values.workdir, "ood_benchmark.json"), content)
    print(table(content["scores"]))
    for score, reason in content["missing"].items():
        print(f"without {score}: {reason}")
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
