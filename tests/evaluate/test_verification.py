"""People: verification and identification against scikit-learn and brute force."""

import json
import pathlib

import numpy as np
import PIL.Image
import pytest
from sklearn.metrics import roc_curve

from tests import tiny
from vae_jax.config import UserError
from vae_jax.evaluate import recognition, verification
from vae_jax.train import loop

RNG = np.random.default_rng


def people(count: int, each: int, noise: float) -> tuple[np.ndarray, np.ndarray]:
    """(codes, person of each): a direction for each person, and noise."""
    rng = RNG(0)
    label = np.repeat(np.arange(count), each)
    return rng.normal(size=(count, 16))[label] + noise * rng.normal(size=(len(label), 16)), label


def test_folds_share_no_person_and_have_as_many_pairs_of_each_kind():
    _, label = people(24, 6, 0)
    pairs = verification.draw_pairs(label, 10, most=40)
    np.testing.assert_array_equal(pairs.same, label[pairs.first] == label[pairs.second])
    assert len({*zip(pairs.first, pairs.second, strict=True)}) == len(pairs.fold), "no pair twice"
    members = []
    for fold in range(10):
        mine = pairs.fold == fold
        assert pairs.same[mine].sum() * 2 == mine.sum() > 0
        members.append({*label[pairs.first[mine]], *label[pairs.second[mine]]})
    assert sum(map(len, members)) == len(set.union(*members)) == 24


def test_the_threshold_and_the_accuracy_of_a_fold_are_brute_forces():
    rng = RNG(1)
    for trial in range(20):
        score = rng.integers(0, 6, 30) / 5 if trial % 2 else rng.normal(size=30)
        same = rng.random(30) < 0.5
        threshold = verification.best_threshold(score, same)
        every = [((score >= t) == same).mean() for t in [*np.unique(score), np.inf]]
        assert ((score >= threshold) == same).mean() == pytest.approx(max(every))
    fold = np.arange(30) % 3
    pairs = verification.Pairs(fold, fold, same, fold)
    expected = []
    for f in range(3):
        t = verification.best_threshold(score[fold != f], same[fold != f])
        expected.append(np.mean((score[fold == f] >= t) == same[fold == f]))
    np.testing.assert_allclose(verification.fold_accuracies(score, pairs), expected)


def test_rates_are_those_of_the_roc_curve():
    rng = RNG(2)
    same = np.arange(4000) < 2000
    score = rng.normal(size=4000) + 2 * same
    got = verification.tar_at_far(score, same)
    first = np.sort(score[~same])[-21]  # 20 of 2,000, which is 1 %, lie above it
    assert got == pytest.approx((score[same] > first).mean())
    false, true, _ = roc_curve(same, score)
    eer = recognition.equal_error(false, true)
    assert eer == pytest.approx(0.1587, abs=0.03), "Φ(−1), from both sides"


def test_people_who_are_far_apart_are_always_recognised():
    code, label = people(20, 5, 0.01)
    content = verification.measure(code, label, 10)
    for name in ("pairs_accuracy", "tar_at_far", "rank1"):
        assert content[name] == 1
    assert content["eer"] == 0
    code, label = people(20, 5, 1.5)
    content = verification.measure(code, label, 10)
    unit = verification.unit(code)
    gallery = np.arange(0, 100, 5)
    asked = np.setdiff1d(np.arange(100), gallery)
    nearest = (unit[asked] @ unit[gallery].T).argmax(1)
    assert content["rank1"] == pytest.approx((nearest == label[asked]).mean())
    assert 0.5 < content["pairs_accuracy"] < 1 and 0 < content["eer"] < 0.5


@pytest.mark.slow
def test_the_command_reads_photographs_that_are_no_squares(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
):
    """Eight people in photographs of 14x11; six are held out."""
    rng = RNG(3)
    for person in range(8):
        folder = tmp_path / "faces" / f"person_{person}"
        folder.mkdir(parents=True)
        face = rng.integers(0, 256, (14, 11))
        for i in range(8):
            image = np.clip(face + 20 * rng.normal(size=face.shape), 0, 255).astype(np.uint8)
            PIL.Image.fromarray(image).save(folder / f"{i}.png")
    fields = {"data__size": (14, 11), "data__hold_out": (2, 3, 4, 5, 6, 7)}
    c = tiny.short(1, data__name=f"folder:{tmp_path}/faces", steps=4, **fields)
    folder = str(tmp_path / "run")
    assert loop.train(c, folder, lambda line: None)
    capsys.readouterr()
    assert verification.run(["verification", f"--workdir={folder}", "--folds=3"]) == 0
    content = json.loads((tmp_path / "run" / "verification.json").read_text())
    assert (content["people"], content["images"], content["folds"]) == (6, 48, 3)
    assert content["rank1"] > 0.8, "noise is weaker than the faces' differences"
    message = r"folds=10: 6 people were held out, .*want folds=3 or more"
    with pytest.raises(UserError, match=message):
        verification.run(["verification", f"--workdir={folder}"])
    with pytest.raises(UserError, match=r"people .* have one image each"):
        verification.draw_pairs(np.arange(4), 2)
