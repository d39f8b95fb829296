"""Configs that the tests of the benchmark share."""

import pathlib
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vae_jax import cli, config, data, models
from vae_jax.mesh import rules
from vae_jax.train import program

ROOT = pathlib.Path(__file__).parents[2]
DIGITS = f"{ROOT}/configs/digits.py"
TINY = {
    "classifier.name": "none",
    "objective.name": "elbo",
    "encoder.widths": "(16,)",
    "decoder.widths": "(16,)",
    "latent": "3",
    "batch": "8",
    "data.shift": "0",
    "steps_per_call": "1",
}
SHAPES = {
    "digits": (8, 8, 1),
    "cifar10": (32, 32, 3),
    "cifar10_20k": (32, 32, 3),
    "imagenet_resized/64x64": (64, 64, 3),
    "synthetic": (64, 64, 3),
    "sprites": (32, 32, 1),
    "scenes:digits": (14, 14, 1),
    "scenes:mnist": (50, 50, 1),
    "scenes:mnist+boxes": (64, 64, 1),
}  # others are 28x28x1
LEVELS = {"digits": 17, "scenes:digits": 17, "binarized_mnist": 2, "sprites": 2}  # others are 256

Setup = tuple[ConfigDict, Any, jax.sharding.Mesh, data.Dataset]


def setup(name: str, **fields: str) -> Setup:
    """(config, model, mesh, data set) of a shipped config, with blank images of its shape."""
    c = cli.apply(config.load(f"{ROOT}/configs/{name}.py"), list(fields.items()))
    shape = SHAPES.get(c.data.name, (28, 28, 1))
    levels = LEVELS.get(c.data.name, 256)
    objects = np.zeros((16, 3, 5), np.int32) if c.data.name.startswith("scenes:") else None
    blank = data.Split(np.zeros((16, *shape), np.uint8), np.zeros(16, np.int32), objects)
    dataset = data.Dataset(c.data.name, shape, levels, tuple("0123456789"), blank, blank, blank)
    mesh = rules.make_mesh(c.mesh, jax.devices()[:1])
    return c, models.build_for(c, dataset), mesh, dataset


def setup_tiny(**fields: str) -> Setup:
    return setup("digits", **TINY | fields)


def compiled(c: ConfigDict, m: Any, mesh: jax.sharding.Mesh, dataset: data.Dataset) -> tuple:
    """(the training program, the state that it begins with)."""
    state, places = program.init(c, m, mesh, dataset)
    return program.training(c, m, mesh, dataset, state, places), state
