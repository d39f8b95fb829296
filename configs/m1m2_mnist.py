"""MNIST with 100 labels: M1+M2 of Kingma et al. 2014 (arXiv:1406.5298), M2 on the codes of a
trained M1.

    python train.py --config=configs/m1_mnist.py --data_dir=~/data --workdir=runs/m1_mnist
    python train.py --config=configs/m1m2_mnist.py --data_dir=~/data --workdir=runs/m1m2_mnist

The second command takes M1's encoder and decoder from the first's folder (init_from) and leaves
them as they are. M2's data are samples of q(z1|x), under a Gaussian p(z1|y,z2); its nets have one
hidden layer of 300.

z2 has 10 dimensions where the paper has 50: with less room beside it the label says more, and
q(y|z1) learns sooner (in short runs of one seed, judged by the labels of all validation images).

Three seeds of it: results/study_m1m2.json (configs/study_m1m2.py); on an M1 of half the steps:
m1m2.100 in results/study_mnist.json."""

from ml_collections import ConfigDict

from configs import m1_mnist
from vae_jax import config


def get_config() -> ConfigDict:
    c = m1_mnist.get_config()
    c.init_from = "runs/m1_mnist"
    c.bias_from_data = False
    c.data.labels = 100
    c.data.labelled_batch = 100
    c.steps = 60_000
    c.latent = 10
    c.auxiliary = 50
    c.classifier = config.call("classifier", "mlp", widths=(300,), activation="softplus")
    c.model = config.call("model", "m1m2")
    c.objective = config.call("objective", "m2", alpha=10.0, labelled=0.002)
    c.optim.name = "adam"
    c.optim.lr = 4e-3
    c.optim.warmup = 0
    c.eval.select = "elbo"
    c.eval.iw_k = 20
    return c
