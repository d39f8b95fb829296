"""What a metric is: its title, unit, better direction and meaning, by its key in metrics.json.

The function that computes a metric registers it beside its own code::

    register(Metric("ndb", "Bins that differ", "", "lower", "Share of k-means bins ..."))

The report lists registered metrics in the order of registration, then all others by their keys.
"""

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vae_jax.config import UserError
from vae_jax.report import words

FORMS = {
    "%": ".2%",
    "nats": ".2f",
    "nats / image": ".2f",
}  # unit -> format, unless a metric has one
SUFFIXES = {"nats": "nats", "bits": "bits", "s": "seconds"}  # end of an unknown key -> unit


@dataclass(frozen=True)
class Metric:
    """One figure of an evaluation.

    Args:
      name: its key in metrics.json.
      title: its name for a reader; "…" continues the metric before it.
      unit: "nats", "%", …; "" where it has none.
      better: "higher", "lower" or "".
      meaning: one sentence.
      form: a format specification; "" takes that of the unit.
    """

    name: str
    title: str
    unit: str = ""
    better: str = ""
    meaning: str = ""
    form: str = ""

    def text(self, value: Any) -> str:
        """The value for a reader, without its unit (but for "%")."""
        form = self.form or FORMS.get(self.unit, "")
        if not form or not isinstance(value, numbers.Real):
            return words.short(value)
        return words.minus(format(value, form)).replace("%", " %")


_REGISTRY: dict[str, Metric] = {}


def register(metric: Metric) -> Metric:
    """Add a metric to the registry, and return it.

    Raises:
      UserError: another metric has this name, or ``better`` is no direction.
    """
    if metric.better not in ("higher", "lower", ""):
        raise UserError(f"{metric.name}: better={metric.better}: want higher, lower or nothing")
    if _REGISTRY.setdefault(metric.name, metric) != metric:
        raise UserError(f"{metric.name}: another metric has this name; want a name of its own")
    return metric


def lookup(name: str) -> Metric:
    """The registered metric, or one whose title and unit are taken from its key."""
    unit = SUFFIXES.get(name.rpartition("_")[2], "")
    return _REGISTRY.get(name) or Metric(name, words.title(name), unit)


def listed(metrics: Mapping[str, Any]) -> list[Metric]:
    """The metrics of a result in the order of the page, without series (an @ in their key)."""
    known = [metric for name, metric in _REGISTRY.items() if name in metrics]
    others = [lookup(name) for name in metrics if name not in _REGISTRY and "@" not in name]
    return known + others


def _shares(*rows: tuple[str, str, str]) -> list[Metric]:
    """Metrics in %, higher being better, from their (name, title, meaning)."""
    return [Metric(name, title, "%", "higher", meaning) for name, title, meaning in rows]


