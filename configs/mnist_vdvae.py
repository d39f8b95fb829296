"""Six convolutional levels on MNIST binarised at each step, for a GPU.

    python train.py --config=configs/mnist_vdvae.py --data_dir=~/data --workdir=runs/mnist_vdvae

Grids of 2x2, 4x4, 7x7 and 14x14 cells, a cell of the finest being 2x2 pixels; blocks as in VDVAE (Child 2021,
arXiv:2011.10650). configs/mnist_hier.py is the dense one, for a CPU.

Not run to its end yet: no file in results/.
"""

from vae_jax import config


def get_config():
    c = config.default()
    c.data.name, c.data.binarize, c.data.validation = "mnist", "dynamic", 1 / 60
    c.steps, c.batch = 40_000, 100
    c.bias_from_data = True
    c.encoder = config.call("encoder", "residual", widths=(48, 64, 64, 64), depths=(2, 2, 1, 1), patch=2)
    c.decoder = config.call("decoder", "vdvae", widths=(64, 64, 64, 48), depths=(1, 2, 2, 1), channels=8, patch=2)
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 4000
    c.optim.lr, c.optim.warmup, c.optim.ema, c.optim.clip = 1.5e-3, 500, 0.999, 200.0
    c.optim.skip, c.optim.skip_above = 20, 5000.0
    c.eval.every, c.log_every, c.eval.iw_k = 2000, 200, 1000
    return c
