"""Six convolutional levels on MNIST binarised at each step, for a GPU.

    python train.py --config=configs/mnist_vdvae.py --data_dir=~/data --workdir=runs/mnist_vdvae

Grids of 2x2, 4x4, 7x7 and 14x14 cells, a cell of the finest being 2x2 pixels; blocks as in VDVAE
(Child 2021, arXiv:2011.10650). configs/mnist_hier.py is the dense one, for a CPU.

Not run to its end yet: no file in results/.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.data.validation = 1 / 60
    c.steps = 40_000
    c.batch = 100
    c.bias_from_data = True
    c.encoder = config.call(
        "encoder",
        "residual",
        widths=(48, 64, 64, 64),
        depths=(2, 2, 1, 1),
        patch=2,
    )
    c.decoder = config.call(
        "decoder",
        "vdvae",
        widths=(64, 64, 64, 48),
        depths=(1, 2, 2, 1),
        channels=8,
        patch=2,
    )
    c.likelihood = config.call("likelihood", "bernoulli")
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 4000
    c.optim.lr = 1.5e-3
    c.optim.warmup = 500
    c.optim.ema = 0.999
    c.optim.clip = 200.0
    c.optim.skip = 20
    c.optim.skip_above = 5000.0
    c.eval.every = 2000
    c.log_every = 200
    c.eval.iw_k = 1000
    return c