_BOOTSTRAP = "Of the 95 % interval, by a bootstrap over the held-out classes."
_TABLE = (
    Metric("n", "Test images", meaning="Every image of the test set counts once.", form=","),
    Metric("accuracy", "Accuracy", "%", "higher", "Images whose most probable class is true."),
    Metric(
        "cross_entropy_nats",
        "Cross-entropy",
        "nats",
        "lower",
        "Mean of −log p(true class | image).",
        form=".4f",
    ),
    Metric(
        "ece",
        "Calibration error",
        "%",
        "lower",
        "ECE: mean gap between confidence and accuracy, over bins of confidence.",
    ),
    Metric(
        "brier",
        "Brier score",
        "",
        "lower",
        "Mean squared distance of the probabilities from the truth; at most 2.",
        form=".4f",
    ),
    Metric("macro_f1", "Macro F1", "%", "higher", "Mean over the classes of the F1 score."),
    Metric(
        "temperature",
        "Temperature",
        "",
        "",
        "What the logits are divided by to be calibrated; fitted on validation.",
        form=".3f",
    ),
    Metric(
        "calibrated_cross_entropy_nats",
        "… cross-entropy with it",
        "nats",
        "lower",
        "On the test set.",
        form=".4f",
    ),
    Metric("calibrated_ece", "… calibration error with it", "%", "lower", "On the test set."),
    Metric(
        "elbo_nats",
        "ELBO",
        "nats / image",
        "higher",
        "Evidence lower bound on log p(x): −(reconstruction + KL).",
    ),
    Metric(
        "kl_nats",
        "KL",
        "nats / image",
        "",
        "KL(q(z|x) ‖ p(z)): what the latent code costs (the rate).",
    ),
    Metric(
        "reconstruction_nats",
        "Reconstruction",
        "nats / image",
        "",
        "Mean of −log p(x|z), z from q(z|x): what the code leaves unexplained (distortion).",
    ),
    Metric(
        "iw_nats",
        "Importance-weighted bound",
        "nats / image",
        "higher",
        "Bound on log p(x) with K samples per image; tighter than the ELBO.",
    ),
    Metric("iw_nats_se", "… its standard error", "nats / image", "", "Over the test images."),
    Metric("iw_k", "… its samples K", "", "", "Importance samples per image.", form=","),
    Metric(
        "bits_per_dim",
        "Bits per dimension",
        "bits / dimension",
        "lower",
        "Code length per pixel and channel; 8-bit images of pure noise need 8.",
        form=".3f",
    ),
    *_shares(
        (
            "knn_accuracy",
            "kNN accuracy",
            "Nearest neighbours in the latent means: what the code alone says of the class.",
        ),
        (
            "bayes_accuracy",
            "Accuracy by Bayes' rule",
            "The label under which the bound on log p(x|y) is the highest.",
        ),
    ),
    Metric(
        "bayes_cross_entropy_nats",
        "… cross-entropy",
        "nats",
        "lower",
        "−log p(y|x) by the same rule.",
        form=".4f",
    ),
    Metric("bayes_ece", "… calibration error", "%", "lower", "ECE by the same rule."),
    *_shares(
        (
            "bayes_rejection_accuracy",
            "… accuracy over rejection",
            "Mean over all shares kept, the highest log p(x) first.",
        ),
        ("knn1_accuracy", "1-NN accuracy", "Images whose nearest training image has their class."),
        (
            "map_at_10",
            "Retrieval, mAP@10",
            "Average precision over the ten nearest training images, divided by the right ones "
            "among the ten: it judges their order.",
        ),
        (
            "map",
            "… mAP over all ranks",
            "The usual one: all training images ranked, divided by all of the class.",
        ),
        (
            "verification_auroc",
            "Verification AUROC",
            "Pairs of images of held-out classes: same class or not, by the cosine of their codes.",
        ),
    ),
    Metric(
        "verification_eer",
        "… equal error rate",
        "%",
        "lower",
        "Where both kinds of error are equally frequent.",
    ),
    Metric("verification_auroc_low", "… AUROC, lower end", "%", "", _BOOTSTRAP),
    Metric("verification_auroc_high", "… AUROC, upper end", "%", "", _BOOTSTRAP),
    Metric("verification_eer_low", "… equal error rate, lower end", "%", "", _BOOTSTRAP),
    Metric("verification_eer_high", "… equal error rate, upper end", "%", "", _BOOTSTRAP),
    Metric("verification_classes", "… held-out classes", form=","),
    Metric("verification_images", "… their images", form=","),
    Metric("verification_same", "… pairs of one class", form=","),
    Metric("verification_different", "… pairs of two classes", form=","),
    *_shares(
        (
            "open_set_confidence_auroc",
            "Open set, by confidence",
            "AUROC of held-out classes, by the largest probability.",
        ),
        (
            "open_set_latent_auroc",
            "… by the code",
            "The same, by the distance to the training codes.",
        ),
        (
            "rejection_accuracy",
            "… accuracy over rejection",
            "Mean over all shares kept, the most confident first; a held-out class is an error.",
        ),
        (
            "noise_accuracy",
            "Accuracy under noise",
            "Mean over five strengths, as are the next ones.",
        ),
        ("blur_accuracy", "… blur", "A Gaussian blur."),
        ("occlusion_accuracy", "… occlusion", "A grey square hides a part."),
        ("fgsm_accuracy", "… FGSM", "One step along the sign of the gradient."),
        ("pgd_accuracy", "… PGD", "Twenty steps."),
        ("fgsm_drawn_accuracy", "… FGSM, code drawn", "Against the mean over draws of z."),
        ("pgd_drawn_accuracy", "… PGD, code drawn", "Against the mean over draws of z."),
        ("noise_bayes_accuracy", "Bayes' rule under noise", "Each label's bound from draws."),
        ("blur_bayes_accuracy", "… blur", "A Gaussian blur."),
        ("occlusion_bayes_accuracy", "… occlusion", "A grey square hides a part."),
        ("fgsm_bayes_accuracy", "… FGSM", "Against the posterior by Bayes' rule."),
        ("pgd_bayes_accuracy", "… PGD", "Twenty steps, fresh draws in each."),
    ),
    Metric(
        "ood_images",
        "Images scored for OOD",
        "",
        "",
        "Of the test set, an even stride apart.",
        form=",",
    ),
    Metric(
        "ood_regret_nats",
        "… likelihood regret",
        "nats",
        "",
        "Mean over the test images: what a q of its own wins for each.",
    ),
    Metric(
        "ood_regret_late_nats",
        "… of it in the last quarter",
        "nats",
        "",
        "Won by the last 50 of 200 steps; where it is not small, the regret has not converged.",
    ),
    Metric(
        "ood_waic_auroc",
        "… WAIC of an ensemble",
        "",
        "higher",
        "AUROC by the spread of several seeds' bounds.",
        form=".3f",
    ),
    Metric(
        "active_units",
        "Active units",
        "dimensions",
        "",
        "Latent dimensions whose posterior mean moves with the image.",
        form=",",
    ),
    Metric(
        "mutual_information_nats",
        "Mutual information",
        "nats",
        "",
        "I(x; z) under q over the test set: what a code says of its image; at most log n.",
    ),
    Metric(
        "aggregate_kl_nats",
        "Aggregate KL",
        "nats",
        "",
        "KL(q(z) ‖ p(z)), of all codes together; with the mutual information it is the rate.",
    ),
    Metric(
        "aggregate_kl_nats_se",
        "… its standard error",
        "nats",
        "",
        "Over the test images, each with one draw.",
        form=".3f",
    ),
)

for _metric in _TABLE:
    register(_metric)
