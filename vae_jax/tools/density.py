"""A density fitted to the codes of a trained run, and how good the images are that it draws.

    python -m vae_jax.tools.density --workdir=runs/mnist --features=runs/mnist_cnn

Densities are fitted to the posterior means of training images (Ghosh et al. 2020,
arXiv:1903.12436, section 4: ex-post density estimation): a mixture of Gaussians with full
covariances, and with ``--densities=mixture,realnvp,two_stage`` also a flow and a second VAE.
density.json, in the run's folder, has the figures of ``evaluate.quality`` of samples from the prior
and from each density, side by side; ``--results`` writes them to a file of results/, too. The
mixture itself is density.npz, and the report of the next ``eval.py`` shows samples side by side.
``--draws`` fits draws of q(z|x) instead of the means.

    python -m vae_jax.tools.density --workdir=runs/mnist --into=runs/mnist_mixture

writes a run of its own: the same nets under a mixture of diagonal Gaussians, the prior ``mixture``
of the config. It is evaluated and exported as any other, and training may begin from it
(``config.init_from``), with a prior that fits the codes.
"""

import dataclasses
import io
import json
import os
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import evaluation
from vae_jax.distributions import example_keys
from vae_jax.evaluate import likelihood, quality, record
from vae_jax.evaluate.subject import Subject
from vae_jax.models import Model
from vae_jax.report import densities as densities_panel
from vae_jax.tools import assess, code_density, results
from vae_jax.train import checkpoint, clock, identity, log, program, step
from vae_jax.train import run as workdir

MOST = 20_000  # training images whose codes are fitted, an even stride apart


@dataclasses.dataclass(frozen=True)
class Fit:
    """How densities are fitted: ``components`` of a mixture, to means or draws of q(z|x)."""

    components: int = 10
    draws: bool = False
    names: tuple[str, ...] = ("mixture",)  # of ``code_density.NAMES``


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


def with_density(model: Model, density: Any) -> Model:
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
) -> tuple[dict[str, Any], dict[str, Any]]:
    """({name: density}, their figures beside the prior's) of the best checkpoint of a run.

    Keys are ``prior_…`` and ``NAME_…`` of what depends on the samples, and the floors.
    ``NAME_validation_nats`` is the mean log density of validation codes; of ``two_stage`` it is an
    importance-weighted bound on that.
    """
    setup, state, meta = workdir.restore(folder, data_dir=data_dir)
    subject = Subject.of(setup, step.averaged(state))
    check(subject.model, folder)
    log.check_writable(os.path.join(folder, "density.json"))
    mark, see = quality.named(features, subject.data.shape, data_dir)
    z_NxD = codes(subject, data.some(subject.data.train, MOST), fit.draws)
    held_out = codes(subject, subject.data.validation, fit.draws)
    values = {"components": fit.components, "codes": len(z_NxD), "draws": fit.draws}
    densities = {}
    models = {"prior": subject.model}
    for name in fit.names:
        densities[name] = code_density.fit(name, z_NxD, fit.components, subject.config.seed)
        values[f"{name}_validation_nats"] = code_density.mean_log_prob(densities[name], held_out)
        models[name] = with_density(subject.model, densities[name])
    known = quality.ground(subject, see, images)
    values |= quality.of_ground(known, mark)
    samples = {}
    for name, model in models.items():
        drawn = quality.samples(dataclasses.replace(subject, model=model), known.n)
        for key, value in quality.of_samples(known, see, drawn, mark).items():
            values[f"{name}_{key}"] = value
        samples[name] = drawn[: densities_panel.SHOWN]
    which = record.mark(folder, meta["step"])
    record.save(folder, "density", which, ({}, {}, {"densities": samples}), {})
    return densities, values


