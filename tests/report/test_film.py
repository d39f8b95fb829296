"""Frames of training: what is written, and what is read back."""

import jax
import numpy as np

from vae_jax import config
from vae_jax.train import film, program, run, step


def test_frames_are_the_decoders_of_the_same_codes(tmp_path):
    c = config.default()
    c.steps = 10
    c.batch = 8
    c.latent = 3
    c.encoder = config.call("encoder", "mlp", widths=(16,))
    c.decoder = config.call("decoder", "mlp", widths=(16,))
    setup = run.setup(c)
    state, _ = program.init(c, setup.model, setup.mesh, setup.dataset)
    record = film.Film(setup, str(tmp_path))
    record(5, state)
    record(10, state)
    frames = film.read(str(tmp_path), [5, 10])
    n = film.IMAGES
    assert frames.steps == [5, 10] and frames.images.shape == (2, 2 * n, 8, 8, 1)
    np.testing.assert_array_equal(*frames.images)  # no noise of a frame's own
    model = setup.model
    params = step.averaged(state)
    split = setup.dataset.validation
    rows = np.arange(n) * len(split.image) // n
    z = model.encode(params, split.image[rows] / 16.0).mu
    mean = np.clip(model.likelihood.mean(model.decode(params, z)), 0, 1)
    np.testing.assert_allclose(frames.images[0, :n] / 255, mean, atol=0.51 / 255)
    z = model.sample(params, jax.random.split(step.stream(c.seed, "film"), n))
    mean = np.clip(model.likelihood.mean(model.decode(params, z)), 0, 1)
    np.testing.assert_allclose(frames.images[0, n:] / 255, mean, atol=0.51 / 255)


def test_damaged_frames_and_those_of_another_shape_are_left_out(tmp_path):
    folder = tmp_path / film.FOLDER
    folder.mkdir()
    for at in range(1, 41):
        np.save(folder / f"{at}.npy", np.full((2, 3, 4, 4, 1), at, np.uint8))
    (folder / "7.npy").write_bytes(b"torn")
    (folder / "8.npy").write_bytes(b"")
    np.save(folder / "9.npy", np.zeros((2, 3, 5, 5, 1), np.uint8))
    frames = film.read(str(tmp_path), list(range(1, 12)))
    assert frames.steps == [1, 2, 3, 4, 5, 6, 10, 11]
    assert frames.images[:, 0, 0, 0, 0].tolist() == frames.steps
    many = film.read(str(tmp_path), list(range(1, 41)))
    assert len(many.steps) == film.FRAMES and many.steps[-1] == 40
    assert film.read(str(tmp_path), [1, 99]) is None  # one frame is no film
    assert film.read(str(tmp_path / "none"), [1, 2]) is None
