"""Shortcut data: cues are counted, and the images are those of the data set."""

import numpy as np
import pytest

from vae_jax import config, data
from vae_jax.config import UserError
from vae_jax.data import shortcuts

RNG = np.random.default_rng


@pytest.mark.parametrize("agreement", [0.1, 0.9, 0.99])
def test_cues_agree_at_the_stated_rate_and_err_evenly(agreement):
    label = RNG(0).integers(0, 10, 4000)
    cue = shortcuts.cues(label, 10, agreement, 0, "train")
    rate = (cue == label).mean()
    assert abs(rate - agreement) < 4 * np.sqrt(agreement * (1 - agreement) / 4000)
    shift = (cue - label) % 10
    wrong = np.bincount(shift, minlength=10)[1:]
    want = wrong.sum() / 9
    assert ((wrong - want) ** 2 / want).sum() < 30  # χ² of 8 degrees of freedom


def test_full_agreement_and_independence():
    label = RNG(0).integers(0, 10, 2000)
    np.testing.assert_array_equal(shortcuts.cues(label, 10, 1.0, 0, "train"), label)
    cue = shortcuts.cues(label, 10, 0.1, 0, "test")
    assert abs(np.corrcoef(label, cue)[0, 1]) < 4 / np.sqrt(2000)


def test_a_cue_depends_on_seed_split_and_place_only():
    label = np.zeros(300, int)
    cue = shortcuts.cues(label, 10, 0.5, 0, "train")
    np.testing.assert_array_equal(shortcuts.cues(label[:50], 10, 0.5, 0, "train"), cue[:50])
    assert (shortcuts.cues(label, 10, 0.5, 1, "train") != cue).any()
    assert (shortcuts.cues(label, 10, 0.5, 0, "test") != cue).any()


def test_a_colour_names_its_class_and_keeps_the_shade():
    image = RNG(0).integers(0, 256, (10, 6, 6, 1)).astype(np.uint8)
    out = shortcuts.coloured(image, np.arange(10), 10, 256)
    assert out.shape == (10, 6, 6, 3)
    np.testing.assert_array_equal(out.max(-1), image[..., 0])  # the value of HSV
    tops = out.max((1, 2)).astype(float)
    hues = {tuple(np.rint(10 * top / top.max())) for top in tops}
    assert len(hues) == 10


def test_patches_have_places_of_their_own():
    image = np.zeros((10, 28, 28, 1), np.uint8)
    out = shortcuts.patched(image, np.arange(10), 10, 17)
    masks = out[..., 0] == 16
    assert (masks.sum((1, 2)) == 9).all() and masks.sum(0).max() == 1  # 3 x 3, none overlaps
    border = np.zeros((28, 28), bool)
    border[[0, -1]] = True
    border[:, [0, -1]] = True
    assert (masks & border).any((1, 2)).all()
    assert not image.any(), "the images that were passed stay"


def test_the_data_set_has_its_correlations_and_the_images_of_the_original():
    arrays = shortcuts.arrays("digits", "coloured", 0.95)
    c = config.default().data
    original = data.load(c)
    for split in shortcuts.SPLITS:
        part = getattr(original, split)
        label = arrays[f"{split}_labels"]
        np.testing.assert_array_equal(label, part.label)
        shade = arrays[f"{split}_images"].max(-1)
        np.testing.assert_array_equal(shade, np.rint(part.image[..., 0] * (255 / 16)))
        rate = 0.1 if split == "test" else 0.95
        cue = shortcuts.cues(label, 10, rate, 0, split)
        want = shortcuts.coloured(shade[..., None], cue, 10, 256)
        np.testing.assert_array_equal(arrays[f"{split}_images"], want)
        agree = (cue == label).mean()
        assert abs(agree - rate) < 4 * np.sqrt(rate * (1 - rate) / len(label))
    c.name = "vae_jax/data/shortcuts.py:coloured_digits_99"
    loaded = data.load(c)
    assert loaded.shape == (8, 8, 3) and len(loaded.test.image) == len(original.test.image)
    np.testing.assert_array_equal(loaded.test.label, original.test.label)


def test_a_wrong_kind_is_one_line():
    with pytest.raises(UserError, match="kind=striped: want one of coloured, patched"):
        shortcuts.arrays("digits", "striped", 0.9)
