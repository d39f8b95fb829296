"""Time the compiled training step of a config: a sweep's cells in turns, and a peer beside them.

    python benchmark.py --config=configs/digits.py --sweep='batch=20,128;dtype=float32,bfloat16'
        [--config.x=y] [--rounds=10] [--seconds=0.3] [--out=results/NAME.json] [--page=DIR]
        [--compare=old.json] [--peer=torch]
    python benchmark.py --config=configs/imagenet64.py --target=v5e:16x16 [--sweep='mesh.fsdp=1,8']
    python benchmark.py --startup --config=configs/digits.py --out=results/startup.json
    python benchmark.py --loop --config=configs/digits.py --rounds=5 --out=results/loop.json

Exit codes: 0, done; 1, --compare shows a cell slower or failing, no cell could be measured, or a
target's memory is too small; 2, bad input.
"""

import importlib
import os
import pathlib
import re
import time
from types import ModuleType
from typing import Any

from absl import flags

from vae_jax import cli

Pairs = list[tuple[str, str]]  # overrides, [(field, text)]


def define(values: flags.FlagValues) -> None:
    """Declare the flags."""
    how = {"flag_values": values}
    flags.DEFINE_string("config", "configs/digits.py", "a config file", **how)
    flags.DEFINE_string("data_dir", "", "where TFDS data is (--config.data.dir)", **how)
    flags.DEFINE_string("sweep", "", "FIELD=VALUE,VALUE;FIELD=...: every combination", **how)
    flags.DEFINE_integer("rounds", 10, "windows of each cell", lower_bound=1, **how)
    flags.DEFINE_float("seconds", 0.3, "length of a window, about", lower_bound=0.001, **how)
    flags.DEFINE_string("out", "", "figures to this NAME.json, all windows to NAME.jsonl", **how)
    flags.DEFINE_string("page", "", "write a page with pictures into this folder", **how)
    flags.DEFINE_string("compare", "", "an older --out: exit 1 on a regression", **how)
    flags.DEFINE_string("peer", "", "torch: time the PyTorch step in turns with ours", **how)
    flags.DEFINE_string("target", "", "v5e:16x16 ...: compile for these, run nothing", **how)
    flags.DEFINE_bool("startup", False, "time the start of train.py instead", **how)
    flags.DEFINE_bool("loop", False, "time the training loop beside the bare step", **how)


def find_peer(name: str) -> ModuleType:
    """The module benchmarks/peers/NAME_step.py."""
    from vae_jax.config import UserError, nearest

    folder = pathlib.Path(__file__).parent / "benchmarks" / "peers"
    known = [path.name.removesuffix("_step.py") for path in folder.glob("*_step.py")]
    if name not in known:
        raise UserError(f"peer={name}: unknown; {nearest(name, known)}")
    try:
        return importlib.import_module(f"benchmarks.peers.{name}_step")
    except ModuleNotFoundError as error:
        raise UserError(
            f"peer={name}: {error.name} is not installed; want: pip install '.[peers]'"
        ) from None


class Recorder:
    """Writes ``--out`` with the command, the time since the start, and the settings."""

    def __init__(self, values: flags.FlagValues):
        from vae_jax.tools import assess

        self.values = values
        self.began = time.perf_counter()
        self.command = assess.command()
        self.load = [os.getloadavg()[0]]

    def settings(self) -> dict[str, str]:
        """What else the figures depend on; the machine's load now is the load after."""
        import jax

        from vae_jax.train import program

        self.load.append(os.getloadavg()[0])
        options = program.options(jax.default_backend()) or {}
        return {
            "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
            "compiler options": ", ".join(f"{k}={v}" for k, v in options.items()),
            "huge pages": cli.huge_pages(),
            "load": f"{self.load[0]:.2f} processes before, {self.load[-1]:.2f} after",
        }

    def write(self, figures: dict[str, dict], settings: dict[str, str] | None = None) -> None:
        from vae_jax.tools import results

        if self.values.out:
            results.write(
                self.values.out,
                command=self.command,
                config=self.values.config,
                seed=None,
                seconds=time.perf_counter() - self.began,
                figures=figures,
                settings=settings,
            )


def make_cells(values: flags.FlagValues, pairs: Pairs) -> list:
    """The cells of ``--sweep``."""
    from benchmarks import cells
    from vae_jax import config

    sweep = cells.parse_sweep(values.sweep)
    return cells.cells(lambda: config.load(values.config), pairs, sweep, values.data_dir)


