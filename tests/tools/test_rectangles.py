"""Images that are no squares, from a folder with splits to a prediction."""

import pathlib

import numpy as np
import PIL.Image
import pytest

import vae_jax
from tests import tiny
from vae_jax import config
from vae_jax.data import predict
from vae_jax.tools import assess, export
from vae_jax.train import loop


@pytest.mark.slow
def test_rectangles_are_trained_evaluated_exported_and_predicted(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    rng = np.random.default_rng(0)
    for split, count in (("train", 20), ("validation", 6), ("test", 6)):
        for name, top in (("dark", 100), ("light", 255)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                image = rng.integers(top - 100, top, (12, 9), np.uint8)
                PIL.Image.fromarray(image).save(folder / f"{i}.png")
    c = tiny.short(1, data__name=f"folder:{tmp_path}/images", data__size=(12, 9))
    workdir = str(tmp_path / "run")
    assert loop.train(c, workdir, lambda line: None)
    assert assess.assess(workdir, assess.Request(iw_k=1))[0]["iw_k"] == 1
    assert (tmp_path / "run/report/index.html").is_file()
    run = vae_jax.load(workdir)
    assert run.config.data.size == (12, 9) and run.sample(3).shape == (3, 12, 9, 1)
    other = config.load("digits")
    config.set_field(other, "data.size", (12, 9))
    assert other.data.size == run.config.data.size
    path = export.write(workdir, "classifier", say=lambda line: None)
    capsys.readouterr()
    assert predict.main([path, str(tmp_path / "images/test")]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 12
