"""The panel of anomaly maps: where test images, and images of other data sets, are unusual."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from vae_jax.report import pictures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HEADING = "Where images are unusual"
CAPTION = (
    "Images, and below each its map: the error of the reconstruction times the gradient of the "
    "bound, pixel by pixel. The greatest value of these test images is white, and what is above it."
)
SHOWN = 8  # images of a data set

Maps = Mapping[str, tuple[np.ndarray, np.ndarray]]  # {data set: (NxHxWxC in [0, 1], NxHxW)}


def alt(maps: Maps) -> str:
    """The mean map of each data set in words, in units of the test images'."""
    usual = maps["test images"][1].mean()
    parts = []
    for name, (_, map_NxHxW) in maps.items():
        parts.append(f"{name}: {map_NxHxW.mean() / usual:.2g} times the test images' mean")
    return "; ".join(parts)


def draw(theme: pictures.Theme, maps: Maps) -> Figure:
    """Two rows for each data set: its images, and their maps at one scale for all sets."""
    white = maps["test images"][1].max()
    figure = pictures.new_figure(SHOWN, 2.3 * len(maps))
    rows = figure.subplots(2 * len(maps), SHOWN, squeeze=False)
    for i, (name, (images, map_NxHxW)) in enumerate(maps.items()):
        for column in range(SHOWN):
            for ax in rows[2 * i : 2 * i + 2, column]:
                ax.set_axis_off()
            if column >= len(images):
                continue
            grey = {"cmap": "gray", "vmin": 0}
            image = images[column]
            if image.shape[-1] != 3:
                image = image.mean(-1)
            rows[2 * i, column].imshow(image, vmax=1, **grey)
            rows[2 * i + 1, column].imshow(map_NxHxW[column], vmax=white, **grey)
        rows[2 * i, 0].set_title(name, loc="left", fontsize=9, color=theme["ink"])
    return figure
