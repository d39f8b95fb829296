"""MNIST with 100 labels: the ADGM of Maaløe et al. 2016 (arXiv:1602.05473), hidden layers of
500-500, a and z of 100.

    python train.py --config=configs/adgm_mnist.py --data_dir=~/data --workdir=runs/adgm_mnist

The SDGM is configs/sdgm_mnist.py. Without the paper's batch normalisation, which couples examples.

Not run to its end yet; 3,000 steps (``--config.steps=3000``): results/adgm_mnist.json.
"""

from ml_collections import ConfigDict

from configs import m2_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = m2_mnist.get_config()
    c.latent = 100
    c.encoder = config.call("encoder", "mlp", widths=(500, 500))
    c.decoder = config.call("decoder", "mlp", widths=(500, 500))
    c.classifier = config.call("classifier", "mlp", widths=(500, 500))
    c.model = config.call("model", "adgm")
    c.objective = config.call("objective", "m2", alpha=10.0, labelled=0.002)
    c.optim.lr = 3e-3
    return c
