"""Tiny likelihoods and images that the tests of likelihoods share."""

import dataclasses
import itertools
from typing import Any

import jax
import numpy as np

from vae_jax import distributions as de

KEY = jax.random.key(0)
BINARY = ("bernoulli",)
LEVELS = ("discretized_logistic", "discretized_mix_logistic", "categorical")
UNIT = ("continuous_bernoulli", "gaussian", "gaussian_learned", "gaussian_optimal")


def make(name: str, levels: int = 256, **kwargs: Any) -> de.Likelihood:
    """One program for each function and shape: op by op, compiling would take ten times as long."""
    likelihood = de.LIKELIHOODS[name](levels=levels, **kwargs)
    functions = {}
    for part in ("log_prob", "mean", "sample"):
        functions[part] = jax.jit(getattr(likelihood, part))
    return dataclasses.replace(likelihood, **functions)


def random_out(
    likelihood: de.Likelihood, n: int, c: int, scale: float = 1.0, seed: int = 0
) -> np.ndarray:
    """Random decoder outputs out_nx1x1xO."""
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((n, 1, 1, likelihood.outputs(c)))).astype(np.float32)


def all_images(levels: int, c: int) -> np.ndarray:
    """Every image of one pixel: x_(levels^c)x1x1x1xc, with the batch axis after the first."""
    x = list(itertools.product(range(levels), repeat=c))
    return np.array(x, np.float32).reshape(-1, 1, 1, 1, c) / (levels - 1)
