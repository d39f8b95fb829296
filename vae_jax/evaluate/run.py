"""One evaluation of a model on the exact test set: metrics.json's figures and the report's pictures."""

import jax
import jax.numpy as jnp
import numpy as np

from vae_jax import data
from vae_jax import distributions as densities
from vae_jax.data import evaluation
from vae_jax.evaluate import classification, generation, latent, likelihood, recognition
from vae_jax.mesh import hosts
from vae_jax.report.pictures import first_images
from vae_jax.train import program as compile_lib
from vae_jax.train.step import stream

CLASSIFIED = ("accuracy", "cross_entropy_nats", "ece", "brier", "macro_f1")
BOUNDS = (
    "elbo_nats",
    "kl_nats",
    "reconstruction_nats",
    "iw_nats",
    "iw_nats_se",
    "iw_k",
    "bits_per_dim",
)
SURGERY = ("mutual_information_nats", "aggregate_kl_nats")
FIGURES = (*CLASSIFIED, *BOUNDS, "knn_accuracy", "active_units", *SURGERY)


def forward(c, model, params, split, levels, mesh, every=1, to_x=evaluation.seen):
    """:func:`looker` for one look."""
    return looker(c, model, levels, mesh, to_x)(params, split, every)


def looker(c, model, levels, mesh, to_x=evaluation.seen):
    """look(params, split, every=1), compiled once: posterior means, their log-variances where q is a diagonal
    Gaussian, and logits at the means, of each ``every``-th example: {'mu': NxD, 'logvar': NxD, 'logits': NxY}.

    Of a conditional model the logits are q(y|x)'s, and q(z|x,y) is that of the most probable y. ``to_x``: what the
    nets are shown, ``evaluation.seen`` or, for what belongs to the bounds, ``evaluation.inputs``.
    """
    to_x = to_x(c, levels)

    def program(params, batch):
        x = to_x(batch)
        q = model.encode(params, x, model.map_label(params, x))
        mu = q.mu[:, : model.spec.code]
        spread = {"logvar": q.logvar} if isinstance(q, densities.Normal) else {}
        logits = {} if model.classify is None else {"logits": model.classify(params, x)}
        return {"mu": mu} | spread | logits

    run = compile_lib.over_batches(program, mesh)

    def look(params, split, every=1):
        rows = [
            (run(params, batch), real)
            for batch, real in evaluation.batches(split, c.eval.batch, mesh, every)
        ]
        return likelihood.gather(rows)

    return look


def level_rates(c, model, params, split, levels, mesh):
    """Mean KL(q(z_l | z_<l, x) ‖ p(z_l | z_<l)) of each level, one draw an example; nats, shape L.

    Of a conditional model KL(q(z_l | z_<l, x, y) ‖ p(z_l | z_<l, y)) of the examples whose label y is known, so that
    the sum is the rate of their bound on log p(x, y); None where there are none, and of a model of one level.
    """
    if model.spec.labelled:
        split = data.labelled(split)
    if model.levels == 1 or (model.spec.labelled and (split.label is None or not len(split.label))):
        return None
    to_x, key = evaluation.inputs(c, levels), stream(c.seed, "levels")

    def program(params, batch):
        y_B = batch["label"] if model.spec.labelled else None
        return {
            "kl": likelihood.draws(model, params, to_x(batch), batch["id"], key, 0, 1, y_B).kl[:, 0]
        }

    run = compile_lib.over_batches(program, mesh)
    rows = [
        (run(params, batch), real) for batch, real in evaluation.batches(split, c.eval.batch, mesh)
    ]
    return likelihood.gather(rows)["kl"].mean(0)


