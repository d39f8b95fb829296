"""A small VDVAE on the 20,000 images of cifar10_20k, for two CPU cores: configs/cifar10_vdvae.py's layout on grids of
2x2, 4x4, 8x8 and 16x16 cells, of which one holds 2x2 pixels.

    python train.py --config=configs/cifar10_vdvae_20k.py --data_dir=~/data --workdir=runs/cifar10_vdvae_20k

Figures, time and device: results/cifar10_vdvae_20k.json.
"""

from configs import cifar10_vdvae
from vae_jax import config


def get_config():
    c = cifar10_vdvae.get_config()
    c.data.name = "cifar10_20k"
    c.steps, c.batch, c.dtype = 5_000, 32, "float32"
    c.encoder = config.call("encoder", "residual", widths=(64,) * 4, depths=(1, 2, 1, 1), patch=2)
    c.decoder = config.call("decoder", "vdvae", widths=(64,) * 4, depths=(1, 2, 2, 2), channels=8, patch=2)
    c.likelihood = config.call("likelihood", "discretized_mix_logistic", components=5)
    c.optim.lr, c.optim.warmup, c.optim.ema, c.optim.b2 = 3e-3, 500, 0.999, 0.95
    c.optim.clip, c.optim.skip_above = 40_000.0, 400_000.0  # of gradients with a norm of about 20,000
    c.eval.every, c.log_every, c.eval.iw_k = 500, 50, 10
    return c
