"""Evaluation of a trained model: a figure is one pass, sums over sums, every example once."""

from vae_jax.evaluate.run import evaluate

__all__ = ["evaluate"]
