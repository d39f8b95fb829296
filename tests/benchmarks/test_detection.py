"""The detector in PyTorch is the same function as ours."""

import jax
import numpy as np
import pytest

from benchmarks import cells, detection
from vae_jax import config, data, models
from vae_jax.config import UserError
from vae_jax.train import program


def small():
    """A convolutional detector on scenes of digits, with a kernel as detect_mnist has it."""
    c = config.load("configs/detect_mnist.py")
    c.data.name = "scenes:digits+boxes+size=24+train=20+validation=2+test=2"
    c.encoder = config.call("encoder", "conv", widths=(6, 8), strides=(2, 2), dense=4)
    c.model.grid = 6
    c.model.widths = (5,)
    c.objective.focus = 1.5
    c.objective.box = 2.0
    return c


def moved(params):
    """Parameters whose biases are off zero, which would hide a wrong order."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda a: np.float32(a + 0.05 * rng.standard_normal(a.shape)), params)


def test_torch_computes_the_same_loss_and_gradients():
    pytest.importorskip("torch")
    from benchmarks.peers import torch_detector

    c = small()
    dataset = data.load(c.data)
    params = moved(program.simple(models.build_for(c, dataset).init)(jax.random.key(0)))
    peer = torch_detector.Peer(c, dataset, params)
    gaps = detection.agreement(c, dataset, params, peer)
    assert max(gaps.values()) < cells.AGREE
    assert {"loss", "encoder/Conv_1/kernel", "detector/Conv_1/bias"} <= set(gaps)
    wrong = jax.tree.map(lambda a: 1.001 * a, params)
    with pytest.raises(UserError, match="the peer is another function"):
        detection.agreement(c, dataset, wrong, peer)


def test_windows_take_turns_and_the_ratio_is_of_rounds():
    counts = {"ours": 0, "torch_eager": 0}

    def lane(name):
        def call():
            counts[name] += 1

        return call, 8

    lanes = {name: lane(name) for name in counts}
    figures = detection.compare(lanes, 3, 0.001)
    assert min(counts.values()) >= 3
    assert figures["speed"]["n"] == 3 and figures["ours_images_per_s"]["value"] > 0
