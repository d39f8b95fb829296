"""Textures: pure functions of (seed, index) in the format of any data set."""

import numpy as np
import pytest

from vae_jax.data.textures import KINDS, textures


@pytest.mark.parametrize(("shape", "levels"), [((8, 8, 1), 17), ((28, 20, 3), 256)])
def test_textures_have_the_format_that_is_asked_for(shape, levels):
    image = textures(8, shape, levels)
    assert image.shape == (8, *shape) and image.dtype == np.uint8
    top = levels - 1
    assert image.max() <= top
    for one in image.reshape(8, -1, shape[2]):
        spread = one.max(0) - one.min(0).astype(int)
        assert (spread >= 0.3 * top).all(), "a pattern, not one grey"


def test_an_image_depends_on_seed_and_index_only():
    few = textures(3, (12, 12, 1), 256, seed=5)
    many = textures(9, (12, 12, 1), 256, seed=5)
    np.testing.assert_array_equal(few, many[:3])
    assert (textures(3, (12, 12, 1), 256, seed=6) != few).any((1, 2, 3)).all()
    again = len(KINDS)
    assert (many[0] != many[again]).any(), "of one kind, and another image"
