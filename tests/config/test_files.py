"""Every file of configs/ makes a model that steps and is evaluated, tiny, on two images."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.processes import ROOT
from vae_jax import config, models
from vae_jax.data import evaluation
from vae_jax.evaluate import likelihood
from vae_jax.train import optim, step

FAST = ("mnist_hier",)  # the others take ten seconds and more to compile
COLOUR = ("cifar", "imagenet", "synthetic")
LEVELS = {"binarized_mnist": 2, "sprites": 2, "digits": 17, "scenes:digits": 17}  # others are 256
SECTIONS = ("encoder", "decoder", "classifier", "prior", "posterior", "likelihood", "objective")
WIDTHS = ("dense", "width", "inner", "components")
DISCRETE = ("categorical", "concrete", "fsq")  # their latent is a multiple of something
DEPTHS = ("depth", "heads", "bottleneck", "samples")


def config_files():
    cases = []
    for path in sorted(ROOT.glob("configs/[a-z]*.py")):
        if path.stem in FAST:
            cases.append(path.stem)
        elif not path.stem.startswith("study_"):
            cases.append(pytest.param(path.stem, marks=pytest.mark.slow))
    return cases


def tiny_value(field, value):
    """The same part with two layers at most, of a few units each."""
    if field == "depths":
        return (1, 2)
    if field == "strides":
        return value[:2]
    if isinstance(value, tuple):
        return tuple(min(number, 4) for number in value[:2])
    if field in WIDTHS:
        return 6
    if field in DEPTHS:
        return min(value, 2)
    return value


def tiny(c):
    for section in SECTIONS:
        for field, value in c[section].items():
            c[section][field] = tiny_value(field, value)
    if c.decoder.name not in ("ladder", "vdvae") and c.posterior.name not in DISCRETE:
        c.latent = min(c.latent, 3)
    if c.model.name == "vq":
        c.latent = 2 * c.model.width
    if "grid" in c.model:
        c.model.grid = 2
    c.steps = 10**4
    return c


def random_batch(n, shape, levels, seed, objects=False):
    image = np.random.default_rng(seed).integers(0, levels, (n, *shape)).astype(np.uint8)
    numbers = np.arange(n, dtype=np.int32)
    batch = {"image": image, "label": numbers, "id": numbers}
    if objects:  # one of class 3 in each
        batch["objects"] = np.tile(np.int32([[2, 2, 4, 4, 3], [0, 0, 0, 0, -1]]), (n, 1, 1))
    return batch


@pytest.mark.parametrize("name", config_files())
def test_a_config_file_steps_and_is_evaluated_on_two_images(name):
    c = config.load(str(ROOT / "configs" / f"{name}.py"))
    config.validate(c)
    c = tiny(c)
    channels = 3 if c.data.name.startswith(COLOUR) else 1
    shape = (8, 8, channels)
    levels = LEVELS.get(c.data.name, 256)
    binary = c.data.binarize != "none" or levels == 2
    objects = c.data.name.startswith("scenes:")
    images = random_batch(10, shape, levels, seed=0)["image"]
    dataset = types.SimpleNamespace(train=types.SimpleNamespace(image=images), levels=levels)
    m = models.build(c, shape=shape, levels=levels, classes=10, binary=binary)
    objective = config.resolve("objective", c.objective.name)
    tx = optim.optimizer(c.optim, c.steps)
    terms = step.Objective(c, m, dataset)
    update = step.Update(terms, tx, decay=c.optim.ema)
    two = random_batch(2, shape, levels, seed=1, objects=objects)
    batch = dict(two)
    if c.data.labelled_batch:
        batch["labelled"] = random_batch(2, shape, levels, seed=2)
    masked = two | {"mask": jnp.ones(2, bool)}

    def run(key):
        state = step.init_state(key, None, model=m, objective=objective, tx=tx, decay=c.optim.ema)
        state, metrics = step.train_step(state, batch, key, update)
        sums = step.eval_step(step.averaged(state), masked, key, terms=terms)
        if m.decode is None:
            return metrics, sums, jnp.zeros(())
        example = {"image": jnp.asarray(two["image"]), "id": jnp.asarray(two["id"])}
        x = evaluation.inputs(c, levels)(example)
        draws = likelihood.draws(m, state.params, x, jnp.arange(2), key, 0, 2)
        return metrics, sums, draws.log_w

    compiled = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})
    out = compiled(jax.random.key(0))
    for leaf in jax.tree.leaves(out):
        assert np.isfinite(leaf).all(), out
