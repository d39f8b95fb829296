"""Objectives: (model, params, batch, keys, *, its own numbers) → Terms, one number per example.

``keys`` has a key for each example, shape B. Noise of your own is drawn with them, example by
example, such as ``jax.vmap(lambda key: jax.random.gamma(key, 2.0))(keys)``; then no two examples
share it, on any number of devices.

``batch`` holds image_BxHxWxC in [0, 1]; label_B where the data has labels; n, the size of the
training set; step, None in evaluation; and there mask_B. With a label budget or a labelled stream
(``config.data.labels``, ``labelled_batch``) it also holds ``labelled``, such a batch of examples
that have labels: see ``labels.examples``. Everything is in nats, summed over pixels and latent
dimensions, one number per example: the mean over the batch is
:func:`vae_jax.train.step.masked_mean`'s, once. (Objectives on the *aggregate* posterior also need
statistics over the batch inside their equation, and say so.)

The loss and the bound are two things: ``loss`` is minimised; ``elbo`` is always the bound with
beta = 1 and every other weight at its neutral value.

A new objective is a function like these and its line in ``OBJECTIVES``; or, with no line at all,
``--config.objective.name=my_file:my_loss``. Its keyword arguments are the fields of
``config.objective``. One that learns something of its own (a multiplier, a discriminator) has an
attribute ``init(key, model) → params``, found in ``params["objective"]``. One that learns p(x|y,z)
says ``needs = "labels"``, and wants such a ``model.name``; one of scenes, with their boxes in
``batch["objects"]``, says ``needs = "objects"``; one whose equation needs the whole batch at once,
``needs = "batch"``.
"""

from vae_jax.objectives.adversarial import adversarial
from vae_jax.objectives.aggregate import beta_tcvae, dip_vae, factor_vae, info_vae
from vae_jax.objectives.air import air, air_rloo
from vae_jax.objectives.contrastive import contrastive
from vae_jax.objectives.detection import detection
from vae_jax.objectives.enumeration import enumerated
from vae_jax.objectives.evidence import capacity, elbo, free_bits, geco
from vae_jax.objectives.labels import cross_entropy, joint, supervised
from vae_jax.objectives.masked import masked
from vae_jax.objectives.multisample import ciwae, iwae, miwae, piwae, renyi, tvo, vr_max
from vae_jax.objectives.perceptual import ms_ssim, perceptual
from vae_jax.objectives.rae import rae, rae_gp
from vae_jax.objectives.semi import m2
from vae_jax.objectives.terms import Terms, sample_k
from vae_jax.objectives.vade import vade
from vae_jax.objectives.vq import vq

__all__ = ["OBJECTIVES", "Terms", "cross_entropy", "sample_k"]

OBJECTIVES = {
    f.__name__: f
    for f in (
        *(elbo, free_bits, capacity, geco),
        *(iwae, miwae, ciwae, piwae, renyi, vr_max, tvo),
        *(beta_tcvae, factor_vae, dip_vae, info_vae),
        *(joint, supervised, m2),
        *(enumerated, rae, rae_gp, vq, vade),
        *(masked, contrastive),
        *(perceptual, ms_ssim, adversarial),
        *(air, air_rloo, detection),
    )
}
