"""A small VDVAE on the 20,000 images of cifar10_20k, for two CPU cores: configs/cifar10_vdvae.py's
layout on grids of 2x2, 4x4, 8x8 and 16x16 cells, of which one holds 2x2 pixels.

    python train.py --config=configs/cifar10_vdvae_20k.py --data_dir=~/data \
        --workdir=runs/cifar10_vdvae_20k

Figures, time and device: results/cifar10_vdvae_20k.json.
"""

from ml_collections import ConfigDict

from configs import cifar10_vdvae
from vae_jax import config


def get_config() -> ConfigDict:
    c = cifar10_vdvae.get_config()
    c.data.name = "cifar10_20k"
    c.steps = 5_000
    c.batch = 32
    c.dtype = "float32"
    c.encoder = config.call("encoder", "residual", widths=(64,) * 4, depths=(1, 2, 1, 1), patch=2)
    c.decoder = config.call(
        "decoder",
        "vdvae",
        widths=(64,) * 4,
        depths=(1, 2, 2, 2),
        channels=8,
        patch=2,
    )
    c.likelihood = config.call("likelihood", "discretized_mix_logistic", components=5)
    c.optim.lr = 3e-3
    c.optim.warmup = 500
    c.optim.ema = 0.999
    c.optim.b2 = 0.95
    c.optim.clip = 40_000.0
    c.optim.skip_above = 400_000.0  # of gradients with a norm of about 20,000
    c.eval.every = 500
    c.log_every = 50
    c.eval.iw_k = 10
    return c
