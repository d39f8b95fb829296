"""configs/study_features_mnist.py on 20,000 photographs of CIFAR-10, mirrored too.

    python -m vae_jax.data prepare cifar10_20k --data_dir=~/data
    python -m vae_jax.tools.study --config=configs/study_features_cifar10.py --data_dir=~/data \
        --workdir=runs/study_features_cifar10

No figures of it are published yet.
"""

from configs import study_features_mnist
from vae_jax.tools.study import Study


def get_study() -> Study:
    return study_features_mnist.images("cifar10_20k", (100, 1000, 0), flip=True)
