"""VAEs that slide over a scene: windows, the background, boxes, and digits that are found."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate

from tests.processes import silent
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.data import scenes
from vae_jax.evaluate import sliding
from vae_jax.evaluate.subject import Subject, restored
from vae_jax.mesh import rules
from vae_jax.train import loop, program

SCENES = "scenes:digits+boxes+train=1+validation=1+test=44"


def test_a_window_of_whole_pixels_is_a_cut_of_the_canvas():
    canvas = np.random.default_rng(0).random((10, 10))
    w = sliding.windows(10, 4, 4.0, 1.0)
    assert w.corner_P[0] == -1 and w.corner_P[-1] == 7
    assert np.diff(w.corner_P).max() <= sliding.STEP * 4 + 1e-9
    for corner in (-1, 0, 3, 7):
        w = w._replace(corner_P=np.array([corner]))
        read = scenes.resampling(4, 10, -corner, 10)
        black = np.pad(canvas, 1)
        np.testing.assert_allclose(
            read @ canvas @ read.T, black[corner + 1 : corner + 5, corner + 1 : corner + 5]
        )
    # A window twice as wide has triangles of two pixels: a constant inside stays.
    wide = sliding.windows(10, 4, 8.0, 0.0).read_PxGxS
    np.testing.assert_allclose(wide[0].sum(1)[1:], 1, atol=1e-6)


def test_objects_of_the_scenes_are_as_large_in_a_window_as_in_training():
    """Training images with sides of 20 of 28 pixels, canvases of 64: objects of 14 to 28."""
    image = np.zeros((3, 28, 28, 1), np.uint8)
    image[:, 4:24, 8:20] = 9
    table = sliding.scales(image, 64, 3)
    np.testing.assert_allclose([w.side * 20 / 28 for w in table], [14, 14 * 2**0.5, 28])
    for w in table:  # the outermost objects touch the canvas's border
        np.testing.assert_allclose(w.corner_P[0] + w.side * 4 / 28, 0, atol=1e-9)
        np.testing.assert_allclose(w.corner_P[-1] + w.side * 24 / 28, 64)


def test_the_background_is_a_density_of_binary_images():
    images = np.array(list(itertools.product((0, 1), repeat=6)), np.float32)
    log_p = np.asarray(sliding.log_background(jnp.asarray(images).reshape(-1, 2, 3, 1)))
    assert np.exp(log_p).sum() == pytest.approx(1, abs=1e-5)
    grey = np.random.default_rng(1).random(12)

    def density(r):
        return np.exp((grey * np.log(r) + (1 - grey) * np.log1p(-r)).sum())

    value, _ = integrate.quad(density, 0, 1)
    got = sliding.log_background(jnp.asarray(grey, jnp.float32).reshape(1, 3, 4, 1))
    assert float(got[0]) == pytest.approx(np.log(value), abs=1e-4)


def test_the_box_of_lit_pixels():
    mean = np.zeros((3, 8, 8, 1), np.float32)
    mean[0, 2:5, 1:7] = 0.9
    mean[0, 0, 0] = sliding.LIT / 2
    mean[1, 7, 7] = 0.5
    boxes = np.asarray(sliding.lit_box(jnp.asarray(mean))) * 8
    np.testing.assert_array_equal(boxes, [[1, 2, 6, 3], [7, 7, 1, 1], [0, 0, 8, 8]])


@pytest.fixture(scope="module")
def subject(tmp_path_factory):
    """A VAE for each digit, trained for a few seconds."""
    folder = str(tmp_path_factory.mktemp("runs") / "per_class")
    c = config.load("configs/per_class_mnist.py")
    c.data.name = "digits"
    c.data.validation = 0.1
    c.batch = 320
    c.steps = c.eval.every = c.log_every = 100
    c.optim.lr = 5e-3
    for part in ("encoder", "decoder"):
        c[part] = config.call(part, "mlp", widths=(48,))
    c.classifier = config.call("classifier", "mlp")
    c.mesh.data = 1
    assert loop.train(c, folder, say=silent)
    mesh = rules.make_mesh(c.mesh, jax.devices()[:1])
    whole = restored(folder)
    params = jax.tree.map(np.asarray, whole.params)
    return dataclasses.replace(whole, params=params, mesh=mesh)


@pytest.mark.slow
def test_digits_are_found_by_models_that_saw_no_box(subject):
    canvases = sliding.scenes_of(subject, SCENES, 44)
    assert canvases.objects.shape == (44, 3, 5)
    content = sliding.measure(subject, canvases, count=3, samples=1)
    metrics = content["metrics"]
    assert content["images"] == 44 and content["windows"] > 300
    assert metrics["ap50_any_class"] > 0.4 and metrics["ap50"] > 0.2, metrics
    assert metrics["ap"] <= metrics["ap50"] and metrics["count_accuracy"] > 0.2


def test_a_blank_window_has_no_object(subject):
    slider = sliding.Slider(subject, [], 1)
    blank = jnp.zeros((2, *subject.model.shape))
    score = program.simple(slider.scores)(subject.params, blank, jax.random.key(0))
    assert score.shape == (2, 10) and score.max() < 0


@pytest.mark.slow
def test_eight_devices_find_the_same(subject):
    canvases = sliding.scenes_of(subject, SCENES, 12)
    table = sliding.scales(subject.data.train.image[:200], 18, 2)
    one = sliding.detect(sliding.Slider(subject, table, 1), canvases)
    many = dataclasses.replace(subject, mesh=rules.make_mesh(config.default().mesh))
    found = sliding.detect(sliding.Slider(many, table, 1), canvases)
    for name in ("box", "label", "score"):
        np.testing.assert_allclose(found[name][:, :5], one[name][:, :5], rtol=1e-4, atol=1e-3)


def test_what_cannot_be_searched_is_one_line(subject):
    with pytest.raises(UserError, match=r"^data=digits: want scenes, such as scenes:digits"):
        sliding.scenes_of(subject, "digits", 1)
    colour = subject.model._replace(spec=subject.model.spec._replace(shape=(8, 8, 3)))
    other = Subject(subject.config, colour, {}, subject.data, subject.mesh)
    with pytest.raises(UserError, match=r"1 channels of 17 levels are not what the run learnt"):
        sliding.scenes_of(other, SCENES, 1)
    c = subject.config.copy_and_resolve_references()
    c.model = config.call("model", "vae")
    vae = Subject(c, subject.model, {}, subject.data, subject.mesh)
    with pytest.raises(UserError, match=r"^model\.name=vae: has no VAE for each class"):
        sliding.scenes_of(vae, SCENES, 1)
