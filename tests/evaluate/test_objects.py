"""Objects that a model draws: whose box they match, their pixels, a probe of their class."""

import numpy as np
import pytest

from vae_jax import config, data
from vae_jax.data import scenes
from vae_jax.evaluate import objects
from vae_jax.evaluate.subject import Subject


def test_found_objects_have_the_code_of_the_box_that_matches_them():
    true = np.array([[[0, 0, 10, 10, 3], [30, 30, 10, 10, 7], [0, 0, 0, 0, -1]]])
    box = [[0, 0, 10, 9], [0, 0, 10, 10], [30, 31, 10, 10], [60, 60, 5, 5]]
    out = {
        "box": np.array([box], float),
        "logit": np.array([[1.0, 2.0, 0.5, 3.0]]),
        "score": np.array([[1.0, 2.0, 0.5, 3.0]]),
        "what": np.arange(8.0).reshape(1, 4, 2),
    }
    what, label = objects.found_objects(out, true)
    np.testing.assert_array_equal(what, [[2, 3], [4, 5]])
    np.testing.assert_array_equal(label, [3, 7])
    out["logit"][0, 2] = -1
    _, label = objects.found_objects(out, true)
    np.testing.assert_array_equal(label, [3])


def test_the_rand_index_is_one_of_the_true_grouping_and_zero_of_one_group(monkeypatch):
    c = config.default()
    c.data.name = "scenes:digits+least=2+most=3+train=2+validation=2+test=6"
    dataset = data.load(c.data)
    subject = Subject(c, None, None, dataset, None)
    true = scenes.owners_of_test(c.data, data.load, 6)
    for owner, expected in ((3 - true.astype(int), 1.0), (np.ones_like(true), 0.0)):
        monkeypatch.setattr(objects, "over_split", lambda *_, owner=owner: {"owner": owner})
        metrics, _, _ = objects.foreground_ari(subject)
        assert metrics["foreground_ari"] == pytest.approx(expected)


def test_a_probe_learns_a_class_from_codes_that_tell_it():
    rng = np.random.default_rng(0)
    sets = []
    for size in (300, 200):
        label = rng.integers(4, size=size)
        what = np.eye(4)[label] + 0.05 * rng.normal(size=(size, 4))
        sets.append(objects.Objects(what, label))
    metrics, why, _ = objects.object_probes(*sets, seed=0)
    assert metrics["object_accuracy_10"] > 0.95 and metrics["object_accuracy_100"] == 1
    assert why == {"object_accuracy_1000": "the model finds 300 objects in the training scenes"}
    mixed = sets[0]._replace(label=rng.permutation(sets[0].label))
    metrics, _, _ = objects.object_probes(mixed, sets[1], seed=0)
    assert metrics["object_accuracy_100"] < 0.6