def write_run(source: str, folder: str, options: Fit, data_dir: str = "") -> None:
    """A run in ``folder``: the best checkpoint of ``source`` under a mixture fitted to its codes.

    Raises:
      UserError: ``folder`` holds a run, or z of the source is no point of R^D.
    """
    if checkpoint.has_saved(folder):
        raise UserError(f"into={folder}: holds a run; want another folder")
    log.check_writable(os.path.join(folder, "config.json"))
    setup, state, meta = workdir.restore(source, data_dir=data_dir)
    subject = Subject.of(setup, step.averaged(state))
    check(subject.model, source)
    c = subject.config.copy_and_resolve_references()
    c.prior = config_lib.call("prior", "mixture", components=options.components)
    parts = workdir.setup(c)
    z_NxD = codes(subject, data.some(subject.data.train, MOST), options.draws)
    prior = code_density.fit_prior(z_NxD, options.components, c.seed)
    fresh, places = program.init(parts.c, parts.model, parts.mesh, parts.dataset)
    params = jax.device_put({**subject.params, "prior": prior}, places.params)
    fresh = fresh._replace(params=params)
    if fresh.ema != ():
        fresh = fresh._replace(ema=jax.tree.map(jnp.copy, params))
    os.close(workdir.claim(folder, parts.c))
    identity.keep(folder, parts.c, parts.dataset)
    saved = checkpoint.Checkpoints(folder, config=workdir.manifest_fields(parts.c))
    at = meta["step"]
    saved.save(at, fresh, {"step": at, "clock": clock.new_clock()}, select=0.0)
    saved.close()


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    described = "folder of a run that learnt labels, or file:function"
    flags.DEFINE_string("workdir", None, "folder of the run", flag_values=values)
    flags.DEFINE_string("features", None, described, flag_values=values)
    flags.DEFINE_integer("images", 5000, "of each set, at most", lower_bound=10, flag_values=values)
    flags.DEFINE_list("densities", "mixture", "to fit and measure", flag_values=values)
    flags.DEFINE_integer("components", 10, "of the mixture", lower_bound=1, flag_values=values)
    flags.DEFINE_bool("draws", False, "fit draws of q(z|x), not its means", flag_values=values)
    flags.DEFINE_string("into", "", "folder of a run to write", flag_values=values)
    flags.DEFINE_string("results", "", "also write results/NAME.json", flag_values=values)
    flags.DEFINE_string("data_dir", "", "where TFDS data is, if it moved", flag_values=values)


def publish(path: str, config: Any, figures: dict[str, Any], seconds: float) -> None:
    """Write the figures to a file of results/."""
    rows = {}
    for key, value in figures.items():
        unit = "nats" if key.endswith("nats") else ""
        rows[key] = results.figure(float(value), unit, n=figures["n"])
    options = {"config": config_lib.to_json(config), "seed": config.seed, "seconds": seconds}
    results.write(path, command=assess.command(), figures=rows, **options)


def asked(values: flags.FlagValues) -> Fit:
    """What the flags ask for; whatever can be wrong with them is said before the work.

    Raises:
      UserError: a flag is missing or means nothing, or a file could not be written.
    """
    if not values.workdir:
        raise UserError("workdir: want --workdir=FOLDER")
    if not values.features and not values.into:
        raise UserError("features: want --features=FOLDER or FILE:FUNCTION, or --into=FOLDER")
    if values.results and not values.features:
        raise UserError(f"results={values.results}: figures need --features=FOLDER")
    wanted = ", ".join(code_density.NAMES)
    for name in values.densities or [""]:
        if name not in code_density.NAMES:
            raise UserError(f"densities={name}: want some of {wanted}")
    if values.results:
        results.check(values.results)
    if values.features:
        quality.check(values.features)
        for name in ("density.json", "density.npz"):
            log.check_writable(os.path.join(values.workdir, name))
    return Fit(values.components, values.draws, tuple(dict.fromkeys(values.densities)))


def run(argv: list[str]) -> int:
    """Fit and measure as the flags say; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    options = asked(values)
    if values.into:
        write_run(values.workdir, values.into, options, values.data_dir)
        print(f"under a mixture of {options.components} in {values.into}")
    if not values.features:
        return 0
    began = time.perf_counter()
    path = os.path.join(values.workdir, "density.json")
    where = {"data_dir": values.data_dir}
    densities, figures = measure(values.workdir, values.features, values.images, options, **where)
    if "mixture" in densities:
        arrays = io.BytesIO()
        np.savez(arrays, **densities["mixture"]._asdict())
        log.replace(os.path.join(values.workdir, "density.npz"), arrays.getvalue())
    checkpoint.write_json(path, figures)
    print(json.dumps(figures, indent=1))
    if values.results:
        seconds = time.perf_counter() - began
        publish(values.results, workdir.read_config(values.workdir), figures, seconds)
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
