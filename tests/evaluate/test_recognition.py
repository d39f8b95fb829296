"""Metrics of classifiers and codes against independent libraries and written-out values."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from vae_jax.evaluate import classification, recognition

RNG = np.random.default_rng


def test_brier_and_f1():
    p = np.array([[0.5, 0.5, 0.0], [0.0, 0.2, 0.8]])
    assert classification.brier(p, np.array([0, 1])) == pytest.approx((0.5 + (0.64 + 0.64)) / 2)
    rng = RNG(0)
    label, predicted = (
        rng.integers(0, 5, 300),
        rng.integers(0, 4, 300),
    )  # one class that nobody names
    counts = classification.confusion(label, predicted, 5)
    assert classification.macro_f1(counts) == pytest.approx(
        f1_score(label, predicted, average="macro")
    )


def test_temperature_undoes_a_scale_and_a_perfect_validation_set_asks_for_none():
    rng = RNG(0)
    logits = 2 * rng.normal(size=(20_000, 4))
    label = (logits + rng.gumbel(size=logits.shape)).argmax(
        1
    )  # Gumbel-max: labels of softmax(logits)
    t = classification.temperature(3 * logits, label)
    assert t == pytest.approx(3, rel=0.05)
    before, after = (classification.figures(3 * logits / s, label)[0] for s in (1, t))
    assert before["ece"] > 0.1 > 0.02 > after["ece"] and before["accuracy"] == after["accuracy"]
    assert classification.temperature(logits, logits.argmax(1)) == 1


def test_retrieval_against_scikit_learn():
    rel = RNG(0).integers(0, 2, (40, 10)).astype(bool)
    rel[0] = False
    want = [average_precision_score(r, -np.arange(10)) if r.any() else 0 for r in rel]
    assert recognition.mean_average_precision(rel) == pytest.approx(np.mean(want))


def test_the_usual_map_is_that_of_whole_rankings():
    rng = RNG(0)
    gallery, query = rng.normal(size=(50, 3)), rng.normal(size=(7, 3))
    label, asked = rng.integers(0, 3, 50), rng.integers(0, 3, 7)
    near = -((query[:, None] - gallery) ** 2).sum(-1)
    want = [average_precision_score(label == y, row) for y, row in zip(asked, near, strict=True)]
    got = recognition.retrieval_map(gallery, label, query, asked)
    assert got == pytest.approx(np.mean(want))


def test_verification_written_out():
    """Codes at the angles 0, 20, 90 and 130 degrees, two of each class: pairs by cosine are 20, 40,
    70, …
    """
    angle = np.deg2rad([0, 20, 90, 130])
    found = recognition.verification(
        np.stack([np.cos(angle), np.sin(angle)], 1), np.array([0, 0, 1, 1])
    )
    assert found["auroc"] == 1 and found["eer"] == 0
    assert found["same"] == 2 and found["different"] == 4 and found["auroc_interval"] is None
    mixed = recognition.verification(
        np.stack([np.cos(angle), np.sin(angle)], 1), np.array([0, 1, 0, 1])
    )
    # Same: 90 and 110 degrees; different: 20, 130, 70, 40. Ranks of the same: 4 and 5 of 6, so
    # AUROC = 2 / 8.
    assert mixed["auroc"] == pytest.approx(2 / 8)
    assert mixed["eer"] == pytest.approx(0.75)  # three of four pass before the first that should


def test_verification_says_how_much_its_classes_vary():
    """16 sets of 10 classes: intervals of 95 % hold most of their true AUROC and are not narrow."""
    rng = RNG(0)

    def codes(classes, each):
        label = np.repeat(np.arange(classes), each)
        # Easy classes lie close together about their mean, hard ones do not.
        width = np.where(np.arange(classes) % 2, 0.2, 2.0)[label][:, None]
        return rng.normal(size=(classes, 4))[label] + width * rng.normal(
            size=(len(label), 4)
        ), label

    true = np.mean([recognition.verification(*codes(60, 4), 1)["auroc"] for _ in range(5)])
    hits = 0
    for _ in range(16):
        low, high = recognition.verification(*codes(10, 6))["auroc_interval"]
        hits += low <= true <= high
        assert 0.02 < high - low < 0.4
    assert hits >= 12
    alone = recognition.verification(rng.normal(size=(5, 2)), np.zeros(5, int))
    assert alone["auroc"] is None and (alone["same"], alone["different"]) == (10, 0)


def test_rejection_written_out():
    share, accuracy = recognition.rejection(
        np.array([0.2, 0.9, 0.5, 0.7]), np.array([False, True, True, False])
    )
    np.testing.assert_allclose(share, [0.25, 0.5, 0.75, 1])
    np.testing.assert_allclose(accuracy, [1, 1 / 2, 2 / 3, 1 / 2])
