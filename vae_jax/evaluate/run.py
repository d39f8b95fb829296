"""One evaluation of a model on the exact test set: the metrics and the report's pictures."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import data
from vae_jax import distributions as densities
from vae_jax.data import evaluation
from vae_jax.evaluate import classification, generation, latent, likelihood, recognition
from vae_jax.evaluate.subject import Subject
from vae_jax.evaluate.trained import why_unclassified
from vae_jax.mesh import hosts
from vae_jax.report import explorer
from vae_jax.report.pictures import first_images
from vae_jax.train import program as compile_lib
from vae_jax.train.step import stream

CLASSIFIED = ("accuracy", "cross_entropy_nats", "ece", "brier", "macro_f1")
BOUNDS = (
    *("elbo_nats", "kl_nats", "reconstruction_nats"),
    *("iw_nats", "iw_nats_se", "iw_k", "bits_per_dim"),
)
SURGERY = ("mutual_information_nats", "aggregate_kl_nats", "aggregate_kl_nats_se")
FIGURES = (*CLASSIFIED, *BOUNDS, "knn_accuracy", "active_units", *SURGERY)

Forward = Callable[..., dict[str, np.ndarray]]
Result = tuple[dict[str, Any], dict[str, str], dict[str, Any]]  # metrics, why, pictures


def forward(subject: Subject, to_x: Callable = evaluation.seen) -> Forward:
    """A function (split, every=1) → the nets' outputs of each ``every``-th example, compiled once.

    {'mu': NxD, 'logvar': NxD where q is a diagonal Gaussian, 'logits': NxY at the means}. The
    logits of a conditional model are q(y|x)'s, and q(z|x,y) is that of the most probable y.
    ``to_x``: the nets' inputs, ``evaluation.seen`` or, where bounds are asked, ``inputs``.
    """
    model = subject.model
    to_x = to_x(subject.config, subject.levels)

    def program(params: dict, batch: dict) -> dict:
        x = to_x(batch)
        q = model.encode(params, x, model.map_label(params, x))
        out = {"mu": q.mu[:, : model.spec.code]}
        if isinstance(q, densities.Normal):
            out["logvar"] = q.logvar
        if model.classify is not None:
            out["logits"] = model.classify(params, x)
        return out

    run = compile_lib.over_batches(program, subject.mesh)

    def outputs(split: data.Split, every: int = 1) -> dict[str, np.ndarray]:
        rows = []
        size = subject.config.eval.batch
        for batch, real in evaluation.batches(split, size, subject.mesh, every):
            rows.append((run(subject.params, batch), real))
        return likelihood.gather(rows)

    return outputs


def level_rates(subject: Subject, split: data.Split) -> np.ndarray | None:
    """Mean KL(q(z_l | z_<l, x) ‖ p(z_l | z_<l)) of each level, one draw an example; nats, shape L.

    Of a conditional model KL(q(z_l | z_<l, x, y) ‖ p(z_l | z_<l, y)) of the examples whose label y
    is known, so that the sum is the rate of their bound on log p(x, y); None where there are none,
    and of a model of one level.
    """
    model = subject.model
    if model.levels == 1:
        return None
    if model.spec.labelled:
        split = data.labelled(split)
        if split.label is None or not len(split.label):
            return None
    to_x = evaluation.inputs(subject.config, subject.levels)
    key = stream(subject.config.seed, "levels")

    def program(params: dict, batch: dict) -> dict:
        label = batch["label"] if model.spec.labelled else None
        keys_KxB = densities.sample_keys(densities.example_keys(key, batch["id"]), jnp.arange(1))
        return {"kl": model.draw(params, to_x(batch), keys_KxB, label).kl[0]}

    return likelihood.over_split(subject, program, split)["kl"].mean(0)


def evaluate(subject: Subject, *, iw_k: int) -> Result:
    """(metrics, why, pictures): all that eval.py writes without ``--tasks``.

    metrics is flat with units in its names; a metric without a meaning is None, and ``why`` says
    why. ``iw_nats_se`` is that of the mean over the N images, each image's bound taken as it is.
    ``pictures["kl_per_dimension"]``, nats in falling order, is there for diagonal Gaussian q and p.
    Noise is keyed by example id, so nothing depends on the batch size or the devices.
    """
    test = subject.data.test
    metrics = {"n": len(test.image)} | dict.fromkeys(FIGURES)
    look = forward(subject)
    out = look(test)
    values, why, confusion = _classified(subject, look, out)
    metrics |= values
    pictures = {"latents": out["mu"], "latent_labels": test.label, "confusion": confusion}
    if subject.model.decode is None:
        metrics["active_units"] = recognition.active_units(out["mu"])
        why |= dict.fromkeys((*BOUNDS, *SURGERY), "the model has no decoder")
        if not hosts.several():
            pictures["explorer"] = _explorer(subject, out)
        return _plain(metrics), why, pictures
    seen = out
    if subject.config.data.binarize == "dynamic":  # the images that the bound is of
        out = forward(subject, evaluation.inputs)(test)
    metrics["active_units"] = recognition.active_units(out["mu"])
    rows = likelihood.log_likelihood(subject, test, stream(subject.config.seed, "test"), k=iw_k)
    if hosts.several():  # what follows is small: each process does it alone
        params = jax.tree.map(hosts.fetch, subject.params)
        subject = dataclasses.replace(subject, params=params)
    parts = [_bounds(subject, rows, iw_k), _code(subject, out), _levels(subject)]
    parts.append(({}, {}, _pictures(subject) | {"explorer": _explorer(subject, seen)}))
    for values, reasons, panels in parts:
        metrics |= values
        why |= reasons
        pictures |= panels
    return _plain(metrics), why, pictures


def _classified(
    subject: Subject, look: Forward, out: dict
) -> tuple[dict[str, float], dict[str, str], np.ndarray | None]:
    """(metrics, why, confusion matrix) of the classifier, and of neighbours in the code."""
    test = subject.data.test
    if test.label is None:
        return {}, dict.fromkeys((*CLASSIFIED, "knn_accuracy"), "the data has no labels"), None
    train = data.labelled(subject.data.train)
    every = -(-len(train.image) // recognition.NEIGHBOURS)
    gallery = (look(train, every)["mu"], train.label[::every])
    knn = {"knn_accuracy": recognition.knn_accuracy(*gallery, out["mu"], test.label)}
    reason = why_unclassified(subject)
    if reason:
        out.pop("logits", None)
        return knn, dict.fromkeys(CLASSIFIED, reason), None
    values, confusion = classification.figures(out["logits"], test.label)
    return knn | values, {}, confusion


def _bounds(subject: Subject, rows: dict[str, np.ndarray], iw_k: int) -> Result:
    iw = rows["iw"]
    metrics = {
        "elbo_nats": rows["elbo"].mean(),
        "kl_nats": rows["kl"].mean(),
        "reconstruction_nats": -rows["log_px"].mean(),
        "iw_nats": iw.mean(),
        "iw_k": iw_k,
    }
    why = {}
    if len(iw) > 1:
        metrics["iw_nats_se"] = iw.std(ddof=1) / np.sqrt(len(iw))
    else:
        why["iw_nats_se"] = "one image has no spread"
    if subject.model.likelihood.discrete:
        shape = subject.data.shape
        metrics["bits_per_dim"] = densities.bits_per_dim(-metrics["iw_nats"], shape)
    else:
        name = subject.config.likelihood.name
        why["bits_per_dim"] = f"{name} is a density, not a likelihood of discrete data"
    return metrics, why, {}


def _code(subject: Subject, out: dict[str, np.ndarray]) -> Result:
    """Mutual information and aggregate KL of the test set's codes."""
    if "logvar" not in out:
        return {}, dict.fromkeys(SURGERY, "q(z|x) is no diagonal Gaussian"), {}
    mu = jnp.asarray(out["mu"], jnp.float32)
    q = densities.Normal(mu, jnp.asarray(out["logvar"], jnp.float32))
    prior = subject.model.prior(subject.params)
    parts = latent.surgery(q, prior, stream(subject.config.seed, "surgery"))
    metrics = {key: parts[key.replace("_nats", "")] for key in SURGERY}
    why = {}
    if metrics["aggregate_kl_nats_se"] is None:
        why["aggregate_kl_nats_se"] = "one image has no spread"
    pictures = {}
    if isinstance(prior, densities.Normal):
        kl_D = latent.kl_per_dimension(out["mu"], out["logvar"], prior)
        pictures["kl_per_dimension"] = np.sort(kl_D)[::-1]
    return metrics, why, pictures


