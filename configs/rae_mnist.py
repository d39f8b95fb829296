"""RAE-L2 (Ghosh et al. 2020, arXiv:1903.12436) on MNIST, for a density fitted afterwards.

    python train.py --config=configs/rae_mnist.py --data_dir=~/data --workdir=runs/rae_mnist
    python -m vae_jax.tools.density --workdir=runs/rae_mnist --features=runs/mnist_cnn

The same nets as a VAE: ``--config.objective.name=elbo``. ``configs/mnist_cnn.py`` trains the run
whose features measure the distances.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.steps = 20_000
    c.batch = 100
    c.latent = 16
    c.encoder = config.call("encoder", "conv")
    c.decoder = config.call("decoder", "conv")
    c.objective = config.call("objective", "rae")
    c.eval.every = 2000
    c.log_every = 500
    c.eval.iw_k = 1
    return c
