"""The one-layer counterpart of configs/fashion_hier.py: the same residual encoder and likelihood,
one z of 64 dimensions.

    python train.py --config=configs/fashion_residual.py --data_dir=~/data \
        --workdir=runs/fashion_residual

Figures, time and device: results/fashion_residual.json and quality.json.
"""

from ml_collections import ConfigDict

from configs import fashion_hier
from vae_jax import config


def get_config() -> ConfigDict:
    c = fashion_hier.get_config()
    c.latent = 64
    c.decoder = config.call("decoder", "residual", widths=(64,) * 4, depths=(1, 1, 2, 2), patch=2)
    return c