def _levels(subject: Subject) -> Result:
    rates_L = level_rates(subject, subject.data.test)
    if rates_L is None:
        return {}, {}, {}
    metrics = {f"kl_level_{i + 1:02d}_nats": rate for i, rate in enumerate(rates_L)}
    return metrics, {}, {"kl_per_level": rates_L}


def _pictures(subject: Subject) -> dict[str, Any]:
    """Pictures of the first test images of each class, and of samples."""
    test = subject.data.test
    rows = first_images(test.label, min(40, len(test.image)))
    batch = {"image": jnp.asarray(test.image[rows]), "id": jnp.asarray(rows)}
    x = evaluation.inputs(subject.config, subject.levels)(batch)
    key = stream(subject.config.seed, "pictures")
    pictures = generation.pictures(subject.model, subject.params, x, key)
    drawn = pictures["samples"][: generation.SHOWN]
    near = generation.nearest(drawn, subject.data.train.image, subject.levels)
    return pictures | {"neighbours": [drawn, near]}


def _explorer(subject: Subject, out: dict[str, np.ndarray]) -> explorer.Explorer:
    """Test images for the page's script."""
    source = explorer.Source(subject.config, subject.model, subject.params, subject.data)
    return explorer.collect(source, out.get("logits"))


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    """Python's own numbers in place of numpy's."""
    return {key: v.item() if isinstance(v, np.generic) else v for key, v in metrics.items()}
