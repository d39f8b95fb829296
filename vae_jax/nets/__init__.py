"""Pure linen modules: image → features, z → p(x|z)'s parameters, z → logits.

They contain no losses and draw no samples.

An encoder maps x_BxHxWxC to features_BxF; a decoder has ``shape = (H, W, O)`` and maps z_BxD to
out_BxHxWxO; a classifier has ``outputs`` and maps z_BxD to logits_BxY. Their other fields are the
fields of the config's section of that name.

Encoders and decoders take a one-hot label y, BxY, or one Y for all. It enters the first dense layer
(in a convolutional encoder, the one after the convolutions) as a sum: W [h, y] + b is W_h h + b,
computed once for all the labels that ``vmap`` runs through, plus a row of W_y.

The decoder of a hierarchy (``ladder``, ``vdvae``; see ``topdown``) maps an encoder's features and
the inputs of its levels to p(x|z)'s parameters; its encoder returns the features of every layer
(``mlp``) or grid (``residual``).

Forward mode on a CPU needs the plain form of the operations: see :mod:`vae_jax.ops`.
"""

from vae_jax.nets import autoregressive, categorical, hyperbolic, posteriors, quantised
from vae_jax.nets.conv import ConvDecoder, ConvEncoder
from vae_jax.nets.heads import (
    FixedNormal,
    FullGaussian,
    Gaussian,
    InverseAutoregressive,
    Labelled,
    Mixture,
    RealNVP,
    Vamp,
)
from vae_jax.nets.mlp import MLPClassifier, MLPDecoder, MLPEncoder
from vae_jax.nets.residual import ResidualDecoder, ResidualEncoder
from vae_jax.nets.sphere import UniformSphere, VonMisesFisher
from vae_jax.nets.topdown import VDVAE, Ladder
from vae_jax.nets.vit import ViTDecoder, ViTEncoder

ENCODERS = {"mlp": MLPEncoder, "conv": ConvEncoder, "residual": ResidualEncoder, "vit": ViTEncoder}
DECODERS = {
    "none": None,
    "mlp": MLPDecoder,
    "conv": ConvDecoder,
    "residual": ResidualDecoder,
    "vit": ViTDecoder,
    "ladder": Ladder,
    "vdvae": VDVAE,
}
CONVOLUTIONAL = {"conv", "residual", "vdvae"}  # slow within a loop on CPU
CLASSIFIERS = {
    "none": None,
    "mlp": MLPClassifier,
    "bayes": None,
}  # bayes: by the prior, see Labelled
# The parts of a model in a fixed order: each has its own key of initialisation.
PARTS = ("classifier", "decoder", "encoder", "posterior", "prior", "trunk")

POSTERIORS = {"gaussian": Gaussian, "full": FullGaussian, "iaf": InverseAutoregressive}
POSTERIORS |= {"von_mises_fisher": VonMisesFisher}
PRIORS = {
    "normal": FixedNormal,
    "mixture": Mixture,
    "labelled": Labelled,
    "vamp": Vamp,
    "realnvp": RealNVP,
    "sphere": UniformSphere,
}
POSTERIORS |= posteriors.POSTERIORS
POSTERIORS |= categorical.POSTERIORS | quantised.POSTERIORS | hyperbolic.POSTERIORS
PRIORS |= categorical.PRIORS | quantised.PRIORS | hyperbolic.PRIORS | autoregressive.PRIORS
