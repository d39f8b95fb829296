"""σ-VAE on Fashion-MNIST (Rybkin et al. 2021, arXiv:2006.13202): a Gaussian whose variance is the
best one.

    python train.py --config=configs/sigma_fashion.py --data_dir=~/data --workdir=runs/sigma_fashion
    python train.py --config=configs/unit_fashion.py --data_dir=~/data --workdir=runs/unit_fashion
    python -m benchmarks.sigma --workdir=runs/sigma_fashion --unit=runs/unit_fashion \
        --out=results/sigma.json

configs/unit_fashion.py has the variance 1 of a plain squared error. Figures, time and device:
results/sigma.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "fashion_mnist"
    c.steps = 10_000
    c.batch = 128
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 32
    c.encoder = config.call("encoder", "mlp", widths=(400, 400))
    c.decoder = config.call("decoder", "mlp", widths=(400, 400))
    c.likelihood = config.call("likelihood", "gaussian_optimal")
    c.objective = config.call("objective", "elbo")
    c.optim.warmup = 200
    c.optim.clip = 1000.0
    c.optim.ema = 0.999
    c.eval.every = 1000
    c.log_every = 250
    c.eval.iw_k = 10
    return c
