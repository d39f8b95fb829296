"""vae_jax: variational autoencoders for image classification and recognition, in JAX."""

__version__ = "0.1.0"