def run_whole(values: flags.FlagValues, pairs: Pairs, recorder: Recorder) -> int:
    """``--startup`` or ``--loop``."""
    from benchmarks import startup, whole
    from vae_jax import config
    from vae_jax.tools import results

    c = cli.apply(config.load(values.config), pairs)
    if values.startup:
        words = [f"--config={values.config}", f"--data_dir={values.data_dir}"]
        words += [f"{cli.PREFIX}{field}={value}" for field, value in pairs]
        figures = startup.measure(c, words, values.rounds)
    else:
        c.data.dir = values.data_dir or c.data.dir
        figures = whole.measure(c, values.rounds, values.seconds)
    for name, figure in figures.items():
        print(f"{name}: {results.show(figure)} {figure['unit']}")
    recorder.write(figures, recorder.settings())
    return 0


def run_target(values: flags.FlagValues, pairs: Pairs, recorder: Recorder) -> int:
    """``--target``: compile every cell for a topology; 1 where one does not fit."""
    import jax

    from benchmarks import cells, target
    from vae_jax.config import UserError
    from vae_jax.tools import results

    figures = {}
    fit = True
    all_cells = make_cells(values, pairs)
    for cell in all_cells:
        if cell.row["error"]:
            raise UserError(cell.row["error"])
    for cell in all_cells:
        key = cell.row["key"]
        name = re.sub(r"\W+", "_", key)
        try:
            row = target.measure(cell.c, values.target)
        except jax.errors.JaxRuntimeError as error:  # as a rule, more memory than the chip has
            print(f"{key}: DOES NOT COMPILE: {cells.line(error)}", flush=True)
            fit = False
            figures[f"{name}_fits"] = results.figure(0, "1: yes")
            continue
        print(target.words(key, row), flush=True)
        fit = fit and row["fits"]
        figures |= target.figures(name, row)
    recorder.write(figures)
    return 0 if fit else 1


def run_sweep(values: flags.FlagValues, pairs: Pairs, recorder: Recorder) -> int:
    """Time every cell; 1 where ``--compare`` shows a regression or no cell could be measured."""
    from benchmarks import cells, machine, present

    peer = find_peer(values.peer) if values.peer else None
    all_cells = make_cells(values, pairs)
    if peer:  # before the first array: XLA would take most of an accelerator's memory
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    old = None
    notes = []
    if values.compare:
        keys = [cell.row["key"] for cell in all_cells]
        old, notes = present.read_old(values.compare, keys, values.config, pairs)
    with cells.fresh_cache():
        cells.build_all(all_cells, seconds=values.seconds, peer=peer)
        before = machine.measured()
        cells.take_turns(all_cells, rounds=values.rounds)
        measured = machine.better(before, machine.measured())
    rows = [cell.row for cell in all_cells]
    published = machine.published()
    summaries = [present.summary(row, measured, published) for row in rows]
    report = present.Measured(rows, summaries, measured, published)
    settings = recorder.settings()
    figures = present.figures(report, recorder.load)
    facts = describe(report, settings, recorder.command, peer)
    verdicts = present.compare(old["figures"], figures) if old else []
    print_report(report, facts, notes, verdicts)
    recorder.write(figures, settings)
    if values.out:
        present.write_lines(f"{values.out}l", facts, report)
    if values.page:
        from benchmarks import page

        title = f"Training step of {pathlib.Path(values.config).stem}"
        known = {name: text for name, text in facts.items() if text}
        print(f"page: {page.write(values.page, title, known, report, verdicts)}")
    return int(present.regressed(verdicts) or not any(summaries))


def describe(
    report: Any, settings: dict[str, str], command: str, peer: ModuleType | None
) -> dict[str, str]:
    """{name: text} of the machine, the code and the command."""
    from benchmarks import machine
    from vae_jax.tools import results

    return {
        "device": results.device(),
        "peaks": machine.words(report.measured),
        "versions": ", ".join(f"{k} {v}" for k, v in results.versions().items()),
        "peer": peer.describe() if peer else "",
        **settings,
        "commit": results.commit() or "",
        "command": command,
    }


def print_report(
    report: Any, facts: dict[str, str], notes: list[str], verdicts: list[tuple[str, str, str]]
) -> None:
    """Print the table, the facts, what failed in the peer, and the verdicts."""
    from benchmarks import present

    print(present.table(report))
    for name, text in facts.items():
        if text and name != "command":
            print(f"{name}: {text}")
    for row in report.rows:
        for name, reason in row.get("peer_errors", {}).items():
            print(f"{row['key']}: {name} failed: {reason}")
    for note in notes:
        print(f"compare: {note}")
    for cell, verdict, words in verdicts:
        print(f"{verdict:<7} {cell}  {words}")


def run(argv: list[str]) -> int:
    values, pairs = cli.parse(argv, define)
    recorder = Recorder(values)
    if values.startup or values.loop:
        return run_whole(values, pairs, recorder)
    if values.target:
        return run_target(values, pairs, recorder)
    return run_sweep(values, pairs, recorder)


if __name__ == "__main__":
    cli.main(run)
