"""configs/study_features_mnist.py on Fashion-MNIST, images mirrored too.

    python -m vae_jax.tools.study --config=configs/study_features_fashion.py --data_dir=~/data \
        --workdir=runs/study_features_fashion

No figures of it are published yet.
"""

from configs import study_features_mnist
from vae_jax.tools.study import Study


def get_study() -> Study:
    return study_features_mnist.images("fashion_mnist", (100, 1000, 0), flip=True)
