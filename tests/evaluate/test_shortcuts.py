"""Worst-group accuracy by hand, and of a run that could learn nothing but the cue."""

import numpy as np
import pytest

from vae_jax import config
from vae_jax.config import UserError
from vae_jax.data import shortcuts as shortcut_data
from vae_jax.evaluate import ood_benchmark, shortcuts
from vae_jax.train import loop


def test_groups_by_hand():
    label = np.array([0, 0, 0, 1, 1])
    cue = np.array([0, 1, 1, 1, 0])
    predicted = np.array([0, 1, 0, 1, 0])
    accuracy, count = shortcuts.group_accuracy(predicted, label, cue, 2)
    np.testing.assert_array_equal(count, [[1, 2], [1, 1]])
    np.testing.assert_allclose(accuracy, [[1, 0.5], [0, 1]])
    assert shortcuts.worst_group(accuracy, count, least=1) == 0
    assert shortcuts.worst_group(accuracy, count, least=2) == 0.5
    with pytest.raises(UserError, match="the largest group has 2 test images; want 3 or more"):
        shortcuts.worst_group(accuracy, count, least=3)
    assert shortcuts.conflicting(accuracy, count) == pytest.approx(1 / 3)


def test_a_group_without_images_is_no_group():
    label = np.array([0, 1])
    accuracy, count = shortcuts.group_accuracy(label, label, label, 3)
    assert np.isnan(accuracy).sum() == 7 and count.sum() == 2
    assert shortcuts.worst_group(accuracy, count, least=1) == 1
    with pytest.raises(UserError, match="every cue names its image's class"):
        shortcuts.conflicting(accuracy, count)


@pytest.mark.slow
def test_a_classifier_that_meets_only_agreeing_cues_follows_them(tmp_path):
    """Every training image has the colour of its class: where it misleads, accuracy collapses."""
    c = config.load("configs/digits.py")
    c.data.name = "vae_jax/data/shortcuts.py:coloured_digits_100"
    c.decoder = config.call("decoder", "none")
    c.encoder = config.call("encoder", "mlp", widths=(64,))
    c.objective = config.call("objective", "supervised")
    c.data.shift = 0
    c.steps = 300
    c.eval.every = 300
    c.mesh.data = 1
    assert loop.train(c, str(tmp_path / "run"))
    subject = ood_benchmark.restored(str(tmp_path / "run"))
    test = subject.data.test
    cue = shortcut_data.cues(test.label, 10, 0.1, shortcuts.SEED, "test")
    logits = shortcuts.forward(subject)(test)["logits"]
    agree = cue == test.label
    right = logits.argmax(1) == test.label
    assert right[agree].mean() > 0.9
    misled = shortcuts.conflicting_accuracy(subject)
    assert misled == pytest.approx(right[~agree].mean())
    assert misled < 0.6 and shortcuts.worst_group(*shortcuts._groups(subject, False), 1) < 0.2
