"""Common corruptions: 15 kinds at 5 strengths, and the accuracy under each.

    python -m vae_jax.evaluate.corruptions --workdir=runs/mnist --images=1000

The kinds and their order are those of Hendrycks & Dietterich 2019 (arXiv:1903.12261), section 3.1;
the strengths follow their constants for 32x32 images, lengths being shares of the side. All is our
own code, so images are not theirs: frost is ridged noise in place of photographs of ice. Each
function takes x_NxHxWxC in [0, 1], one of its five settings, and a generator. Writes
corruptions.json into the run's folder.
"""

import functools
import io
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import data
from vae_jax.config import UserError
from vae_jax.evaluate import command, tasks
from vae_jax.evaluate.run import forward
from vae_jax.evaluate.subject import Subject
from vae_jax.evaluate.trained import why_unclassified

Corruption = Callable[[np.ndarray, float, np.random.Generator], np.ndarray]


def gaussian_noise(x: np.ndarray, scale: float, rng: np.random.Generator) -> np.ndarray:
    """x + N(0, scale²)."""
    return x + scale * rng.standard_normal(x.shape)


def shot_noise(x: np.ndarray, photons: float, rng: np.random.Generator) -> np.ndarray:
    """Poisson counts of ``photons`` at white, divided by them."""
    return rng.poisson(photons * np.clip(x, 0, 1)) / photons


