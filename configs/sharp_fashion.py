"""One convolutional VAE on Fashion-MNIST in 256 grey levels, for losses that make it sharper.

    python train.py --config=configs/sharp_fashion.py --data_dir=~/data --workdir=runs/sharp_elbo
    python train.py --config=configs/sharp_fashion.py --data_dir=~/data \
        --workdir=runs/sharp_perceptual --config.objective.name=perceptual \
        --config.objective.features=runs/fashion_cnn_1 --config.objective.weight=1000
    python train.py --config=configs/sharp_fashion.py --data_dir=~/data \
        --workdir=runs/sharp_ms_ssim --config.objective.name=ms_ssim \
        --config.objective.weight=1000
    python train.py --config=configs/sharp_fashion.py --data_dir=~/data \
        --workdir=runs/sharp_adversarial --config.objective.name=adversarial \
        --config.eval.select=elbo

``runs/fashion_cnn_1`` is configs/fashion_cnn.py with ``--config.seed=1``, so that the net that the
loss looks through is not the one that measures (runs/fashion_cnn).

Figures: results/sharper.json, and docs/sharper.md.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "fashion_mnist"
    c.steps = 4000
    c.batch = 64
    c.latent = 32
    c.encoder = config.call("encoder", "conv")
    c.decoder = config.call("decoder", "conv")
    c.optim.lr = 2e-3
    c.optim.warmup = 200
    c.optim.ema = 0.999
    c.eval.every = 1000
    c.log_every = 200
    c.eval.iw_k = 10
    return c
