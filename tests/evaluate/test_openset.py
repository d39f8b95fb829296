"""Open-set splits and their file, and a run that is judged on classes it never met."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import f1_score

from tests import tiny
from vae_jax import config
from vae_jax.config import UserError
from vae_jax.evaluate import ood_scores, openset
from vae_jax.evaluate.subject import Subject


@pytest.mark.parametrize("name", openset.LISTS)
def test_five_splits_of_six_known_classes(name):
    splits = openset.read_splits(name)
    # The published lists of CIFAR-10 have the same six classes twice.
    distinct = 4 if name.startswith("cifar10") else 5
    assert len(splits) == 5 and len(set(splits)) == distinct
    for known in splits:
        assert len(set(known)) == 6 and set(known) <= set(range(10))
        assert set(openset.unknown_of(known)) == set(range(10)) - set(known)


def test_a_changed_file_is_refused(tmp_path):
    with open(openset.SPLITS) as file:
        content = json.load(file)
    content["known"]["mnist"][0][0] = 1
    path = tmp_path / "splits.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="is not what its sha256 says"):
        openset.read_splits("mnist", str(path))
    path.write_text("{}")
    with pytest.raises(UserError, match="cannot be read"):
        openset.read_splits("mnist", str(path))
    with pytest.raises(
        UserError, match=r"data\.name=synthetic: has no open-set splits; want digits"
    ):
        openset.read_splits("synthetic")


def test_unknown_images_are_test_images_of_the_held_out_classes(trained):
    """The fixture holds out 8 and 9; ``unseen`` has their training images, too."""
    _, s, _ = trained
    unknown = openset.unknown_images(s.c)
    assert set(unknown.label.tolist()) == {8, 9}
    assert len(unknown.label) < len(s.dataset.unseen.label) / 3
    known = openset.config_of(s.c, (0, 1, 2, 3, 4, 5, 6, 7))
    assert tuple(known.data.hold_out) == (8, 9)


def test_a_run_is_judged_on_both_sides(trained, monkeypatch):
    _, s, params = trained
    subject = Subject(s.c, s.model, params, s.dataset, s.mesh)
    wanted = ["regret", "elbo", "iw", "complexity", "typicality", "bias", "bias_stretched"]
    figures = openset.judge(subject, 60, without=wanted)
    assert figures["closed_accuracy"] > 0.9
    for score in ("softmax", "energy", "mahalanobis", "knn"):
        assert 0.6 < figures[f"{score}_auroc"] <= 1, score


def test_macro_f1_is_scikit_learns():
    rng = np.random.default_rng(0)
    label = rng.integers(0, 5, 200)
    predicted = np.where(rng.random(200) < 0.6, label, rng.integers(0, 5, 200))
    expected = f1_score(label, predicted, average="macro")
    assert openset.macro_f1(label, predicted) == pytest.approx(expected)
    few = openset.macro_f1(np.array([0, 0, 1, 1]), np.array([0, 1, 1, 1]))
    assert few == pytest.approx(11 / 15)


def test_noise_is_unknown(subject):
    """A set of noise, and one of test images on noise, against the classes 0 to 7."""
    image = subject.data.test.image
    sets = openset.noise_sets(image, 17)
    assert (sets["on_noise"] >= image).all() and sets["noise"].max() == 16
    wanted = ["regret", "typicality", "complexity", "bias", "bias_stretched", "odin"]
    figures = openset.judge_noise(subject, 60, without=wanted)
    assert set(figures) == {"noise", "on_noise"}
    assert figures["noise"]["mahalanobis"] > 0.8 and figures["noise"]["elbo"] > 0.8
    assert all(0 <= value <= 1 for row in figures.values() for value in row.values())


def test_scores_of_the_predicted_class():
    """They are the parts of the bound on log p(x|ŷ); either one alone makes an image unknown."""
    model, params = tiny.m2()
    keys = jax.random.split(jax.random.key(0), (3, len(tiny.X)))
    got = ood_scores.class_scores(model, params, tiny.X, keys)
    label = jnp.argmax(model.classify(params, tiny.X), -1)
    d = model.draw(params, tiny.X, keys, label)
    bound = (d.log_px - d.kl.sum(-1)).mean(0)
    np.testing.assert_allclose(-got["class_kl"] - got["reconstruction"], bound, rtol=1e-5)
    assert (got["class_kl"] >= 0).all()
    usual = {name: np.arange(100.0) for name in got}
    fresh = {"class_kl": np.array([1.0, 99, 1]), "reconstruction": np.array([1.0, 1, 99])}
    np.testing.assert_allclose(openset.either(fresh, usual), [1 / 99, 1, 1], atol=1e-3)


def test_the_summary_is_mean_and_deviation():
    got = openset.summary([{"a": 1.0}, {"a": 3.0}])
    assert got == {"a": {"mean": 2.0, "sd": pytest.approx(np.sqrt(2))}}


@pytest.mark.slow
def test_every_split_is_trained_and_judged(tmp_path):
    c = config.load("configs/digits.py")
    c.encoder = config.call("encoder", "mlp", widths=(32,))
    c.decoder = config.call("decoder", "mlp", widths=(32,))
    c.steps = 60
    c.eval.every = 60
    c.optim.warmup = 10
    c.mesh.data = 1
    content = openset.measure(c, str(tmp_path), openset.read_splits("digits")[:2], 40)
    assert [row["known"] for row in content["splits"]] == [[2, 3, 4, 5, 8, 9], [0, 2, 3, 4, 6, 9]]
    assert set(content["summary"]) >= {"closed_accuracy", "softmax_auroc", "iw_auroc"}
    assert (tmp_path / "openset.json").exists() and (tmp_path / "split_1" / "config.json").exists()
    c.classifier = config.call("classifier", "none")
    with pytest.raises(UserError, match=r"classifier\.name=none"):
        openset.measure(c, str(tmp_path), [(0, 1)], 40)
