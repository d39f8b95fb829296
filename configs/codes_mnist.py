"""Categorical codes under an autoregressive prior, on MNIST binarised at each step.

    python train.py --config=configs/codes_mnist.py --data_dir=~/data --workdir=runs/codes_mnist
    python eval.py --workdir=runs/codes_mnist --tasks=codes

20 variables of 10 codes each; the prior is a masked MLP in the order of the variables (Germain et
al. 2015, arXiv:1502.03509), trained with the rest. The bound is one on log p(x) of the discrete
model: it counts the binarised pixels under the decoder and the codes under the prior.

configs/codes_fsq_mnist.py has the same prior over codes of a grid, configs/codes_gaussian_mnist.py
is the Gaussian VAE of as many parameters. Many of the prior's are always zero: its masks leave out
about half of them.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.steps = 15_000
    c.batch = 128
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 200
    c.bias_from_data = True
    c.encoder = config.call("encoder", "mlp", widths=(256, 256))
    c.decoder = config.call("decoder", "mlp", widths=(256, 256))
    c.posterior = config.call("posterior", "categorical", codes=10)
    c.prior = config.call("prior", "autoregressive", codes=10, hidden=(512,))
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 3000
    c.optim.ema = 0.999
    c.eval.every = 2500
    c.log_every = 1000
    c.eval.select = "elbo"
    c.eval.iw_k = 100
    return c
