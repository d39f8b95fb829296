"""What each layer of the encoder knows of the class: a probe on every one, not only on the code.

    python -m vae_jax.evaluate.layers --workdir=runs/mnist --images=5000

A layer is any module of the encoder whose output has one row for each image. Maps are averaged over
a grid of at most 4 x 4 cells, so that probes of wide layers stay small; dense layers are taken as
they are. ``pixels`` and ``code`` (the latent mean) stand at the two ends. The probe is the logistic
regression of :mod:`vae_jax.evaluate.probes`, its strength chosen on validation. Writes layers.json
into the run's folder.
"""

import re
from collections.abc import Mapping
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
from vae_jax.evaluate import command, likelihood, probes
from vae_jax.evaluate.subject import Subject

GRID = 4  # cells of a map along each side, at most
PROBE = "logistic"


def pooled(map_BxHxWxC: jax.Array, grid: int = GRID) -> jax.Array:
    """Means over a grid of at most ``grid`` x ``grid`` cells as even as can be, BxF."""
    height, width = map_BxHxWxC.shape[1:3]

    def cells(size: int) -> np.ndarray:
        """size x cells: the share of each pixel in the mean of its cell."""
        count = min(grid, size)
        cell = np.arange(size) * count // size
        share = cell[:, None] == np.arange(count)
        return share / share.sum(0)

    means = jnp.einsum("bhwc,hi,wj->bijc", map_BxHxWxC, cells(height), cells(width))
    return means.reshape(len(means), -1)


def _by_name(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, jax.Array]:
    """{"Layer_0": its output, …} of captured outputs."""
    layers = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            layers |= _by_name(value, (*path, name))
        elif path:  # the encoder's own output is its last layer's, or a tuple of all
            for number, output in enumerate(value):
                end = "" if number == 0 else f"_{number}"
                layers["/".join(path) + end] = output
    return layers


def outputs(subject: Subject, split: data.Split) -> dict[str, np.ndarray]:
    """{"pixels", each layer of the encoder in the order of its name, "code": NxF}.

    Raises:
      UserError: the parameters have no single encoder, as those of ``per_class``.
    """
    config = subject.config
    if "encoder" not in subject.params:
        raise UserError(f"model.name={config.model.name}: has an encoder for each class; want vae")
    hierarchical = subject.model.levels > 1
    facts = {"dtype": jnp.dtype(config.dtype), "pyramid": hierarchical}
    encoder = config_lib.build("encoder", config.encoder, **facts)
    to_x = evaluation.seen(config, subject.levels)

    def program(params: dict, batch: dict) -> dict[str, jax.Array]:
        x = to_x(batch)
        variables = {"params": params["encoder"]}
        label = subject.model.map_label(params, x)
        inputs = (x,)
        if label is not None and not hierarchical:
            inputs = (x, jax.nn.one_hot(label, subject.model.classes))
        options = {"capture_intermediates": True, "mutable": ["intermediates"]}
        _, captured = encoder.apply(variables, *inputs, **options)
        layers = {"pixels": x.reshape(len(x), -1)}
        for name, output in _by_name(captured["intermediates"]).items():
            if getattr(output, "ndim", 0) == 4:
                layers[name] = pooled(output)
            elif getattr(output, "ndim", 0) == 2:
                layers[name] = output
        q = subject.model.encode(params, x, label)
        layers["code"] = q.mu[:, : subject.model.spec.code]
        return layers

    features = likelihood.over_split(subject, program, split)
    names = sorted(features.keys() - {"pixels", "code"}, key=_counted)
    return {name: features[name] for name in ("pixels", *names, "code")}


def _counted(name: str) -> list[str | int]:
    """The parts of a name, numbers as numbers: Layer_2 comes before Layer_10."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if part.isdigit() else part for part in parts]


def accuracies(subject: Subject, images: int) -> dict[str, float]:
    """{layer: test accuracy of a probe on it}; ``images`` of training and of test at most."""
    dataset = subject.data
    train = data.some(data.labelled(dataset.train), images)
    validation = data.some(data.labelled(dataset.validation), images)
    test = data.some(dataset.test, images)
    splits = (train, validation, test)
    of_train, of_validation, of_test = (outputs(subject, split) for split in splits)
    values = {}
    for name, features in of_train.items():
        tuning = (of_validation[name], validation.label)
        predict, _ = probes.fit(PROBE, (features, train.label), tuning)
        label, _ = predict(of_test[name])
        values[name] = float((label == test.label).mean())
    return values


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    command.define(values)
    flags.DEFINE_integer(
        "images", 5000, "of training and of test, at most", lower_bound=20, flag_values=values
    )


def run(argv: list[str]) -> int:
    """Measure the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    subject = command.subject_of(values, "layers.json")
    if subject.data.test.label is None:
        raise UserError(f"workdir={values.workdir}: the data has no labels; want a labelled set")
    content = {"images_at_most": values.images, "probe": PROBE}
    content["accuracy"] = accuracies(subject, values.images)
    command.write(values, "layers.json", content)
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
