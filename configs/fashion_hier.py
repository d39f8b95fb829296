"""A convolutional hierarchy on Fashion-MNIST in 256 grey levels, with a mixture of discretised
logistics.

    python train.py --config=configs/fashion_hier.py --data_dir=~/data --workdir=runs/fashion_hier
    python -m vae_jax.evaluate.quality --workdir=runs/fashion_hier --features=runs/fashion_cnn

Levels on grids of 2x2, 4x4, 7x7 and 14x14 cells (VDVAE, Child 2021, arXiv:2011.10650); a cell of
the finest holds 2x2 pixels. Sized for one CPU core, on which what counts is the number of steps
and how long they are: small batches and a learning rate fifteen times that paper's. The one-layer
figure beside it is that of configs/fashion_residual.py.

Figures, time and device: results/fashion_hier.json and quality.json.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "fashion_mnist"
    c.data.flip = True
    c.steps = 60_000
    c.batch = 16
    c.encoder = config.call("encoder", "residual", widths=(64,) * 4, depths=(1, 2, 1, 1), patch=2)
    c.decoder = config.call(
        "decoder",
        "vdvae",
        widths=(64,) * 4,
        depths=(1, 1, 2, 2),
        channels=8,
        patch=2,
    )
    c.likelihood = config.call("likelihood", "discretized_mix_logistic", components=5)
    c.objective = config.call("objective", "elbo")
    c.warmup.steps = 1000
    c.optim.lr = 3e-3
    c.optim.warmup = 500
    c.optim.ema = 0.999
    c.optim.clip = 3000.0
    c.optim.b2 = 0.95
    c.optim.skip = 20
    c.optim.skip_above = 40_000.0  # of gradients with a norm of about 1,500
    c.eval.every = 5000
    c.log_every = 500
    c.eval.iw_k = 20
    return c
