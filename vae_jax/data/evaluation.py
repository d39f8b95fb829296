"""What evaluation shows a model: every example of a split once, in batches of equal shapes."""

import functools

import numpy as np

from vae_jax import data
from vae_jax.data.batches import Inputs
from vae_jax.mesh import rules as sharding


def inputs(c, levels):
    """to_x(batch) → x_BxHxWxC in [0, 1] as bounds are asked of it: binary where the model is one of
    binary images.
    """
    return functools.partial(_to_input, Inputs(levels, c.data.binarize))


def seen(c, levels):
    """to_x(batch) → x_BxHxWxC in [0, 1] as codes and classes are read from it.

    Where training draws binary images anew at each step (``data.binarize=dynamic``), this is their
    mean, the grey image itself: one more draw is noise that training taught the nets to see
    through, and it hides what the image says.
    """
    if c.data.binarize != "dynamic":
        return inputs(c, levels)
    return functools.partial(_to_input, Inputs(levels))


def _to_input(how, batch):
    return data.to_input(batch["image"], batch["id"], None, how=how)


def batches(split, size, mesh, every=1):
    """({'image', 'id', 'mask', 'label' where there are labels}, real count) of equal shapes.

    Each ``every``-th example of the split exactly once, its id its place in the split; padding is
    masked.
    """
    n = -(-len(split.image) // every)
    size = -(-min(size, n) // sharding.ways(mesh)) * sharding.ways(mesh)
    for index, mask in data.eval_batches(n, size):
        index = index * every
        batch = {"image": np.asarray(split.image[index]), "id": index, "mask": mask}
        if split.objects is not None:
            batch["objects"] = split.objects[index]
        yield (
            batch if split.label is None else batch | {"label": split.label[index]},
            int(mask.sum()),
        )
