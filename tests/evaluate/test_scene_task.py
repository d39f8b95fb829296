"""``--tasks=scenes`` of each kind of model, on eight devices; what it says without boxes."""

import numpy as np
import pytest

from tests.evaluate.scene_subjects import air, detector, grid, subject_of
from vae_jax import config
from vae_jax.evaluate import scenes, tasks
from vae_jax.train import program, step


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VAE_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


def perform(subject):
    lines = []
    metrics, why, _ = tasks.perform(["scenes"], subject, say=lines.append)["scenes"]
    return metrics, why, lines


@pytest.mark.parametrize("make", [detector, air, grid])
def test_the_task_measures_boxes_and_counts(make):
    subject = subject_of(make())
    metrics, why, _ = perform(subject)
    values = {key: value for key, value in metrics.items() if value is not None}
    assert -1 <= values.pop("foreground_ari", 0) <= 1
    assert all(0 <= value <= 1 for value in values.values())
    counts = np.unique(subject.data.test.label)
    assert {f"count_accuracy@{n}" for n in counts} < set(metrics)
    windows = make is not detector
    assert ("ap50_window" in metrics) == windows and ("ap50" in why) == windows
    assert ("foreground_ari" in metrics) == ("object_accuracy_1000" in why) == windows
    out = scenes.detect(subject)
    assert out["box"].shape[0] == 20, "padding is left out"


def test_a_batch_of_training_has_its_objects():
    """The objective is traced with what the program gives it, in training and in evaluation."""
    c = detector()
    subject = subject_of(c)
    names = step.check(c, subject.model, subject.data, subject.params)
    assert {"loss", "box_giou"} < set(names)
    source = program.on_device(subject.data.train, subject.mesh, 1)
    batch = program.rows(source, np.array([3, 1]))
    np.testing.assert_array_equal(batch["objects"], subject.data.train.objects[[3, 1]])
    subject = subject_of(air())
    names = step.check(subject.config, subject.model, subject.data, subject.params)
    assert {"elbo", "count_accuracy"} < set(names)


def test_other_data_and_other_models_have_no_boxes():
    c = config.default()
    c.encoder = config.call("encoder", "mlp", widths=(8,))
    metrics, why, lines = perform(subject_of(c))
    assert metrics["ap50"] is None and why["ap"] == "the data are no scenes"
    c.data.name = "scenes:digits+train=8+validation=4+test=20"
    _, why, lines = perform(subject_of(c))
    assert why["count_accuracy"] == "the model finds no objects" and len(lines) == 1
