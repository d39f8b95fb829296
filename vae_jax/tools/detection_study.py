"""Detection: arms x scenes with boxes x seeds, as one table.

    python -m vae_jax.tools.detection_study --config=configs/study_scenes.py \\
        --workdir=runs/study_scenes [--only=scratch,vae_frozen]

The same command continues a study that was stopped: a cell with a file in ``cells/`` is not run
again. The folder is that of ``vae_jax.tools.study``, with one ``table.md`` for its report. A seed
determines the parameters, the noise and the order of the batches; all seeds share their scenes. The
last checkpoint is evaluated; none is selected.
"""

import os
import time
from collections.abc import Callable, Sequence

from absl import flags

from vae_jax import cli as flags_lib
from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.evaluate import tasks
from vae_jax.evaluate.subject import Subject
from vae_jax.tools import assess, results, study, study_page
from vae_jax.tools.study_page import Column
from vae_jax.tools.study_plan import Cell, Study, cells, check, needed
from vae_jax.train import checkpoint, log

METRICS = {
    "ap50": "AP at an IoU of 0.5",
    "ap": "AP, mean over IoU 0.5 to 0.95",
    "ap50_any_class": "AP at an IoU of 0.5, all objects one class",
}
Say = Callable[[str], None]


def perform(cell: Cell, root: str, plan: Study, say: Say) -> dict | None:
    """Train, find the objects of the test scenes, write the cell's file; None after a signal."""
    began = time.perf_counter()
    if not study.train(cell, root, plan, say):
        return None
    restored = [study.restore(run) for run in needed(cell, root, plan)]
    setup, params, _ = restored[-1]
    metrics, _, _ = tasks.perform(["scenes"], Subject.of(setup, params), say=say)["scenes"]
    seconds = sum(cost[0] for _, _, cost in restored)
    row = {
        "method": cell.method,
        "labels": cell.labels,
        "seed": cell.seed,
        "figures": metrics,
        "training_seconds": round(float(seconds), 2),
        "seconds": round(time.perf_counter() - began, 2),
        "device": results.device(),
        "commit": results.commit(),
        "config": config_lib.to_json(cell.config),
    }
    checkpoint.write_json(os.path.join(root, "cells", f"{cell.name}.json"), row)
    return row


def summaries(plan: Study, rows: Sequence[dict]) -> dict[str, dict]:
    """{"arm.scenes.metric": figure over seeds} of the rows that are done."""
    groups = study_page.grouped(rows)
    figures = {}
    for arm in plan.methods:
        for budget in plan.budgets:
            of_seeds = groups.get((arm, budget), [])
            for metric in (*METRICS, "count_accuracy"):
                column = Column(metric, lambda row, name=metric: row["figures"].get(name), ".3f")
                one = study_page.summary(of_seeds, column) if of_seeds else None
                if one is not None:
                    figures[f"{arm}.{budget}.{metric}"] = one
    return figures


def table(plan: Study, rows: Sequence[dict]) -> str:
    """A Markdown table for each of :data:`METRICS`: arms x scenes with boxes, mean ± sd."""
    figures = summaries(plan, rows)
    lines = []
    for metric, title in METRICS.items():
        head = ["arm", *(f"{budget:,} scenes" for budget in plan.budgets)]
        lines += [f"{title}; {len(plan.seeds)} seeds", "", f"| {' | '.join(head)} |"]
        lines.append("|---" * len(head) + "|")
        for arm, method in plan.methods.items():
            entries = [method.title]
            for budget in plan.budgets:
                figure = figures.get(f"{arm}.{budget}.{metric}")
                entries.append(results.show(figure, ".3f") if figure else study_page.MISSING)
            lines.append(f"| {' | '.join(entries)} |")
        lines.append("")
    return "\n".join(lines)


def run(
    plan: Study,
    root: str,
    *,
    only: Sequence[str] = (),
    data_dir: str = "",
    publish: str = "",
    say: Say = print,
) -> bool:
    """Do every cell that is not done, then write the table; False where a signal stopped it.

    Raises:
      UserError: a wrong name, or a file in ``root`` that is of another study.
    """
    check(plan)
    if plan.counts != "canvases":
        raise UserError(f"config={plan.title}: want python -m vae_jax.tools.study")
    plan = study.ready(plan, root, only, data_dir)
    os.makedirs(os.path.join(root, "cells"), exist_ok=True)
    rows = []
    todo = []
    for cell in cells(plan, root):
        row = study.done(cell, root)
        if row is not None:
            rows.append(row)
        elif not only or cell.method in only:
            todo.append(cell)
    say(f"{len(rows)} cells are done, {len(todo)} are left")
    for i, cell in enumerate(todo):
        row = perform(cell, root, plan, say)
        if row is None:
            say("stopped; the same command goes on from there")
            return False
        rows.append(row)
        ap50 = row["figures"]["ap50"]
        say(f"{cell.name}: AP50 {ap50:.3f}, {row['seconds']:.0f} s; {len(todo) - i - 1} cells left")
        log.replace(os.path.join(root, "table.md"), table(plan, rows).encode())
    say(table(plan, rows))
    if publish:
        results.write(
            publish,
            command=assess.command(),
            config=None,
            seed=list(plan.seeds),
            seconds=sum(row["seconds"] for row in rows),
            figures=summaries(plan, rows),
        )
    return True


def define(values: flags.FlagValues) -> None:
    """Declare the flags of this script: those of a study."""
    study.define(values)
    values.set_default("config", "configs/study_scenes.py")


def main(argv: list[str]) -> int:
    """Run the study that the flags name; returns the exit code."""
    return study.main(argv, define, run)


if __name__ == "__main__":
    flags_lib.main(main)
