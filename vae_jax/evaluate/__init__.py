"""Evaluation of a trained model: each figure one pass, sums over sums, every example exactly once."""

from vae_jax.evaluate.run import evaluate

__all__ = ["evaluate"]
