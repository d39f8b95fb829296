"""IWAE with 5 samples on the net, data and schedule of vae_mnist.py (Burda et al. 2016, table 1:
85.54).

    python train.py --config=configs/iwae_mnist.py --data_dir=~/data --workdir=runs/iwae_mnist \
        --config.steps=1180000 --config.optim.schedule=cosine

Figures, time and device of these 400 epochs: results/iwae_mnist.json.
"""

from ml_collections import ConfigDict

from configs import vae_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = vae_mnist.get_config()
    c.objective = config.call("objective", "iwae", samples=5)
    return c
