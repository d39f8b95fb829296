"""The page of OOD scores of a trained run."""

import json

import numpy as np
import pytest
from scipy import stats

from vae_jax import data
from vae_jax.config import UserError
from vae_jax.data import textures
from vae_jax.evaluate import detection, ood, ood_benchmark


@pytest.fixture(scope="module")
def reference(subject):
    """The run is its own background here, so that the likelihood ratio is 0."""
    return ood_benchmark.reference(subject, subject, without=["regret"])


@pytest.fixture(scope="module")
def scored(subject, reference):
    """{images: their scores} of validation, test and textures."""
    far = data.Split(textures.textures(100, (8, 8, 1), 17), None)
    splits = {"validation": subject.data.validation, "test": subject.data.test, "textures": far}
    return {name: ood_benchmark.scores(reference, split) for name, split in splits.items()}


def test_scores_tell_textures_from_digits(reference, scored):
    outside = {"near": {}, "far": {"textures": scored["textures"]}}
    rows = ood_benchmark.page(scored["test"], scored["validation"], outside, 0.1)
    names = {"mahalanobis", "knn", "softmax", "energy", "odin", "elbo", "iw", "typicality"}
    assert set(rows) == names | {"complexity", "bias", "bias_stretched", "ratio"}
    assert set(reference.missing) == {"regret"}
    for score in ("mahalanobis", "iw", "bias", "typicality"):
        assert rows[score]["sets"]["textures"]["auroc"] > 0.9, score
    for row in rows.values():
        against = row["sets"]["textures"]
        assert against["auroc_low"] <= against["auroc"] <= against["auroc_high"]
        assert row["far"] == against["auroc"] and "near" not in row
    assert json.loads(json.dumps(rows))["iw"]["far"] == rows["iw"]["far"]
    assert len(ood_benchmark.table(rows).splitlines()) == 1 + len(rows)


def test_the_threshold_keeps_its_false_alarm_rate_on_test_images(scored):
    """Alarms on m fresh images are beta-binomial: the k-th of n validation scores has a rate of
    Beta(n + 1 - k, k), whatever the score's distribution is."""
    n = len(scored["validation"]["iw"])
    m = len(scored["test"]["iw"])
    k = np.ceil((n + 1) * 0.9)
    alarms = stats.betabinom(m, n + 1 - k, k)
    for score in ("iw", "mahalanobis", "bias"):
        limit = detection.threshold(scored["validation"][score], 0.1)
        rate, low, high = detection.alarm_rate(scored["test"][score], limit)
        assert low < rate < high
        assert 0.0005 < alarms.cdf(round(rate * m)) < 0.9995, (score, rate)


def test_scores_are_those_of_their_functions(subject, reference, scored):
    got = scored["test"]
    outputs = reference.forward(subject.data.test)
    np.testing.assert_allclose(got["mahalanobis"], reference.gaussians(outputs["mu"]))
    log_p = outputs["logits"] - np.log(np.exp(outputs["logits"]).sum(1, keepdims=True))
    np.testing.assert_allclose(got["softmax"], -np.exp(log_p).max(1), rtol=1e-5)
    np.testing.assert_allclose(got["typicality"], np.abs(got["iw"] - reference.bits_M.mean()))
    np.testing.assert_allclose(got["ratio"], 0, atol=1e-9)
    shift = got["bias"] - got["iw"] / ood.BITS
    level = subject.data.test.image.reshape(len(shift), -1)
    np.testing.assert_allclose(shift, reference.corrections_V[level].sum(1), rtol=1e-5)


def test_sets_by_name(subject, monkeypatch):
    sets = ood_benchmark.ood_sets(subject, (), ["synthetic", "textures"], 30)
    assert [*sets["far"]] == ["synthetic", "textures"] and not sets["near"]
    for split in sets["far"].values():
        assert split.image.shape == (30, 8, 8, 1) and split.image.max() <= 16
    lines = []
    monkeypatch.setenv("TFDS_DATA_DIR", "/nonexistent")
    sets = ood_benchmark.ood_sets(subject, (), (), 30, lines.append)
    assert [*sets["far"]] == ["textures"] and len(lines) == 2
    with pytest.raises(UserError, match="near=digits: is what the run was trained on"):
        ood_benchmark.ood_sets(subject, ["digits"], (), 30)
    with pytest.raises(UserError, match="mnist"):
        ood_benchmark.ood_sets(subject, ["mnist"], (), 30)


@pytest.mark.slow
def test_the_command_writes_its_page(trained, capsys):
    folder, _, _ = trained
    words = ["x", f"--workdir={folder}", "--far=textures", "--images=40", "--without=regret,iw"]
    assert ood_benchmark.run(words) == 0
    printed = capsys.readouterr().out
    assert "mahalanobis" in printed and "without ratio: there is no run on mutated" in printed
    with open(f"{folder}/ood_benchmark.json") as file:
        page = json.load(file)
    assert page["images"] == 40 and "iw" not in page["scores"]
    with pytest.raises(UserError, match="workdir: want --workdir=FOLDER"):
        ood_benchmark.run(["x"])
