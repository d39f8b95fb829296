"""Images that a user hands over in Python, checked."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vae_jax.config import UserError

Images = Any  # what numpy.asarray takes


def pixels(images: Images, levels: int, shape: str) -> np.ndarray:
    """Images as uint8 of 0 .. levels − 1, from uint8 of these levels or floats in [0, 1].

    Args:
      shape: what would be right, for the message.
    Raises:
      UserError: they have another type or range.
    """
    top = levels - 1
    want = f"want uint8 of 0 .. {top} or floats in [0, 1], {shape}"
    try:
        image = np.asarray(images)
    except ValueError:
        raise UserError(f"images: not one array (images of several sizes?); {want}") from None
    if image.dtype == np.uint8:
        if image.size and image.max() > top:
            raise UserError(f"images: uint8 up to {image.max()}; {want}")
        return image
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise UserError(f"images={image.dtype} {list(image.shape)}: {want}")
    image = image.astype(np.float32)
    if image.size and not (image.min() >= 0 and image.max() <= 1):  # NaN is neither
        raise UserError(f"images: floats from {image.min():g} to {image.max():g}; {want}")
    return np.rint(image * top).astype(np.uint8)


def batch_of(images: Images, levels: int, shape: tuple[int, int, int]) -> np.ndarray:
    """uint8 NxHxWxC in grey levels of the data, from one image HxWxC or several.

    Raises:
      UserError: they have another type, range or shape.
    """
    want = f"{list(shape)} or [N, {str(list(shape))[1:]}"
    image = pixels(images, levels, want)
    if image.ndim == 3:
        image = image[None]
    if image.ndim != 4 or image.shape[1:] != shape or not len(image):
        raise UserError(f"images={list(np.shape(images))}: want {want}")
    return image


def class_labels(labels: Any, n: int, classes: int) -> np.ndarray:
    """int32 [n] of a class for each of n examples, or of one for all, 0 .. classes − 1.

    Raises:
      UserError: they are other numbers, or as many others.
    """
    label = np.asarray(-1 if labels is None else labels)
    whole = label.dtype.kind in "iu" and label.shape in ((), (n,))
    if not whole or label.min() < 0 or label.max() >= classes:
        raise UserError(
            f"labels={labels}: the model is one of p(x|y,z); want one class or {n}, "
            f"0 .. {classes - 1}"
        )
    return np.broadcast_to(label, (n,)).astype(np.int32)
