"""σ-VAE on Fashion-MNIST (Rybkin et al. 2021, arXiv:2006.13202): a Gaussian whose variance is the best one.

    python train.py --config=configs/sigma_fashion.py --data_dir=~/data --workdir=runs/sigma_fashion
    python train.py --config=configs/unit_fashion.py --data_dir=~/data --workdir=runs/unit_fashion
    python -m benchmarks.measure sigma --workdir=runs/sigma_fashion --twin=runs/unit_fashion --out=results/sigma.json

The twin has the variance 1 of a plain squared error. Figures, time and device: results/sigma.json.
"""

from vae_jax import config


def get_config():
    c = config.default()
    c.data.name = "fashion_mnist"
    c.steps, c.batch, c.steps_per_call, c.unroll = 10_000, 128, 50, False
    c.latent = 32
    c.encoder = config.call("encoder", "mlp", widths=(400, 400))
    c.decoder = config.call("decoder", "mlp", widths=(400, 400))
    c.likelihood = config.call("likelihood", "gaussian_optimal")
    c.objective = config.call("objective", "elbo")
    c.optim.warmup, c.optim.clip, c.optim.ema = 200, 1000.0, 0.999
    c.eval.every, c.log_every, c.eval.iw_k = 1000, 250, 10
    return c
