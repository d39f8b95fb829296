"""Exported detectors: the objects of ``evaluate.scenes``, in pixels of their file."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image

from vae_jax import config
from vae_jax.config import UserError
from vae_jax.data import predict
from vae_jax.evaluate import scenes
from vae_jax.evaluate.subject import Subject, restored
from vae_jax.tools import export
from vae_jax.tools import predict as command
from vae_jax.train import loop


def silent(line: str) -> None:
    """Nothing is printed."""


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Subject]:
    """A detector of digits that finds some of them."""
    c = config.default()
    c.data.name = "scenes:digits+boxes+train=1500+validation=20+test=40"
    c.encoder = config.call("encoder", "mlp", widths=(128,))
    c.decoder = config.call("decoder", "none")
    c.model = config.call("model", "detector", grid=4, widths=(128,))
    c.objective = config.call("objective", "detection")
    c.steps = 600
    c.steps_per_call = 50
    c.unroll = False
    c.eval.every = 600
    c.log_every = 600
    c.optim.lr = 3e-3
    c.mesh.data = 1
    folder = str(tmp_path_factory.mktemp("runs") / "detector")
    loop.train(c, folder, silent)
    return folder, restored(folder)


def test_an_exported_detector_finds_what_the_task_counts(detector: tuple[str, Subject]):
    folder, subject = detector
    call, meta = predict.load(export.write(folder, "detector", say=silent))
    assert meta["what"] == "detector" and meta["objects"] == list(map(str, range(10)))
    image = subject.data.test.image
    out = {name: np.asarray(value) for name, value in call(image).items()}
    task = scenes.detect(subject)
    np.testing.assert_allclose(out["box"], task["box"], rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(out["label"], task["label"])
    expected = (task["keep"] > 0) & (task["logit"] > 0)
    np.testing.assert_array_equal(out["keep"], expected)
    assert 20 < expected.sum() < expected.size / 2, "both sides of the comparison occur"
    log_p = task["score"] - task["logit"]
    score = np.exp(log_p) / (1 + np.exp(-task["logit"]))
    np.testing.assert_allclose(out["score"], score, rtol=1e-3, atol=1e-5)
    one = np.asarray(call(image[:1])["box"])
    np.testing.assert_allclose(one, out["box"][:1], rtol=1e-4, atol=1e-3)


def test_boxes_are_in_pixels_of_the_file(
    detector: tuple[str, Subject], tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    """The same canvas, plain and inside a wide image six times as large: the same objects."""
    folder, subject = detector
    keep = scenes.detect(subject)
    chosen = int(np.argmax(((keep["keep"] > 0) & (keep["logit"] > 0)).sum(1)))
    grey = np.rint(subject.data.test.image[chosen, :, :, 0] / 16 * 255).astype(np.uint8)
    Image.fromarray(grey).save(tmp_path / "plain.png")
    large = np.kron(grey, np.ones((6, 6), np.uint8))
    wide = np.pad(large, ((0, 0), (30, 30)))
    Image.fromarray(wide).save(tmp_path / "wide.png")
    names = [str(tmp_path / "plain.png"), str(tmp_path / "wide.png")]
    boxes = tmp_path / "boxes"
    assert predict.main([folder, *names, "--json", f"--out={boxes}"], command.exported) == 0
    plain, widened = map(json.loads, capsys.readouterr().out.splitlines())
    assert plain["file"] == names[0] and len(plain["objects"]) >= 1
    for small, big in zip(plain["objects"], widened["objects"], strict=True):
        assert small["class"] == big["class"]
        expected = 6 * np.array(small["box"]) + [30, 0, 0, 0]
        np.testing.assert_allclose(big["box"], expected, atol=6)
    drawn = np.asarray(Image.open(boxes / "wide.png"))
    assert (drawn == (230, 60, 30)).all(-1).any(), "a box is drawn"
    path = f"{folder}/export/detector.jaxexport"
    assert predict.main([path, names[0]]) == 0
    line = capsys.readouterr().out.splitlines()[0]
    first = plain["objects"][0]
    assert f"{first['class']} {first['score']:.1%}" in line and "  x " in line


def test_a_box_of_a_converted_image_is_placed_where_it_was():
    """One bright rectangle, found in the converted image, lies where it was painted."""
    rng = np.random.default_rng(0)
    for width, height in ((120, 80), (64, 200), (97, 101)):
        side = min(width, height)
        x, y = (rng.integers((n - side) // 2, (n - side) // 2 + side // 2) for n in (width, height))
        grey = np.zeros((height, width), np.uint8)
        grey[y : y + side // 3, x : x + side // 4] = 255
        small = predict.convert(Image.fromarray(grey), (40, 40, 1))[:, :, 0] > 127
        rows = np.flatnonzero(small.any(1))
        columns = np.flatnonzero(small.any(0))
        found = [columns[0], rows[0], np.ptp(columns) + 1, np.ptp(rows) + 1]
        box = predict.placed(np.array([found]), (40, 40, 1), (width, height))[0]
        np.testing.assert_allclose(box, [x, y, side // 4, side // 3], atol=side / 40)


@pytest.mark.slow
def test_objects_of_a_model_that_looks_at_windows(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    """Attend, infer, repeat: an object for each step that is present, of one class."""
    c = config.load("configs/air_digits.py")
    c.model = config.call("model", "attend_infer_repeat", steps=2, window=8, units=16)
    c.data.name = "scenes:digits+train=64+validation=10+test=20"
    c.encoder = config.call("encoder", "mlp", widths=(16,))
    c.steps_per_call = 1
    c.steps = 20
    c.eval.every = 20
    c.log_every = 20
    c.eval.iw_k = 2
    c.mesh.data = 1
    folder = str(tmp_path / "air")
    loop.train(c, folder, silent)
    call, meta = predict.load(export.write(folder, say=silent))
    assert (meta["what"], meta["objects"]) == ("detector", ["object"])
    subject = restored(folder)
    task = scenes.detect(subject)
    out = {name: np.asarray(value) for name, value in call(subject.data.test.image).items()}
    np.testing.assert_array_equal(out["keep"], task["logit"] > 0)
    np.testing.assert_allclose(out["box"], task["box"], atol=1e-3)
    Image.fromarray(np.zeros((14, 14), np.uint8)).save(tmp_path / "dark.png")
    path = f"{folder}/export/detector.jaxexport"
    assert predict.main([path, str(tmp_path / "dark.png"), "--json"]) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    dark = np.asarray(call(np.zeros((1, *subject.data.shape), np.uint8))["keep"])
    assert len(row["objects"]) == dark.sum()


def test_what_does_not_fit_is_one_line(
    trained: tuple, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    folder = trained[0]
    with pytest.raises(UserError, match="what=detector: the run's model finds no objects"):
        export.write(folder, "detector", say=silent)
    path = export.write(folder, "classifier", say=silent)
    calls = {
        f"--out={tmp_path}/boxes": "finds no boxes; want one of --what=detector",
        f"--maps={tmp_path}/maps": "maps.jaxexport is not there; export it with --what=maps",
        "--false_alarm=1.5": "false_alarm=1.5: want a rate between 0 and 1",
    }
    pathlib.Path(path).with_name("maps.jaxexport").unlink(missing_ok=True)
    for flag, message in calls.items():
        assert predict.main([path, "x.png", flag]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    assert predict.main([str(tmp_path), "x.png"], command.exported) == 2
    assert capsys.readouterr().err.count("\n") == 1
