"""What the latent space knows: nearest neighbours and active units."""

import numpy as np

NEIGHBOURS = 60_000  # training images that neighbours are looked for among, at most


def knn_accuracy(train_NxD, train_label_N, test_MxD, test_label_M, k=5):
    """Share of test examples whose ``k`` nearest training latents (Euclidean) vote for their class.

    Evaluation gives it :data:`NEIGHBOURS` training images at most, an even stride apart.
    """
    from sklearn.neighbors import KNeighborsClassifier

    knn = KNeighborsClassifier(min(k, len(train_NxD)), algorithm="brute", n_jobs=1).fit(train_NxD, train_label_N)
    return float((knn.predict(test_MxD) == test_label_M).mean())


def active_units(mu_NxD, threshold=0.01):
    """How many latent dimensions have Var_x(E[z|x]) > ``threshold`` (Burda et al. 2016, section 5.1)."""
    return int((np.var(mu_NxD, axis=0) > threshold).sum())
