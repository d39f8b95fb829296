"""The convolutions that are timed beside PyTorch's are the same functions."""

import numpy as np
import pytest


@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_pytorch_computes_the_same_convolution_and_gradients(layout: str) -> None:
    pytest.importorskip("torch")
    from benchmarks import convolution

    layer = convolution.Layer((2, 6, 6, 3), (3, 3, 3, 4), 1)
    generator = np.random.default_rng(0)
    x = generator.standard_normal(layer.input_BxHxWxI, np.float32)
    w = generator.standard_normal(layer.kernel_hxwxIxO, np.float32)
    ours = convolution.parts_of_jax(layer, x, w)
    peers = convolution.parts_of_torch(layer, x, w, layout)
    y_BxHxWxO = np.asarray(ours["forward"]())
    np.testing.assert_allclose(y_BxHxWxO, peers["forward"]().permute(0, 2, 3, 1), atol=1e-5)
    dx = peers["input_gradient"]()[0].permute(0, 2, 3, 1)
    np.testing.assert_allclose(ours["input_gradient"](), dx, atol=1e-5)
    dw = peers["kernel_gradient"]()[1].permute(2, 3, 1, 0)
    np.testing.assert_allclose(ours["kernel_gradient"](), dw, atol=1e-4)
