"""A VDVAE on CIFAR-10 (Child 2021, arXiv:2011.10650: 2.87 bits/dim with 39 million parameters and
45 levels).

    python train.py --config=configs/cifar10_vdvae.py --data_dir=~/data --workdir=runs/cifar10_vdvae

21 levels on grids from 1x1 to 32x32, bfloat16 nets, for one GPU: the levels of a grid are one
scan. On a CPU want --config.decoder.scan=False --config.dtype=float32. Memory for time:
--config.remat=full (block by block), --config.accumulate=4.

Not run to its end yet: no file in results/.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "cifar10"
    c.data.flip = True
    c.steps = 300_000
    c.batch = 128
    c.dtype = "bfloat16"
    c.encoder = config.call(
        "encoder",
        "residual",
        widths=(256,) * 6,
        depths=(4, 4, 4, 2, 2, 1),
        bottleneck=4,
    )
    c.decoder = config.call(
        "decoder",
        "vdvae",
        widths=(256,) * 6,
        depths=(1, 2, 3, 5, 5, 5),
        bottleneck=4,
        scan=True,
    )
    c.likelihood = config.call("likelihood", "discretized_mix_logistic", components=10)
    c.objective = config.call("objective", "elbo")
    c.optim.lr = 4e-4
    c.optim.warmup = 1000
    c.optim.ema = 0.9998
    c.optim.b2 = 0.9
    c.optim.weight_decay = 0.01
    # VDVAE's 200 and 400 are of a loss in nats per dimension, of which an image has 3,072.
    c.optim.clip = 200.0 * 3072
    c.optim.skip = 50
    c.optim.skip_above = 400.0 * 3072
    c.eval.every = 5000
    c.log_every = 100
    c.eval.batch = 250
    c.eval.iw_k = 20
    return c
