"""Categorical codes (Jang et al. 2017, arXiv:1611.01144) on MNIST binarised at each step.

    python train.py --config=configs/categorical_mnist.py --data_dir=~/data \
        --workdir=runs/categorical_mnist
    python eval.py --workdir=runs/categorical_mnist --tasks=codes

20 variables of 10 codes each, straight-through Gumbel-softmax at temperature 1, the exact KL to a
learned distribution of each variable. With ``--config.posterior.name=concrete
--config.prior.name=concrete`` the codes are relaxed ones (Maddison et al. 2017, arXiv:1611.00712),
whose bound is one on the relaxed model.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.steps = 60_000
    c.batch = 64
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 200
    c.bias_from_data = True
    c.encoder = config.call("encoder", "mlp", widths=(256, 256))
    c.decoder = config.call("decoder", "mlp", widths=(256, 256))
    c.posterior = config.call("posterior", "categorical", codes=10)
    c.prior = config.call("prior", "categorical", codes=10, learn=True)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 10_000
    c.optim.ema = 0.999
    c.eval.every = 5000
    c.log_every = 1000
    c.eval.iw_k = 500
    return c
