"""``vae_jax.load`` of exported programs: the same codes and classes, and no more than they hold."""

import pathlib
import shutil

import numpy as np
import pytest

import vae_jax
from tests import tiny
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.tools import export
from vae_jax.tools.exported import Exported
from vae_jax.train import loop


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run of twelve steps on digits, and its three exports."""
    workdir = tmp_path_factory.mktemp("exported") / "run"
    assert loop.train(tiny.short(1), str(workdir), lambda line: None)
    for what in ("classifier", "encoder", "sampler"):
        export.write(str(workdir), what, say=lambda line: None)
    return workdir


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    """A hundred test images: more than a program takes in one call."""
    return data.load(tiny.short(1).data).test.image[:100]


def test_an_export_has_the_codes_and_classes_of_its_run(folder: pathlib.Path, images: np.ndarray):
    run = vae_jax.load(folder)
    loaded = vae_jax.load(folder / "export")
    assert isinstance(loaded, Exported) and sorted(loaded.programs) == [
        *("classifier", "encoder", "sampler")
    ]
    assert loaded.classes == run.classes
    codes = run.encode(images)
    np.testing.assert_allclose(loaded.encode(images), codes, rtol=1e-4, atol=1e-5)
    floats = images.astype(np.float32) / 16
    np.testing.assert_allclose(loaded.encode(floats), codes, rtol=1e-4, atol=1e-5)
    probabilities = run.classify(images)
    tempered = probabilities ** (1 / loaded.programs["classifier"][1]["temperature"])
    expected = tempered / tempered.sum(1, keepdims=True)
    np.testing.assert_allclose(loaded.classify(images), expected, rtol=1e-3, atol=1e-5)
    share = loaded.familiarity(images)
    assert share.shape == (100,) and share.min() >= 0 and share.max() <= 1


def test_samples_of_an_export_are_a_function_of_seed_and_place(folder: pathlib.Path):
    one = vae_jax.load(folder / "export" / "sampler.jaxexport")
    samples = one.sample(70, seed=3)
    assert samples.shape == (70, 8, 8, 1) and 0 <= samples.min() <= samples.max() <= 1
    np.testing.assert_allclose(one.sample(5, seed=3), samples[:5], atol=1e-5)
    assert np.abs(one.sample(5, seed=4) - samples[:5]).max() > 1e-3


def test_what_an_export_has_not_is_one_line(folder: pathlib.Path, images: np.ndarray):
    one = vae_jax.load(folder / "export" / "encoder.jaxexport")
    calls = (
        (lambda: one.classify(images), r"classify: .* has encoder; want --what=classifier"),
        (lambda: one.sample(3), r"sample: .*; want --what=sampler"),
        (lambda: one.decode(np.zeros((1, 4))), r"decode: .* is an export and has none"),
        (lambda: one.log_prob(images), "log_prob: "),
        (lambda: one.traverse(images[0]), "traverse: "),
        (lambda: one.evaluate(), "evaluate: "),
        (lambda: one.model, "model: "),
        (lambda: one.encode(images * 15), r"uint8 up to 2\d+; want uint8 of 0 \.\. 16"),
    )
    for call, message in calls:
        with pytest.raises(UserError, match=message) as error:
            call()
        assert "\n" not in str(error.value)


def test_a_damaged_or_missing_export_is_one_line(folder: pathlib.Path, tmp_path: pathlib.Path):
    shutil.copytree(folder / "export", tmp_path / "export")
    file = tmp_path / "export" / "encoder.jaxexport"
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(UserError, match=r"encoder\.jaxexport: damaged") as error:
        vae_jax.load(tmp_path / "export")
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match=r"none\.jaxexport: No such file"):
        vae_jax.load(tmp_path / "none.jaxexport")
    with pytest.raises(UserError, match="no run in it"):
        vae_jax.load(tmp_path / "nothing")