def impulse_noise(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A share of the values is black or white, equally often."""
    draw = rng.random(x.shape)
    return np.where(draw < share / 2, 0.0, np.where(draw < share, 1.0, x))


def _convolved(x: np.ndarray, kernel_HxW: np.ndarray) -> np.ndarray:
    """Each image with a kernel of sum 1, edges repeated."""
    from scipy.ndimage import convolve

    kernel = kernel_HxW / kernel_HxW.sum()
    return convolve(x, kernel[None, :, :, None], mode="nearest")


def _blurred(x: np.ndarray, pixels: float) -> np.ndarray:
    """A Gaussian blur of a standard deviation in pixels."""
    from scipy.ndimage import gaussian_filter

    return gaussian_filter(x, (0, pixels, pixels, 0), mode="nearest")


def _disk(radius: float) -> np.ndarray:
    """The share of each pixel of a square grid that a disk covers, by 25 x 25 points a pixel."""
    fine = 25
    side = 2 * int(np.ceil(radius)) + 1
    points = (np.arange(side * fine) + 0.5) / fine - side / 2
    covered = np.hypot(points[:, None], points[None]) <= radius
    return covered.reshape(side, fine, side, fine).mean((1, 3))


def defocus_blur(x: np.ndarray, radius: float, rng: np.random.Generator) -> np.ndarray:
    """The mean over a disk of half a pixel and radius · side: a disk in one pixel blurs nothing."""
    return _convolved(x, _disk(0.5 + radius * x.shape[1]))


def glass_blur(x: np.ndarray, swaps: float, rng: np.random.Generator) -> np.ndarray:
    """A blur of 1 % of the side, then a share of the pixels changes place with a neighbour."""
    out = _blurred(x, 0.01 * x.shape[1])
    n, height, width, _ = x.shape
    rows = np.arange(n)
    for _ in range(round(swaps * height * width)):
        top = rng.integers(0, height - 1, n)
        left = rng.integers(0, width - 1, n)
        other_top = top + rng.integers(0, 2, n)
        other_left = left + rng.integers(0, 2, n)
        kept = out[rows, top, left]
        out[rows, top, left] = out[rows, other_top, other_left]
        out[rows, other_top, other_left] = kept
    return out


def motion_blur(x: np.ndarray, length: float, rng: np.random.Generator) -> np.ndarray:
    """The mean along a line of length · side, in a direction of each image's own."""
    from scipy.ndimage import map_coordinates

    n, height, width, channels = x.shape
    angle = rng.uniform(-np.pi / 4, np.pi / 4, n)
    shifts = np.linspace(-0.5, 0.5, 9) * length * height
    grid_rows, grid_columns = np.mgrid[:height, :width].astype(np.float64)
    out = np.zeros(x.shape)
    for i in range(n):
        for shift in shifts:
            at = (grid_rows + shift * np.sin(angle[i]), grid_columns + shift * np.cos(angle[i]))
            for c in range(channels):
                out[i, ..., c] += map_coordinates(x[i, ..., c], at, order=1, mode="nearest")
    return out / len(shifts)


def _zoomed(x: np.ndarray, factor: float) -> np.ndarray:
    """Images enlarged about their centre, in their old size."""
    from scipy.ndimage import map_coordinates

    height, width = x.shape[1:3]
    rows = (np.arange(height) - (height - 1) / 2) / factor + (height - 1) / 2
    columns = (np.arange(width) - (width - 1) / 2) / factor + (width - 1) / 2
    at = np.meshgrid(np.arange(x.shape[0]), rows, columns, np.arange(x.shape[3]), indexing="ij")
    return map_coordinates(x, at, order=1, mode="nearest")


def zoom_blur(x: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """The mean of the image and of enlargements of up to ``most``, in steps of 1 %."""
    factors = np.arange(1, most + 0.005, 0.01)
    total = np.array(x, np.float64)
    for factor in factors:
        total += _zoomed(x, factor)
    return total / (len(factors) + 1)


def _plasma(n: int, height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Noise in [0, 1] whose amplitude falls as 1 / frequency^1.5, NxHxWx1: clouds."""
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    frequency[0, 0] = np.inf
    spectrum = np.fft.fft2(rng.standard_normal((n, height, width))) / frequency**1.5
    noise = np.fft.ifft2(spectrum).real
    low = noise.min((1, 2), keepdims=True)
    return ((noise - low) / (noise.max((1, 2), keepdims=True) - low))[..., None]


def snow(x: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """A whitened image under flakes on a share of the pixels, each drawn out into a stroke."""
    flakes = (rng.random((*x.shape[:3], 1)) < share).astype(np.float64)
    strokes = motion_blur(flakes, 0.1, rng)
    strokes /= max(strokes.max(), 1e-12)
    whitened = np.maximum(x, 0.8 * x + 0.2 * 0.5)
    return whitened + strokes


def frost(x: np.ndarray, cover: float, rng: np.random.Generator) -> np.ndarray:
    """(1 − cover) of the image under ridges of bright noise."""
    noise = _plasma(*x.shape[:3], rng)
    ridges = 1 - np.abs(2 * noise - 1)
    return (1 - cover) * x + cover * ridges**2


def fog(x: np.ndarray, depth: float, rng: np.random.Generator) -> np.ndarray:
    """x + depth · clouds, scaled so that the largest value of each image stays."""
    most = x.max((1, 2, 3), keepdims=True)
    clouded = x + depth * _plasma(*x.shape[:3], rng)
    return clouded * most / np.maximum(most + depth, 1e-12)


def brightness(x: np.ndarray, shift: float, rng: np.random.Generator) -> np.ndarray:
    """x + shift: of a colour its value in HSV, so that hue and saturation stay."""
    value = x.max(-1, keepdims=True)
    raised = np.clip(value + shift, 0, 1)
    return np.where(value > 0, x * raised / np.where(value > 0, value, 1), raised)


def contrast(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """The distance of each value from its channel's mean over the image, times ``factor``."""
    mean = x.mean((1, 2), keepdims=True)
    return mean + factor * (x - mean)


def elastic_transform(x: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Pixels displaced by smooth noise of standard deviation size · side."""
    from scipy.ndimage import map_coordinates

    n, height, width, channels = x.shape
    grid = np.mgrid[:height, :width].astype(np.float64)
    noise = _blurred(rng.standard_normal((n, height, width, 2)), 0.1 * height)
    noise *= size * height / np.maximum(noise.std((1, 2), keepdims=True), 1e-12)
    out = np.empty(x.shape)
    for i in range(n):
        at = grid + noise[i].transpose(2, 0, 1)
        for c in range(channels):
            out[i, ..., c] = map_coordinates(x[i, ..., c], at, order=1, mode="reflect")
    return out


def _through_pillow(x: np.ndarray, change: Callable) -> np.ndarray:
    """Each image through a function of PIL images, as 8-bit values."""
    from PIL import Image

    out = []
    for image in np.rint(255 * np.clip(x, 0, 1)).astype(np.uint8):
        squeezed = image[..., 0] if image.shape[-1] == 1 else image
        changed = np.asarray(change(Image.fromarray(squeezed)), np.float64) / 255
        out.append(changed.reshape(image.shape))
    return np.stack(out)


def pixelate(x: np.ndarray, factor: float, rng: np.random.Generator) -> np.ndarray:
    """Shrunk to ``factor`` of the side by box averages, and enlarged by repetition."""
    from PIL import Image

    height, width = x.shape[1:3]
    small = (max(1, int(factor * width)), max(1, int(factor * height)))

    def change(image: Image.Image) -> Image.Image:
        shrunk = image.resize(small, Image.Resampling.BOX)
        return shrunk.resize((width, height), Image.Resampling.NEAREST)

    return _through_pillow(x, change)


def jpeg_compression(x: np.ndarray, quality: float, rng: np.random.Generator) -> np.ndarray:
    """Through a JPEG file of this quality."""
    from PIL import Image

    def change(image: Image.Image) -> Image.Image:
        file = io.BytesIO()
        image.save(file, "JPEG", quality=int(quality))
        return Image.open(file)

    return _through_pillow(x, change)


# name -> (function, its setting at strengths 1 to 5)
CORRUPTIONS: dict[str, tuple[Corruption, tuple[float, ...]]] = {
    "gaussian_noise": (gaussian_noise, (0.04, 0.06, 0.08, 0.09, 0.10)),
    "shot_noise": (shot_noise, (500, 250, 100, 75, 50)),
    "impulse_noise": (impulse_noise, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "defocus_blur": (defocus_blur, (0.01, 0.02, 0.03, 0.04, 0.05)),
    "glass_blur": (glass_blur, (0.5, 1.0, 1.5, 2.0, 2.5)),
    "motion_blur": (motion_blur, (0.1, 0.15, 0.2, 0.25, 0.3)),
    "zoom_blur": (zoom_blur, (1.06, 1.11, 1.16, 1.21, 1.26)),
    "snow": (snow, (0.01, 0.02, 0.03, 0.05, 0.07)),
    "frost": (frost, (0.2, 0.3, 0.4, 0.5, 0.6)),
    "fog": (fog, (0.2, 0.5, 0.75, 1.0, 1.5)),
    "brightness": (brightness, (0.05, 0.1, 0.15, 0.2, 0.3)),
    "contrast": (contrast, (0.75, 0.5, 0.4, 0.3, 0.15)),
    "elastic_transform": (elastic_transform, (0.01, 0.02, 0.03, 0.04, 0.05)),
    "pixelate": (pixelate, (0.95, 0.85, 0.75, 0.65, 0.5)),
    "jpeg_compression": (jpeg_compression, (80, 65, 58, 50, 40)),
}
STRENGTHS = (1, 2, 3, 4, 5)


def corrupted(
    image_NxHxWxC: np.ndarray, levels: int, name: str, strength: int, seed: int = 0
) -> np.ndarray:
    """uint8 images of the same grey levels under one corruption; the same for the same seed."""
    function, settings = CORRUPTIONS[name]
    x = np.asarray(image_NxHxWxC, np.float64) / (levels - 1)
    x = function(x, settings[strength - 1], np.random.default_rng(seed))
    return np.rint((levels - 1) * np.clip(x, 0, 1)).astype(np.uint8)


def accuracies(subject: Subject, images: int) -> dict[str, list[float]]:
    """{corruption: accuracy at each strength} of the classifier, and of 'clean' images."""
    test = data.some(subject.data.test, images)
    look = forward(subject)

    def accuracy(image: np.ndarray) -> float:
        logits = look(test._replace(image=image))["logits"]
        return float((logits.argmax(1) == test.label).mean())

    rows = {"clean": [accuracy(test.image[:])]}
    for name in CORRUPTIONS:
        change = functools.partial(corrupted, test.image[:], subject.levels, name)
        rows[name] = [accuracy(change(strength)) for strength in STRENGTHS]
    return rows


def mean_error(rows: Mapping[str, Sequence[float]]) -> float:
    """Mean over kinds of the mean error over strengths.

    Hendrycks & Dietterich's mCE divides each kind by AlexNet's error, for which there is no
    counterpart on small images; so this is not their number.
    """
    errors = [1 - np.mean(values) for name, values in rows.items() if name != "clean"]
    return float(np.mean(errors))


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script."""
    command.define(values)
    most = "of the test set, at most"
    flags.DEFINE_integer("images", tasks.IMAGES, most, lower_bound=1, flag_values=values)


def run(argv: list[str]) -> int:
    """Measure the run that the flags name; the exit code."""
    values = flags_lib.parse_fixed(argv, define)
    subject = command.subject_of(values, "corruptions.json")
    why = why_unclassified(subject)
    if why:
        raise UserError(f"workdir={values.workdir}: {why}; want a run that learnt to classify")
    rows = accuracies(subject, values.images)
    content = {"accuracy": rows, "mean_error": mean_error(rows)}
    command.write(values, "corruptions.json", content)
    return 0


if __name__ == "__main__":
    flags_lib.main(run)
