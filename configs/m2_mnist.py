"""MNIST with 100 labels: M2 of Kingma et al. 2014 (arXiv:1406.5298), one hidden layer of 500
units, z50.

    python train.py --config=configs/m2_mnist.py --data_dir=~/data --workdir=runs/m2_mnist

100 labels in all, of which 10 are validation's; --config.data.labels=1000 has ten times as many of
both, and wants --config.objective.labelled=0.02. The checkpoint whose bound on the validation
images, labels not looked at, is best is the one evaluated. With every label
(--config.data.labels=0 --config.data.labelled_batch=0 --config.objective.labelled=1) it is a
generative classifier, by Bayes' rule in ``vae_jax.tools.study``.

Nets, softplus and lambda = labels / images are the paper's. Its weight of the cross-entropy is 0.1
beside a mean of U; here it is 10. Its learning rate is 3e-4, for 3,000 epochs. Here it begins 40
times as high, under a cosine and with the gradient's norm clipped: of 1e-3 to 25e-3, each for
3,000 steps with 1,000 labels and judged by the labels of all validation images, 12e-3 was best by
far. The faster it goes, the less of the image has z by the time that y is used.

Three seeds of 10,000 steps, with 100, 1,000 and (20,000 at 3e-3) all labels: m2 in
results/study_mnist.json; with 100 by the number of steps, this config's 50,000 too:
results/study_m2.json."""

from ml_collections import ConfigDict

from vae_jax import config


def get_config() -> ConfigDict:
    c = config.default()
    c.data.name = "mnist"
    c.data.binarize = "dynamic"
    c.data.labels = 100
    c.data.labelled_batch = 100
    c.steps = 50_000
    c.batch = 100
    c.steps_per_call = 50
    c.unroll = False
    c.latent = 50
    c.encoder = config.call("encoder", "mlp", widths=(500,), activation="softplus")
    c.decoder = config.call("decoder", "mlp", widths=(500,), activation="softplus")
    c.classifier = config.call("classifier", "mlp")
    c.likelihood = config.call("likelihood", "bernoulli")
    c.model = config.call("model", "m2")
    c.objective = config.call("objective", "m2", alpha=10.0, labelled=0.002)
    c.optim.name = "adam"
    c.optim.lr = 12e-3
    c.optim.clip = 200.0
    c.optim.ema = 0.999
    c.bias_from_data = True
    c.eval.every = 5000
    c.log_every = 500
    c.eval.select = "elbo"
    c.eval.iw_k = 20
    return c
