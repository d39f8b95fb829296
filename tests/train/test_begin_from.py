"""Encoders that learnt without labels begin a classifier, a probe and a detector."""

import jax
import numpy as np
import pytest

from tests.processes import silent
from vae_jax import config, data
from vae_jax.evaluate import layers, probes
from vae_jax.evaluate.subject import restored
from vae_jax.train import loop, program, step
from vae_jax.train import run as run_lib

SCENES = "scenes:digits+boxes+train=64+validation=8+test=8"
PRETRAINING = {"masked": {"patch": 2}, "contrastive": {}}


def small(steps, **sections):
    """Nets of 64 units on digits, one device."""
    c = config.default()
    c.encoder = config.call("encoder", "mlp", widths=(64,))
    c.decoder = config.call("decoder", "none")
    for section, value in sections.items():
        c[section] = value
    c.latent = 16
    c.batch = 64
    c.steps = c.eval.every = c.log_every = steps
    c.steps_per_call = 20
    c.unroll = False
    c.optim.lr = 3e-3
    c.optim.ema = 0.9
    c.mesh.data = 1
    return c


def pretrained(folder, name, data="digits", steps=100):
    """A run of a twin of the VAE."""
    c = small(steps, objective=config.call("objective", name, **PRETRAINING[name]))
    c.data.name = data
    if name == "masked":
        c.decoder = config.call("decoder", "mlp", widths=(64,))
    assert loop.train(c, str(folder / name), say=silent)
    return str(folder / name)


@pytest.fixture(scope="module", params=PRETRAINING)
def digits_run(request, tmp_path_factory):
    return pretrained(tmp_path_factory.mktemp("digits"), request.param, steps=200)


def begun(c):
    """(state that training begins with, its setup)."""
    setup = run_lib.setup(c)
    fresh = program.init(c, setup.model, setup.mesh, setup.dataset)
    return run_lib.begin_from(c.init_from, *fresh), setup


def assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_training_lowers_the_loss_and_its_code_knows_the_class(digits_run):
    rows = run_lib.restore(digits_run, say=silent)
    subject = restored(digits_run)
    terms = step.Objective(rows.setup.c, subject.model, subject.data)
    image = subject.data.train.image[:128]
    batch = {"image": image, "id": np.arange(128), "label": subject.data.train.label[:128]}

    @program.simple
    def loss(params):
        return terms(params, batch, jax.random.key(0), 0).loss.mean()

    fresh = program.init(rows.setup.c, subject.model, subject.mesh, subject.data)[0]
    assert loss(subject.params) < 0.9 * loss(fresh.params)
    parts = []
    for split in (subject.data.train, subject.data.test):
        few = data.some(split, 300)
        parts.append((layers.outputs(subject, few)["code"], few.label))
    train, test = parts
    predict, _ = probes.fit("knn", train, None)
    assert (predict(test[0])[0] == test[1]).mean() > 0.8


def test_a_classifier_begins_with_the_encoder(digits_run):
    supervised = config.call("objective", "supervised")
    c = small(60, objective=supervised, classifier=config.call("classifier", "mlp"))
    c.data.labels = 100
    c.data.labelled_batch = 64
    c.init_from = digits_run
    state, _ = begun(c)
    theirs = restored(digits_run).params
    for part in ("encoder", "posterior"):
        assert_equal(state.params[part], theirs[part])
        assert_equal(state.ema[part], theirs[part])
    assert "objective" not in state.params
    folder = f"{digits_run}_tuned"
    lines = []
    assert loop.train(c, folder, say=lines.append)
    (line,) = [line for line in lines if line.startswith("init_from=")]
    assert "encoder" in line.partition("as trained there")[0]
    assert line.endswith("; classifier as new")
    _, tuned, _ = run_lib.restore(folder, "latest", say=silent)
    moved = np.abs(tuned.params["encoder"]["Layer_0"]["dense"]["kernel"])
    assert np.abs(moved - np.abs(theirs["encoder"]["Layer_0"]["dense"]["kernel"])).max() > 1e-3


@pytest.mark.slow
def test_a_detector_stands_on_the_frozen_encoder(tmp_path):
    scene_run = pretrained(tmp_path, "masked", data=SCENES, steps=40)
    head = config.call("model", "detector", grid=3, widths=(32,), frozen=True)
    c = small(40, objective=config.call("objective", "detection"), model=head)
    c.data.name = SCENES
    c.init_from = scene_run
    state, _ = begun(c)
    folder = str(tmp_path / "detector")
    assert loop.train(c, folder, say=silent)
    _, after, _ = run_lib.restore(folder, "latest", say=silent)
    theirs = restored(scene_run).params["encoder"]
    assert_equal(after.params["encoder"], theirs)
    average = jax.tree.leaves(step.averaged(after)["encoder"])
    for a, b in zip(average, jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-7)  # a mean of equal numbers, rounded
    before = jax.tree.leaves(state.params["detector"])
    for a, b in zip(before, jax.tree.leaves(after.params["detector"]), strict=True):
        assert np.abs(np.asarray(a) - np.asarray(b)).max() > 0
