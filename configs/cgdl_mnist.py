"""Open-set recognition on MNIST in the manner of CGDL (Sun et al. 2020, arXiv:2003.08823): a ladder
of latents whose top has a Gaussian for each class, and a classifier, learnt together.

    python train.py --config=configs/cgdl_mnist.py --data_dir=~/data --workdir=runs/cgdl_mnist
    python -m vae_jax.evaluate.openset --workdir=runs/cgdl_mnist --noise
    python -m vae_jax.evaluate.openset --config=configs/cgdl_mnist.py --data_dir=~/data \
        --workdir=runs/openset_cgdl

An image is unknown where its code is far from the Gaussian of its class (KL(q(z|x, y) ‖ p(z|y)) at
the predicted y), or its reconstruction error is large. The model is M2 with every label and a
ladder: the label sets p(z|y) of every level. There are four differences to the paper: q(z|x, y) and
the decoder see the label, too; the classifier has a net of its own on x, not on z; variances of
p(z|y) are learnt, not 1; and the weight of KL is 1 from the start. The weight of the cross-entropy,
100, is the authors'.

Not run to its end yet: no file in results/.
"""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.steps = 4000
    c.batch = 128
    c.steps_per_call = 50
    c.unroll = False
    c.bias_from_data = True
    c.encoder = config.call("encoder", "mlp", widths=(512, 256, 128))
    c.decoder = config.call("decoder", "ladder", latents=(16, 32, 64), width=256, inner=128)
    c.classifier = config.call("classifier", "mlp")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.model = config.call("model", "m2")
    c.objective = config.call("objective", "m2", alpha=100.0)
    c.optim.lr = 1e-3
    c.optim.warmup = 200
    c.optim.ema = 0.999
    c.optim.clip = 500.0
    c.eval.every = 2000
    c.log_every = 500
    c.eval.iw_k = 20
    return c
