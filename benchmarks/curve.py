"""IW-K of one config trained for several lengths, and its extrapolation to a longer one.

python -m benchmarks.curve --runs=RUN,RUN,RUN --epochs=3280 --out=results/curve.json

The fit is IW-K = a - b epochs^(-p), by least squares. With more than three runs the longest is also
predicted from the others: the error of that prediction tells what the fit is worth.
"""

import numpy as np
from scipy import optimize

from benchmarks import common
from vae_jax.report import pictures
from vae_jax.tools import results

Points = list[tuple[float, float]]  # (epochs, IW-K in nats)


def power_law(epochs: np.ndarray, a: float, b: float, p: float) -> np.ndarray:
    return a - b * epochs**-p


def fit(points: Points) -> np.ndarray:
    """(a, b, p) of :func:`power_law`, within the bounds a in [-200, 0], p in [0.05, 2]."""
    epochs, nats = np.array(points).T
    start = (nats.max() + 1, 10.0, 0.5)
    bounds = ([-200, 0, 0.05], [0, 1e3, 2])
    parameters, _ = optimize.curve_fit(power_law, epochs, nats, start, bounds=bounds)
    return parameters


def draw(path: str, points: Points, epochs: float, k: int) -> None:
    """Write the picture of the runs and of the fit up to ``epochs``."""
    figure = pictures.new_figure(6, 3)
    ax = figure.subplots()
    theme = pictures.LIGHT
    pictures.style_axes(ax, theme)
    x = np.geomspace(points[0][0], epochs)
    fitted = power_law(x, *fit(points))
    ax.plot(x, fitted, color=theme["validation"], linewidth=1.2, label="a − b epochs⁻ᵖ")
    trained, nats = np.array(points).T
    ax.plot(trained, nats, "o", color=theme["train"], markersize=5, label=f"IW-{k}, test")
    ax.set_xscale("log")
    ax.set_xlabel("epochs", fontsize=8.5, color=theme["muted"])
    ax.set_ylabel("nats / image", fontsize=8.5, color=theme["muted"])
    ax.legend(frameon=False, fontsize=8, labelcolor=theme["muted"])
    with open(path, "wb") as file:
        file.write(pictures.figure_png(figure))


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--runs", required=True, help="finished runs of one config")
    parser.add_argument("--epochs", type=float, required=True, help="the length to extrapolate to")
    parser.add_argument("--k", type=int, default=5000, help="samples of an image")
    parser.add_argument("--images", type=int, default=10_000, help="test images, from the first")
    parser.add_argument("--data_dir", default="", help="where the data is, if it moved")
    args = parser.parse_args()
    recorder = common.Recorder("curve", args.out)
    figures = {}
    points = []
    for workdir in args.runs.split(","):
        row = common.importance_bound(workdir, args.k, args.images, args.data_dir)
        c = row["config"]
        epochs = c["steps"] * c["batch"] / row["train"]
        points.append((epochs, row["mean"]))
        name = f"epochs_{epochs:.0f}"
        figures[name] = results.figure(row["mean"], "nats / image", n=row["n"], sd=row["sd"])
        print(f"{name}: IW-{args.k} {row['mean']:.3f}", flush=True)
    points.sort()
    n = len(points)
    if n > 3:
        predicted = power_law(points[-1][0], *fit(points[:-1]))
        figures["foretold"] = results.figure(predicted, "nats / image", n=n - 1)
    extrapolated = power_law(args.epochs, *fit(points))
    figures["extrapolated"] = results.figure(extrapolated, "nats / image", n=n)
    figures["extrapolated_epochs"] = results.figure(args.epochs, "")
    draw(recorder.picture(), points, args.epochs, args.k)
    recorder.write(c, figures)


if __name__ == "__main__":
    common.script(main)
