"""The net of vamp_mnist.py under a standard normal prior (Tomczak & Welling 2018, table 1: 88.56
nats).

    python train.py --config=configs/normal_mnist.py --data_dir=~/data --workdir=runs/normal_mnist \
        --config.steps=50000 --config.warmup.steps=12500 --config.optim.lr=1e-3 \
        --config.optim.schedule=cosine \
        --config.eval.every=2500

Figures, time and device of these 100 epochs: results/normal_mnist.json.
"""

from ml_collections import ConfigDict

from configs import vamp_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = vamp_mnist.get_config()
    c.prior = config.call("prior", "normal")
    return c
