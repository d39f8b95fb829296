"""The net of sigma_fashion.py with the variance 1 of a plain squared error; figures:
results/sigma.json."""

from ml_collections import ConfigDict

from configs import sigma_fashion
from vae_jax import config


def get_config() -> ConfigDict:
    c = sigma_fashion.get_config()
    c.likelihood = config.call("likelihood", "gaussian", logvar=0.0)
    return c
