"""MNIST with 100 labels: the SDGM of Maaløe et al. 2016 (arXiv:1602.05473), with the nets of
configs/adgm_mnist.py.

    python train.py --config=configs/sdgm_mnist.py --data_dir=~/data --workdir=runs/sdgm_mnist

Not run to its end yet; 3,000 steps (``--config.steps=3000``): results/sdgm_mnist.json.
"""

from ml_collections import ConfigDict

from configs import adgm_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = adgm_mnist.get_config()
    c.model = config.call("model", "sdgm")
    c.objective = config.call("objective", "m2", alpha=10.0, labelled=0.002)
    return c
