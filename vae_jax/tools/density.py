"""A density fitted to the codes of a trained run, and how good the images are that it draws.

    python -m vae_jax.tools.density --workdir=runs/mnist --features=runs/mnist_cnn

A mixture of Gaussians with full covariances is fitted to the posterior means of training images
(Ghosh et al. 2020, arXiv:1903.12436, section 4: ex-post density estimation). It is written into
the run's folder as density.npz; density.json has the figures of ``evaluate.quality`` of samples
from the prior and from the mixture, side by side. ``--draws`` fits draws of q(z|x) instead.
"""

import dataclasses
import io
import json
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import evaluation
from vae_jax.distributions import example_keys
from vae_jax.distributions.full_mixture import MixtureOfFullNormals
from vae_jax.evaluate import likelihood, quality
from vae_jax.evaluate.subject import Subject, restored
from vae_jax.models import Model
from vae_jax.train import checkpoint, log, step

MOST = 20_000  # training images whose codes are fitted, an even stride apart
OF_SAMPLES = ("fid", "kid", "precision", "recall", "sharpness_samples")  # what the density changes


@dataclasses.dataclass(frozen=True)
class Fit:
    """How a density is fitted: ``components`` of a mixture, to means or draws of q(z|x)."""

    components: int = 10
    draws: bool = False


def codes(subject: Subject, split: data.Split, draws: bool) -> np.ndarray:
    """The means of q(z|x) of a split's images, or one draw of each; NxD."""
    model = subject.model
    to_x = evaluation.seen(subject.config, subject.levels)
    key = step.stream(subject.config.seed, "density")

    def program(params: dict, batch: dict) -> dict:
        q = model.encode(params, to_x(batch))
        if draws:
            return {"z": q.sample(example_keys(key, batch["id"]))}
        return {"z": q.mu}

    return likelihood.over_split(subject, program, split)["z"]


def fit_mixture(z_NxD: np.ndarray, components: int, seed: int) -> MixtureOfFullNormals:
    """The mixture of scikit-learn's EM, started by k-means.

    1e-4 of the codes' mean variance is added to every variance, so that a dimension that never
    moves has a density.

    Raises:
      UserError: there are fewer codes than components.
    """
    from sklearn.mixture import GaussianMixture

    if len(z_NxD) < components:
        raise UserError(f"components={components}: want at most the {len(z_NxD)} codes")
    ridge = 1e-4 * z_NxD.var(0).mean() + 1e-12
    mixture = GaussianMixture(components, reg_covar=ridge, random_state=seed).fit(z_NxD)
    scale_tril = np.linalg.cholesky(mixture.covariances_)
    arrays = (np.log(mixture.weights_), mixture.means_, scale_tril)
    return MixtureOfFullNormals(*(jnp.asarray(array, jnp.float32) for array in arrays))


def with_density(model: Model, density: MixtureOfFullNormals) -> Model:
    """The model with this density in the place of its prior's samples."""

    def sample(params: dict, keys_N: jax.Array, y: jax.Array | None = None) -> jax.Array:
        return density.sample(keys_N)

    return model._replace(sample=sample)


def check(model: Model, folder: str) -> None:
    """Raise UserError where z of the model is not one code of an image."""
    if model.decode is None:
        raise UserError(f"workdir={folder}: makes no images; want a run with a decoder")
    if model.levels > 1 or model.spec.labelled:
        kind = "levels" if model.levels > 1 else "labels"
        raise UserError(f"workdir={folder}: a model with {kind}; want one with p(x|z) p(z)")


def measure(
    folder: str, features: str, images: int, fit: Fit = Fit(), *, data_dir: str = ""
) -> tuple[MixtureOfFullNormals, dict[str, Any]]:
    """(the density, its figures beside the prior's) of the best checkpoint of a run.

    Keys are ``prior_…`` and ``mixture_…`` of what depends on the samples, and the floors.
    ``validation_nats`` is the mean log density of validation codes, under the mixture.
    """
    subject = restored(folder, data_dir)
    check(subject.model, folder)
    log.check_writable(os.path.join(folder, "density.json"))
    mark, see = quality.named(features, subject.data.shape, data_dir)
    z_NxD = codes(subject, data.some(subject.data.train, MOST), fit.draws)
    density = fit_mixture(z_NxD, fit.components, subject.config.seed)
    held_out = codes(subject, subject.data.validation, fit.draws)
    values = {
        "components": fit.components,
        "codes": len(z_NxD),
        "draws": fit.draws,
        "validation_nats": float(density.log_prob(jnp.asarray(held_out)).mean()),
    }
    models = {"prior": subject.model, "mixture": with_density(subject.model, density)}
    for name, model in models.items():
        figures, _ = quality.figures(dataclasses.replace(subject, model=model), see, mark, images)
        for key, value in figures.items():
            of_samples = key.removesuffix(f"_{mark}") in OF_SAMPLES
            values[f"{name}_{key}" if of_samples else key] = value
    return density, values


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    described = "folder of a run that learnt labels, or file:function"
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("features", None, described, flag_values=values)
    flags.DEFINE_integer("images", 5000, "of each set, at most", lower_bound=10, flag_values=values)
    flags.DEFINE_integer("components", 10, "of the mixture", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("draws", False, "fit draws of q(z|x), not its means", flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)


def run(argv: list[str]) -> int:
    """Fit and measure as the flags say; the exit code."""
    values, _ = flags_lib.parse(argv, define)
    for name, right in (("workdir", "FOLDER"), ("features", "FOLDER or FILE:FUNCTION")):
        if not values[name].value:
            raise UserError(f"{name}: want --{name}={right}")
    fit = Fit(values.components, values.draws)
    options = {"data_dir": values.data_dir}
    path = os.path.join(values.workdir, "density.json")
    arrays = io.BytesIO()
    density, figures = measure(values.workdir, values.features, values.images, fit, **options)
    np.savez(arrays, **density._asdict())
    log.replace(os.path.join(values.workdir, "density.npz"), arrays.getvalue())
    checkpoint.write_json(path, figures)
    print(json.dumps(figures, indent=1))
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
