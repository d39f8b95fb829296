"""A Hamiltonian VAE (Caterini et al. 2018, arXiv:1805.11328) on MNIST binarised at each step.

    python train.py --config=configs/hvae_mnist.py --data_dir=~/data --workdir=runs/hvae_mnist

Five leapfrog steps with fixed step size and tempering. The same nets without them are
``--config.model.name=vae``, and with a richer q(z|x) also ``--config.posterior.name=low_rank``
(full, iaf, planar, radial).
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.steps = 10_000
    c.batch = 100
    c.steps_per_call = 20
    c.unroll = False
    c.latent = 16
    c.bias_from_data = True
    c.encoder = config.call("encoder", "mlp", widths=(200, 200), activation="tanh")
    c.decoder = config.call("decoder", "mlp", widths=(200, 200), activation="tanh")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.model = config.call("model", "hamiltonian")
    c.optim.ema = 0.999
    c.eval.every = 1000
    c.log_every = 500
    c.eval.iw_k = 20
    return c
