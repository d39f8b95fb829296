"""What a person sees of a run: a bar on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Sequence

from vae_jax.mesh import hosts

SHOWN = ("loss", "elbo", "kl", "cross_entropy", "accuracy")


def line(rows: Sequence[dict[str, float]]) -> str:
    """The metrics of one run, or the mean of those of its replicas, on one line."""
    means = {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}
    parts = []
    if len(rows) > 1:
        parts.append(f"mean of {len(rows)}")
    if "images_per_s" in means:
        parts.append(f"{means['images_per_s']:,.0f} images/s")
    parts += [f"{name} {means[name]:,.4g}" for name in SHOWN if name in means]
    return "  ".join(parts)


class Progress:
    """A bar on a terminal, plain lines elsewhere, from step ``start`` to ``steps``."""

    def __init__(self, start: int, steps: int) -> None:
        self._steps = steps
        self._bar = None
        if sys.stderr.isatty() and hosts.first():
            from tqdm import tqdm

            layout = "{percentage:3.0f}%|{bar:12}| {n}/{total} {remaining} left{postfix}"
            self._bar = tqdm(
                total=steps, initial=start, dynamic_ncols=True, smoothing=0.1, bar_format=layout
            )

    def row(self, step: int, split: str, rows: Sequence[dict[str, float]]) -> None:
        """Show the metrics of one step, of each replica."""
        text = line(rows)
        if self._bar is None:
            print(f"step {step:>6}/{self._steps}  {split:<10}  {text}", flush=True)
        elif split == "train":
            self._bar.set_postfix_str(text, refresh=False)
        else:
            self._bar.write(f"step {step:>6}  {split}  {text}")

    def advance(self, steps: int) -> None:
        if self._bar is not None:
            self._bar.update(steps)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