def evaluate(c, model, params, dataset, mesh, *, iw_k):
    """(metrics, why, pictures, latents): all that eval.py writes.

    metrics is flat with units in its names; a figure without a meaning is None, and ``why`` says why.
    ``iw_nats_se`` is that of the mean over the N images, each image's bound taken as it is.
    ``pictures["kl_per_dimension"]``, nats in falling order, is there for diagonal Gaussian q and p.
    Noise is keyed by example id, so the figures depend on neither the batch size nor the devices.
    """
    test, levels = dataset.test, dataset.levels
    metrics, why = {"n": len(test.image)} | dict.fromkeys(FIGURES), {}
    out = forward(c, model, params, test, levels, mesh)
    confusion = None
    if test.label is None:
        why |= dict.fromkeys((*CLASSIFIED, "knn_accuracy"), "the data has no labels")
    else:
        gallery = data.labelled(dataset.train)
        every = -(-len(gallery.image) // recognition.NEIGHBOURS)
        train = forward(c, model, params, gallery, levels, mesh, every)
        near = (train["mu"], gallery.label[::every])
        metrics["knn_accuracy"] = recognition.knn_accuracy(*near, out["mu"], test.label)
        if model.classify is None:
            why |= dict.fromkeys(CLASSIFIED, "the model has no classifier")
        else:
            figures, confusion = classification.figures(out["logits"], test.label)
            metrics |= figures

    pictures = {"latents": out["mu"], "latent_labels": test.label, "confusion": confusion}
    if model.decode is None:
        metrics["active_units"] = recognition.active_units(out["mu"])
        why |= dict.fromkeys((*BOUNDS, *SURGERY), "the model has no decoder")
        return metrics, why, pictures
    if c.data.binarize == "dynamic":  # what follows is of the images that the bound is of
        out = forward(c, model, params, test, levels, mesh, to_x=evaluation.inputs)
    metrics["active_units"] = recognition.active_units(out["mu"])
    rows = likelihood.log_likelihood(
        c, model, params, test, levels, mesh, stream(c.seed, "test"), k=iw_k
    )
    iw = rows["iw"]
    if hosts.several():  # what follows is small: each process does it alone
        params = jax.tree.map(hosts.fetch, params)
    se = iw.std(ddof=1) / np.sqrt(len(iw)) if len(iw) > 1 else None
    metrics |= {
        "elbo_nats": rows["elbo"].mean(),
        "kl_nats": rows["kl"].mean(),
        "reconstruction_nats": -rows["log_px"].mean(),
        "iw_nats": iw.mean(),
        "iw_nats_se": se,
        "iw_k": iw_k,
    }
    if se is None:
        why["iw_nats_se"] = "one image has no spread"
    if "logvar" in out:
        q, prior = (
            densities.Normal(*(jnp.asarray(out[k], jnp.float32) for k in ("mu", "logvar"))),
            model.prior(params),
        )
        parts = latent.surgery(q, prior, stream(c.seed, "surgery"))
        metrics |= {key: parts[key.removesuffix("_nats")] for key in SURGERY}
        if isinstance(prior, densities.Normal):
            pictures["kl_per_dimension"] = np.sort(
                latent.kl_per_dimension(out["mu"], out["logvar"], prior)
            )[::-1]
    else:
        why |= dict.fromkeys(SURGERY, "q(z|x) is no diagonal Gaussian")
    rates_L = level_rates(c, model, params, test, levels, mesh)
    if rates_L is not None:
        pictures["kl_per_level"] = rates_L
        metrics |= {f"kl_level_{i + 1:02d}_nats": rate for i, rate in enumerate(rates_L)}
    if model.likelihood.discrete:
        metrics["bits_per_dim"] = densities.bits_per_dim(-metrics["iw_nats"], dataset.shape)
    else:
        why["bits_per_dim"] = f"{c.likelihood.name} is a density, not a likelihood of discrete data"
    rows = first_images(test.label, min(40, len(test.image)))
    first = jnp.asarray(test.image[rows])
    x = evaluation.inputs(c, levels)({"image": first, "id": jnp.asarray(rows)})
    pictures |= generation.pictures(model, params, x, stream(c.seed, "pictures"))
    drawn = pictures["samples"][: generation.SHOWN]
    pictures["neighbours"] = [drawn, generation.nearest(drawn, dataset.train.image, levels)]
    return (
        {
            k: v if v is None else float(v) if isinstance(v, float | np.floating) else int(v)
            for k, v in metrics.items()
        },
        why,
        pictures,
    )
