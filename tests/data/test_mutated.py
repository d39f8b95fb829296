"""Mutated images: the share that is replaced, and a data set of them."""

import numpy as np

from vae_jax import config, data
from vae_jax.data import mutated


def test_mutation_replaces_its_share_and_depends_on_seed_and_place():
    image = np.full((50, 20, 20, 1), 3, np.uint8)
    out = mutated.mutated(image, 17, 0.2, seed=4)
    share = (out != 3).mean()
    want = 0.2 * 16 / 17  # a fresh level is the old one in one of 17 cases
    assert abs(share - want) < 4 * np.sqrt(want * (1 - want) / out.size)
    assert out.dtype == np.uint8 and out.max() == 16
    np.testing.assert_array_equal(mutated.mutated(image[:7], 17, 0.2, seed=4), out[:7])
    assert (mutated.mutated(image[:1], 17, 0.2, seed=5) != out[:1]).any()


def test_a_mutated_data_set_is_loaded_by_name():
    c = config.default().data
    original = data.load(c)
    c.name = "vae_jax/data/mutated.py:digits"
    loaded = data.load(c)
    assert loaded.shape == (8, 8, 1) and loaded.levels == 256
    np.testing.assert_array_equal(loaded.test.label, original.test.label)
    same = loaded.train.image == np.rint(original.train.image * (255 / 16))
    assert abs((~same).mean() - mutated.RATE * 255 / 256) < 0.01
