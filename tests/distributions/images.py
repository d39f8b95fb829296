"""Tiny likelihoods and images that the tests of likelihoods share."""

import dataclasses
import itertools

import jax
import numpy as np

from vae_jax import distributions as de

KEY = jax.random.key(0)
BINARY = ("bernoulli",)
LEVELS = ("discretized_logistic", "discretized_mix_logistic", "categorical")
UNIT = ("continuous_bernoulli", "gaussian", "gaussian_learned", "gaussian_optimal")


def make(name, levels=256, **kwargs):
    """One program for each function and shape: op by op, compiling would take ten times as long."""
    likelihood = de.LIKELIHOODS[name](levels=levels, **kwargs)
    functions = {
        part: jax.jit(getattr(likelihood, part)) for part in ("log_prob", "mean", "sample")
    }
    return dataclasses.replace(likelihood, **functions)


def random_out(likelihood, n, c, scale=1.0, seed=0):
    """Random decoder outputs out_nx1x1xO."""
    rng = np.random.default_rng(seed)
    return (scale * rng.standard_normal((n, 1, 1, likelihood.outputs(c)))).astype(np.float32)


def all_images(levels, c):
    """Every image of one pixel: x_(levels^c)x1x1x1xc, with the batch axis after the first."""
    x = list(itertools.product(range(levels), repeat=c))
    return np.array(x, np.float32).reshape(-1, 1, 1, 1, c) / (levels - 1)
