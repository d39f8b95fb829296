"""Models are values: tuples of pure functions of parameters, built from nets or from models."""

from vae_jax.models.auxiliary import auxiliary
from vae_jax.models.build import MODELS, build, build_for
from vae_jax.models.codebook import build_vq, with_codebook
from vae_jax.models.core import Draw, Model, Spec, scale_gradient
from vae_jax.models.hamiltonian import build_hamiltonian, hamiltonian
from vae_jax.models.hierarchy import hierarchy
from vae_jax.models.labels import per_class, with_labels
from vae_jax.models.vae import Parts, vae

__all__ = [
    "MODELS",
    "Draw",
    "Model",
    "Parts",
    "Spec",
    "auxiliary",
    "build",
    "build_for",
    "hamiltonian",
    "hierarchy",
    "per_class",
    "scale_gradient",
    "vae",
    "with_codebook",
    "with_labels",
]

MODELS["vq"] = build_vq
MODELS["hamiltonian"] = build_hamiltonian
