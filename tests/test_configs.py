"""Every page of configs/ makes a model that steps and is evaluated, in a tiny form on two images."""

import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vae_jax import config, models
from vae_jax.data import evaluation
from vae_jax.evaluate import likelihood
from vae_jax.train import optim, step

ROOT = pathlib.Path(__file__).parents[1]
FAST = ("mnist_hier",)  # the others take ten seconds and more to compile
PAGES = sorted(p.stem for p in ROOT.glob("configs/[a-z]*.py") if not p.stem.startswith("study_"))
COLOUR = ("cifar", "imagenet", "synthetic")


def tiny(c):
    """The same parts with two layers at most, of a few units each."""
    for section in (
        "encoder",
        "decoder",
        "classifier",
        "prior",
        "posterior",
        "likelihood",
        "objective",
    ):
        for field, value in c[section].items():
            if isinstance(value, tuple):
                c[section][field] = tuple(v if field == "strides" else min(v, 4) for v in value[:2])
                if field == "depths":
                    c[section][field] = (1, 2)
            elif field in ("dense", "width", "inner", "components"):
                c[section][field] = 6
            elif field in ("depth", "heads", "bottleneck", "samples"):
                c[section][field] = min(value, 2)
    c.latent, c.steps = (
        min(c.latent, 3) if c.decoder.name not in ("ladder", "vdvae") else c.latent,
        10**4,
    )
    return c


@pytest.mark.parametrize(
    "page", [p if p in FAST else pytest.param(p, marks=pytest.mark.slow) for p in PAGES]
)
def test_a_page_steps_and_is_evaluated_on_two_images(page):
    c = config.load(str(ROOT / "configs" / f"{page}.py"))
    config.validate(c)
    c = tiny(c)
    shape = (8, 8, 3 if c.data.name.startswith(COLOUR) else 1)
    binary = c.data.binarize != "none" or c.data.name == "binarized_mnist"
    levels = 2 if c.data.name == "binarized_mnist" else 17 if c.data.name == "digits" else 256
    rng = np.random.default_rng(0)

    def batch(n):
        image = rng.integers(0, levels, (n, *shape)).astype(np.uint8)
        return {
            "image": image,
            "label": np.arange(n, dtype=np.int32),
            "id": np.arange(n, dtype=np.int32),
        }

    dataset = types.SimpleNamespace(
        train=types.SimpleNamespace(image=batch(10)["image"]), levels=levels
    )
    m = models.build(c, shape=shape, levels=levels, classes=10, binary=binary)
    objective, tx = config.resolve("objective", c.objective.name), optim.optimizer(c.optim, c.steps)
    given = batch(2) | ({"labelled": batch(2)} if c.data.labelled_batch else {})
    terms = step.make_terms(c, m, dataset)

    def run(key):
        state = step.init_state(key, None, model=m, objective=objective, tx=tx, decay=c.optim.ema)
        state, metrics = step.train_step(state, given, key, terms=terms, tx=tx, decay=c.optim.ema)
        found = step.eval_step(
            step.averaged(state), batch(2) | {"mask": jnp.ones(2, bool)}, key, terms=terms
        )
        if m.decode is None:
            return metrics, found, jnp.zeros(())
        x = evaluation.inputs(c, levels)(
            {k: jnp.asarray(v) for k, v in given.items() if k in ("image", "id")}
        )
        return metrics, found, likelihood.draws(m, state.params, x, jnp.arange(2), key, 0, 2).log_w

    out = jax.jit(run, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out)), out
