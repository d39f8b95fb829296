"""What an export says of unusual images: maps pixel by pixel, and alarms at a stated rate."""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from vae_jax.data import predict
from vae_jax.distributions import example_keys
from vae_jax.evaluate import ood_scores
from vae_jax.evaluate.subject import Subject
from vae_jax.report import anomaly, panels
from vae_jax.tools import export
from vae_jax.train import program, step


def silent(line: str) -> None:
    """Nothing is printed."""


def test_alarms_on_fresh_images_come_at_the_stated_rate(trained: tuple):
    """Of m fresh images, with n validation images, alarms are beta-binomial.

    A threshold at the k-th of n exchangeable scores: k = rate (n + 1), Vovk et al. 2005.
    """
    folder, s, _ = trained
    _, meta = predict.load(export.write(folder, "classifier", say=silent))
    n = len(s.dataset.validation.image)
    m = len(s.dataset.test.image)
    for rate in (0.01, 0.05):
        alarms = round(meta["familiarity"]["false_alarms"][str(rate)] * m)
        law = stats.betabinom(m, max(rate * (n + 1), 1), (1 - rate) * (n + 1))
        low, high = law.ppf([0.005, 0.995])
        assert low <= alarms <= high, (rate, alarms, low, high)


@pytest.mark.slow
def test_predict_calls_images_unfamiliar_and_maps_the_spot(
    trained: tuple, tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    """A test image; the same with a bright spot where digits are dark; the same inverted."""
    folder, s, params = trained
    image = s.dataset.test.image[:1]
    spot = image.copy()
    spot[0, :2, :2] = 16
    path = export.write(folder, "classifier", say=silent)
    maps_path = export.write(folder, "maps", say=silent)
    call, meta = predict.load(maps_path)
    both = np.concatenate([image, spot])
    got = np.asarray(call(both)["anomaly"])
    key = step.stream(s.c.seed, "familiarity")
    keys = example_keys(key, jnp.zeros(2, jnp.int32))
    run = program.simple(ood_scores.anomaly_maps(s.model))
    expected = run(params, jnp.asarray(both, jnp.float32) / 16, keys)["combined"]
    np.testing.assert_allclose(got, expected, rtol=2e-3, atol=1e-4 * np.abs(expected).max())
    assert np.argmax(got[1]) in (0, 1, 8, 9), "the greatest value is in the spot"
    assert got[1].max() > meta["usual_maximum"]
    for name, one in (("usual", image), ("spot", spot), ("odd", 16 - image)):
        grey = np.rint(one[0, :, :, 0] / 16 * 255).astype(np.uint8)
        Image.fromarray(grey).save(tmp_path / f"{name}.png")
    names = [str(tmp_path / f"{name}.png") for name in ("usual", "odd", "spot")]
    flags = [f"--maps={tmp_path}/maps", "--json", "--false_alarm=0.02"]
    assert predict.main([path, *names, *flags]) == 0
    usual, odd, _ = map(json.loads, capsys.readouterr().out.splitlines())
    assert (usual["unfamiliar"], odd["unfamiliar"]) == (False, True)
    assert usual["familiarity"] > 0.02 > odd["familiarity"]
    shades = np.asarray(Image.open(tmp_path / "maps" / "spot.png"))
    assert shades.shape == (256, 512)
    assert shades[:64, 256:320].max() == 255, "the spot is white in the map on the right"
    assert predict.main([path, names[1]]) == 0
    assert "  unfamiliar  familiarity " in capsys.readouterr().out


def test_the_report_has_a_panel_of_maps(subject: Subject):
    test = subject.data.test
    noise = test._replace(image=np.random.default_rng(0).permuted(test.image, axis=1))
    shown = ood_scores.shown_maps(subject, {"test images": test, "shuffled": noise})
    assert [maps.shape for _, maps in shown.values()] == [(anomaly.SHOWN, 8, 8)] * 2
    assert shown["shuffled"][1].mean() > 2 * shown["test images"][1].mean()
    panel = panels.task_panels(panels.Pictures(anomaly=shown))["anomaly"]
    assert panel.png.startswith(b"\x89PNG") and "shuffled: " in panel.view["alt"]
