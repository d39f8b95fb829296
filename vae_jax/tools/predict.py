"""Classify images, or find their objects: ``data/predict.py``, which exports carry with them.

    python -m vae_jax.tools.predict classifier.jaxexport image.png folder/
    python -m vae_jax.tools.predict runs/detect_mnist image.png --out=boxes --json

A run's folder is exported first, as ``vae_jax.tools.export`` does it: its detector where its model
finds objects, else its classifier.
"""

import os
import sys

from vae_jax.config import UserError
from vae_jax.data import predict


def exported(model: str) -> str:
    """The exported file that ``model`` is, or that a run of this folder gives."""
    if not os.path.isdir(model):
        return model
    from vae_jax.tools import export  # and with it all of the package, which no export needs

    try:
        return export.write(model, say=lambda line: print(line, file=sys.stderr))
    except UserError as error:
        raise predict.Refused(str(error)) from None


if __name__ == "__main__":
    sys.exit(predict.main(find=exported))
