"""Five dense levels on MNIST binarised at each step: a top-down hierarchy in the manner of the
Ladder VAE.

    python train.py --config=configs/mnist_hier.py --data_dir=~/data --workdir=runs/mnist_hier

Latents of 4, 8, 16, 32 and 64 numbers from the top, as in Sønderby et al. 2016 (arXiv:1602.02282:
81.74 nats), whose nets have batch norm. Here there is none: the levels add to one residual state,
and KL is warmed up over the first tenth of the run. No convolutions: each image costs a fifth of
what it costs in configs/mnist_vdvae.py, and matrix products are what a CPU does best.

Figures, time and device: results/mnist_hier.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.data.validation = 1 / 60
    c.steps = 100_000
    c.batch = 128
    c.steps_per_call = 50
    c.unroll = False
    c.bias_from_data = True
    c.encoder = config.call("encoder", "mlp", widths=(512, 256, 256, 256, 256), activation="silu")
    c.decoder = config.call("decoder", "ladder", latents=(4, 8, 16, 32, 64), width=256, inner=256)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 10_000
    c.optim.lr = 1e-3
    c.optim.warmup = 1000
    c.optim.ema = 0.999
    c.optim.clip = 200.0
    c.eval.every = 5000
    c.log_every = 1000
    c.eval.iw_k = 1000
    return c
