"""A smaller matrix than configs/study_mnist.py, on Fashion-MNIST; the same nets and steps.

    python -m vae_jax.study --config=configs/study_fashion.py --data_dir=~/data --workdir=runs/study_fashion

Not run to its end yet: no file in results/.
"""

from configs import study_mnist

METHODS = ("cnn", "pixels_knn", "pixels_logistic", "m1_logistic", "m1_svm", "m1_knn", "joint", "m2", "m1m2")


def fashion(make):
    def config(labels):
        c = make(labels)
        c.data.name = "fashion_mnist"
        return c

    return config


def get_study():
    s = study_mnist.study(budgets=(100, 0))
    runs = {name: run._replace(config=fashion(run.config)) for name, run in s.runs.items()}
    return s._replace(title="Fashion-MNIST", runs=runs, methods={name: s.methods[name] for name in METHODS})
