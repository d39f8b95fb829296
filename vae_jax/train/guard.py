"""Metrics are read one call late, and a run stops where they are not finite.

Reading metrics waits for the device. Those of a call are read when the next call is dispatched, so
that the device is never idle.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from vae_jax.config import UserError

TOTALS = ("loss", "elbo", "grad_norm")  # not finite wherever one of their terms is not


def nonfinite_terms(row: dict[str, float]) -> str:
    """'kl=inf (log_px=-94.1)': the terms that are not finite, and in brackets those that are."""
    bad = [f"{name}={value}" for name, value in row.items() if not math.isfinite(value)]
    good = [f"{name}={value:.4g}" for name, value in row.items() if math.isfinite(value)]
    terms = [text for text in bad if text.partition("=")[0] not in TOTALS]
    text = ", ".join(terms or bad)
    if good:
        text += f" ({', '.join(good)})"
    return text


class Guard:
    """Checks the metrics of a call: S steps, R replicas (1 for a run alone), M metrics.

    Args:
      names: of the M metrics.
      saved: the checkpoints of each of the R runs, for the error message.

    Raises:
      UserError: a metric is not finite, or more than ``config.optim.skip`` steps in a row were
        skipped.
    """

    def __init__(self, c: ConfigDict, names: Sequence[str], saved: Sequence[Any]) -> None:
        self._names = names
        self._saved = saved
        self._steps = c.steps_per_call
        self._most_skipped = c.optim.skip
        self._in_a_row_R = np.zeros(len(saved), int)

    def __call__(self, last_step: int, metrics: jax.Array | np.ndarray) -> np.ndarray:
        """The metrics as S x R x M in float64; those of skipped steps are NaN."""
        shape = (self._steps, len(self._saved), len(self._names))
        rows_SxRxM = np.asarray(metrics, np.float64).reshape(shape)
        first_step = last_step - self._steps + 1
        good_SxR = np.isfinite(rows_SxRxM).all(-1)
        if self._most_skipped:
            column = self._names.index("skipped")
            skipped_SxR = rows_SxRxM[..., column] > 0
            self._count_skipped(first_step, skipped_SxR, rows_SxRxM)
            good_SxR |= skipped_SxR
            rows_SxRxM = np.where(skipped_SxR[..., None], np.nan, rows_SxRxM)
            rows_SxRxM[..., column] = skipped_SxR
        for i, r in np.argwhere(~good_SxR)[:1]:
            step = f"step {first_step + i}"
            self._stop(f"non-finite loss at {step}", r, rows_SxRxM[i, r])
        return rows_SxRxM

    def _count_skipped(
        self, first_step: int, skipped_SxR: np.ndarray, rows_SxRxM: np.ndarray
    ) -> None:
        for i, skipped_R in enumerate(skipped_SxR):
            self._in_a_row_R = np.where(skipped_R, self._in_a_row_R + 1, 0)
            most = self._in_a_row_R.max()
            if most > self._most_skipped:
                what = f"optim.skip={self._most_skipped}: {most} bad steps in a row"
                r = self._in_a_row_R.argmax()
                self._stop(f"{what} up to step {first_step + i}", r, rows_SxRxM[i, r])

    def _stop(self, what: str, r: int, row_M: np.ndarray) -> None:
        terms = nonfinite_terms(dict(zip(self._names, row_M, strict=True)))
        latest = self._saved[r].latest()
        if len(self._saved) > 1:
            what += f" of replica {r}"
        kept = "none" if latest is None else latest
        raise UserError(f"{what}: {terms}; last good checkpoint: {kept}")


class Pending:
    """The unread metrics of the last call, and the rows read since :meth:`take`."""

    def __init__(self, guard: Guard) -> None:
        self._guard = guard
        self._rows = []
        self._step = 0
        self.metrics = None  # of the last call, on the device

    def push(self, step: int, metrics: jax.Array) -> None:
        """Keep the metrics of the call that ends at ``step``, and read those of the call before."""
        self.drain()
        self._step = step
        self.metrics = metrics

    def drain(self) -> None:
        """Wait for the metrics that are still on the device, and check them."""
        if self.metrics is not None:
            self._rows.append(self._guard(self._step, self.metrics))
            self.metrics = None

    def take(self) -> np.ndarray:
        """The rows since the last time, steps x R x M; the next ones begin a new window."""
        self.drain()
        rows_SxRxM = np.concatenate(self._rows)
        self._rows = []
        return rows_SxRxM
