"""Common corruptions: the grey scale, growth with strength, and closed forms."""

import numpy as np
import pytest

from vae_jax.evaluate import corruptions

RNG = np.random.default_rng


@pytest.fixture(scope="module")
def images():
    """Smooth blobs in 256 levels, in grey and in colour."""
    rows, columns = np.mgrid[:20, :20]
    out = {}
    for channels in (1, 3):
        centre = RNG(channels).uniform(6, 14, (8, 2, channels))
        x = np.exp(
            -(
                (rows[None, ..., None] - centre[:, None, None, 0]) ** 2
                + (columns[None, ..., None] - centre[:, None, None, 1]) ** 2
            )
            / 20
        )
        out[channels] = np.rint(40 + 160 * x).astype(np.uint8)
    return out


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", corruptions.CORRUPTIONS)
def test_a_corruption_keeps_the_format_and_grows(images, name, channels):
    image = images[channels]
    distance = []
    for strength in (1, 5):
        worse = corruptions.corrupted(image, 256, name, strength)
        assert worse.shape == image.shape and worse.dtype == np.uint8
        distance.append(np.abs(worse.astype(float) - image).mean())
        again = corruptions.corrupted(image, 256, name, strength)
        np.testing.assert_array_equal(worse, again)
    assert 0 < distance[0] < distance[1], distance


def test_there_are_fifteen_kinds_of_five_strengths():
    assert len(corruptions.CORRUPTIONS) == 15
    assert all(len(settings) == 5 for _, settings in corruptions.CORRUPTIONS.values())


def test_grey_levels_of_the_digits_stay():
    image = RNG(0).integers(0, 17, (4, 8, 8, 1)).astype(np.uint8)
    for name in corruptions.CORRUPTIONS:
        assert corruptions.corrupted(image, 17, name, 5).max() <= 16, name


def test_noise_has_its_moments():
    x = np.full((40, 25, 25, 1), 0.5)
    noise = corruptions.gaussian_noise(x, 0.1, RNG(0)) - x
    assert noise.std() == pytest.approx(0.1, rel=0.02)
    shot = corruptions.shot_noise(x, 50, RNG(0))
    assert shot.mean() == pytest.approx(0.5, rel=0.01)
    assert shot.var() == pytest.approx(0.5 / 50, rel=0.03)  # Poisson: the mean over the photons
    impulse = corruptions.impulse_noise(x, 0.06, RNG(0))
    for value in (0.0, 1.0):
        assert (impulse == value).mean() == pytest.approx(0.03, abs=0.004)


def test_contrast_and_brightness_are_linear():
    x = RNG(0).uniform(0.2, 0.6, (3, 6, 6, 3))
    lower = corruptions.contrast(x, 0.3, RNG(0))
    np.testing.assert_allclose(lower.mean((1, 2)), x.mean((1, 2)))
    np.testing.assert_allclose(lower.std((1, 2)), 0.3 * x.std((1, 2)))
    brighter = corruptions.brightness(x, 0.2, RNG(0))
    np.testing.assert_allclose(brighter.max(-1), x.max(-1) + 0.2)
    np.testing.assert_allclose(
        brighter / brighter.max(-1, keepdims=True), x / x.max(-1, keepdims=True)
    )


def test_blurs_keep_a_constant_image_and_a_disk_has_its_area():
    x = np.full((2, 12, 12, 1), 0.3)
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"):
        function, settings = corruptions.CORRUPTIONS[name]
        np.testing.assert_allclose(function(x, settings[-1], RNG(0)), 0.3, err_msg=name)
    for radius in (0.6, 1.9, 3.2):
        assert corruptions._disk(radius).sum() == pytest.approx(np.pi * radius**2, rel=0.03)


def test_the_accuracy_of_a_run_under_each(trained, monkeypatch):
    _, s, params = trained
    from vae_jax.evaluate.subject import Subject

    kept = {name: corruptions.CORRUPTIONS[name] for name in ("gaussian_noise", "contrast")}
    monkeypatch.setattr(corruptions, "CORRUPTIONS", kept)
    subject = Subject(s.c, s.model, params, s.dataset, s.mesh)
    rows = corruptions.accuracies(subject, 200)
    assert [*rows] == ["clean", *kept] and rows["clean"][0] > 0.9
    assert rows["contrast"][-1] < rows["clean"][0] - 0.05
    error = corruptions.mean_error(rows)
    want = np.mean([1 - np.mean(rows[name]) for name in kept])
    assert error == pytest.approx(want)
