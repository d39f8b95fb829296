"""Classify images with an exported classifier: ``data/predict.py``, which exports carry with them.

python -m vae_jax.tools.predict classifier.jaxexport image.png folder/
"""

import sys

from vae_jax.data.predict import main

if __name__ == "__main__":
    sys.exit(main())
