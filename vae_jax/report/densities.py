"""The panel of samples side by side: of the prior, and of densities fitted to the codes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vae_jax.report import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADING = "Samples of the prior and of densities of the codes"
CAPTION = (
    "The same decoder on codes that are drawn from the prior, and from densities that were fitted "
    "to the codes of training images after training."
)
SHOWN = 10  # images of a density

Samples = Mapping[str, np.ndarray]  # {density: NxHxWxC in [0, 1]}


def draw(theme: pictures.Theme, samples: Samples) -> Figure:
    """A row for each density."""
    figure = pictures.new_figure(SHOWN, 1.3 * len(samples))
    rows = figure.subplots(len(samples), SHOWN, squeeze=False)
    for axes, (name, images) in zip(rows, samples.items(), strict=True):
        for ax in axes:
            ax.set_axis_off()
        for ax, image in zip(axes, np.clip(images[:SHOWN], 0, 1), strict=False):
            shown = image if image.shape[-1] == 3 else image.mean(-1)
            ax.imshow(shown, cmap="gray", vmin=0, vmax=1)
        axes[0].set_title(name.replace("_", " "), loc="left", fontsize=9, color=theme["ink"])
    return figure
