"""Kill a training run at random moments, resume it, and compare it with one left alone.

    python -m benchmarks.kill_resume --times=20 --out=results/resume.json
    python -m benchmarks.kill_resume --times=30 --processes=2 --out=results/kills.json
    python -m benchmarks.kill_resume --times=30 --processes=4 --out=results/kills_4.json
    python -m benchmarks.kill_resume --times=10 --processes=2 --stop --out=results/stops.json

Every leaf of the final state must be equal, bit for bit. With ``--processes`` the run is several
processes under the launcher, and the signal goes to one of them, chosen at random. With ``--stop``
the signal is SIGTERM: all processes save the same step, and the same command goes on from it.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np

STEPS = 200
COMMAND = [
    "train.py",
    "--config=configs/digits.py",
    f"--config.steps={STEPS}",
    "--config.eval.every=20",
    "--config.log_every=20",
    "--config.optim.warmup=20",
    "--config.eval.iw_k=1",
    "--config.encoder.widths=(32,)",
    "--config.decoder.widths=(32,)",
]
LONGEST = 1800  # seconds from the last signal to the end of a run under the launcher

Path = str | pathlib.Path


# --- one run -------------------------------------------------------------------------------------


def start(workdir: Path, processes: int | None = None) -> subprocess.Popen:
    """The process of a run, or of the launcher of ``processes`` processes with two devices each."""
    launcher = []
    if processes:
        launcher = ["-m", "vae_jax.tools.launch", f"--processes={processes}"]
        launcher += ["--devices_per_process=2", "--"]
    argv = [sys.executable, *launcher, *COMMAND, f"--workdir={workdir}"]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finish(workdir: Path, processes: int | None = None) -> str:
    """Run to the end; the output. Raises a RuntimeError with it where the run fails."""
    process = start(workdir, processes)
    try:
        out, _ = process.communicate(timeout=600)
    finally:
        process.terminate()
    if process.returncode:
        raise RuntimeError(out)
    return out


def saved_steps(workdir: Path) -> list[int]:
    from vae_jax.mesh import store

    names = store.names(os.path.join(workdir, "manifests"))
    return [int(name.split(".")[0]) for name in names if name.endswith(".json")]


def last_saved(workdir: Path) -> int:
    return max(saved_steps(workdir), default=0)


def until_saved(
    workdir: Path,
    process: subprocess.Popen,
    before: int,
    rng: random.Random,
    longest: float = 0.5,
) -> None:
    """Wait until the run saves a step after ``before``, then up to ``longest`` seconds more."""
    limit = time.monotonic() + 120
    while last_saved(workdir) <= before and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.005)
    time.sleep(rng.uniform(0, longest))


def kill_once(workdir: Path, rng: random.Random) -> bool:
    """Start a run, and kill it a random moment after its first save; whether the kill hit it."""
    before = last_saved(workdir)
    process = start(workdir)
    until_saved(workdir, process, before, rng)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    return process.returncode == -signal.SIGKILL


# --- two runs ------------------------------------------------------------------------------------


def final_leaves(workdir: Path) -> dict[str, np.ndarray]:
    """Every leaf of the last checkpoint's state, read by Orbax without the code that wrote it."""
    import jax
    import orbax.checkpoint as ocp

    from vae_jax.mesh import store

    # This process may lack the devices that saved the state.
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    args = ocp.args.StandardRestore(fallback_sharding=sharding)
    with ocp.CheckpointManager(os.path.join(store.absolute(workdir), "checkpoints")) as manager:
        assert manager.latest_step() == STEPS
        state = manager.restore(STEPS, args=ocp.args.Composite(state=args))["state"]
    leaves = {}
    for path, value in jax.tree_util.tree_leaves_with_path(state):
        leaves[jax.tree_util.keystr(path)] = np.asarray(value)
    return leaves


def losses(workdir: Path) -> list[dict]:
    """The rows of metrics.jsonl without the wall clock: what a resumed log must equal."""
    from etils import epath

    from vae_jax.train import clock

    rows = []
    for line in epath.Path(workdir, "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        rows.append({k: v for k, v in row.items() if k not in (*clock.ROW, "time")})
    return rows


def equal_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.tobytes() == b.tobytes()


def compare(reference: Path, workdir: Path) -> tuple[list[str], bool]:
    """(leaves of the final state that differ, whether the logged rows are equal)."""
    want = final_leaves(reference)
    leaves = final_leaves(workdir)
    different = sorted(set(want) ^ set(leaves))
    for name in sorted(set(want) & set(leaves)):
        if not equal_bits(want[name], leaves[name]):
            different.append(name)
    return different, losses(reference) == losses(workdir)


def trial(
    reference: Path, folder: str, rng: random.Random, kills: int = 2
) -> tuple[int, list[str], bool]:
    """Kill one run up to ``kills`` times, then finish it: (kills that hit, *:func:`compare`)."""
    workdir = os.path.join(folder, "run")
    hits = sum(kill_once(workdir, rng) for _ in range(kills))
    finish(workdir)
    return hits, *compare(reference, workdir)


# --- several processes ---------------------------------------------------------------------------


def signal_one(
    launcher: subprocess.Popen, number: signal.Signals, rng: random.Random
) -> float | None:
    """Send a signal to a random process of a launcher; the time, or None where none runs."""
    with open(f"/proc/{launcher.pid}/task/{launcher.pid}/children") as file:
        children = [int(pid) for pid in file.read().split()]
    if launcher.poll() is not None or not children:
        return None
    os.kill(rng.choice(children), number)
    return time.monotonic()


class Output:
    """The lines of a process with the time of each, collected by a thread."""

    def __init__(self, process: subprocess.Popen):
        self.lines = []
        self.process = process
        self.thread = threading.Thread(target=self._read)
        self.thread.start()

    def _read(self) -> None:
        for line in self.process.stdout:
            self.lines.append((time.monotonic(), line))

    def wait(self) -> str:
        """The whole output, once the process has ended, which it must within half an hour."""
        try:
            self.process.wait(timeout=LONGEST)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        finally:
            self.process.terminate()
        self.thread.join()
        text = "".join(line for _, line in self.lines)
        if not ended:
            raise RuntimeError(f"no end within half an hour of the last signal:\n{text}")
        return text

    def seconds_to_step(self, moments: list[float | None]) -> list[float]:
        """Seconds from each moment to the next line about a step, where there is one."""
        steps = [at for at, line in self.lines if "] step" in line]
        seconds = []
        for moment in moments:
            if moment is not None:
                later = [at - moment for at in steps if at > moment]
                seconds += later[:1]
        return seconds


def check_stopped(workdir: str, code: int, text: str) -> int:
    """1 where a run was asked to stop and saved a good step, 0 where it was done before."""
    from vae_jax.mesh import hosts
    from vae_jax.train import checkpoint

    if code == 0:
        return 0
    stopped = re.search(r"stopped at step (\d+) and saved", text)
    if not stopped or code != hosts.STOPPED:
        raise RuntimeError(text)
    if checkpoint.fault(workdir, int(stopped[1])) is not None:
        raise RuntimeError(text)
    return 1


def launched(
    reference: Path, folder: str, rng: random.Random, processes: int, stop: bool, kills: int = 5
) -> tuple[int, list[str], bool, list[float]]:
    """Send signals to one job of several processes, and compare it with the reference.

    The launcher restarts a killed job by itself. A job that is asked to stop ends with
    ``hosts.STOPPED``, its last step saved; it is then finished by the same command.

    Returns:
      signals that hit, leaves that differ, whether the rows are equal, seconds from each signal to
      the next step.
    """
    workdir = os.path.join(folder, "run")
    process = start(workdir, processes)
    output = Output(process)
    number = signal.SIGKILL
    longest = 0.5
    if stop:
        # A run at its evaluation can be killed, but only one at its steps can be asked to stop.
        number = signal.SIGTERM
        longest = 0.1
        kills = 1
    moments = []
    for _ in range(kills):
        until_saved(workdir, process, last_saved(workdir), rng, longest)
        moments.append(signal_one(process, number, rng))
    text = output.wait()
    if stop:
        hits = check_stopped(workdir, process.returncode, text)
        finish(workdir, processes)
    else:
        hits = text.count("launch: a process ended with")
        if process.returncode:
            raise RuntimeError(text)
    return hits, *compare(reference, workdir), output.seconds_to_step(moments)


# --- the measurement -----------------------------------------------------------------------------


@dataclasses.dataclass
class Totals:
    """What all trials gave so far."""

    trials: int = 0
    hits: int = 0
    exact: int = 0
    restarts: list[float] = dataclasses.field(default_factory=list)  # seconds

    def figures(self, stop: bool) -> dict[str, dict]:
        from vae_jax.tools import results

        key = "stops" if stop else "kills"
        unit = "SIGTERM to one process" if stop else "kill -9"
        figures = {
            key: results.figure(self.hits, unit, n=self.trials),
            "bit_exact": results.figure(self.exact, "resumed bit for bit", n=self.hits),
        }
        if self.restarts and not stop:
            n = len(self.restarts)
            spread = statistics.stdev(self.restarts) if n > 1 else None
            median = statistics.median(self.restarts)
            figures["restart_seconds"] = results.figure(median, "s", sd=spread, n=n)
        return figures


def record(args: argparse.Namespace, began: float, totals: Totals) -> None:
    from vae_jax.tools import results

    command = f"python -m benchmarks.kill_resume --times={args.times}"
    if args.processes:
        command += f" --processes={args.processes}"
        if args.stop:
            command += " --stop"
        command += f" --out={args.out}"
    results.write(
        args.out,
        command=command,
        config=" ".join(COMMAND[1:]),
        seed=args.seed,
        seconds=time.time() - began,
        figures=totals.figures(args.stop),
    )


def one_trial(args: argparse.Namespace, reference: str, rng: random.Random, totals: Totals) -> None:
    """Add one trial, in a folder of its own, to the totals."""
    with tempfile.TemporaryDirectory() as folder:
        if args.processes:
            measured = launched(reference, folder, rng, args.processes, args.stop)
            hits, different, same_rows, restarts = measured
            totals.restarts += restarts
        else:
            hits, different, same_rows = trial(reference, folder, rng)
    totals.trials += 1
    totals.hits += hits
    if not different and same_rows:
        totals.exact += hits
    differences = f"{len(different)} leaves differ, log rows equal: {same_rows}"
    print(f"trial {totals.trials}: {hits} hits, {differences}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, help="under the launcher, two devices each")
    parser.add_argument("--stop", action="store_true", help="SIGTERM to one process, not kill -9")
    parser.add_argument("--out", default="results/resume.json")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    began = time.time()
    totals = Totals()
    with tempfile.TemporaryDirectory() as folder:
        reference = os.path.join(folder, "reference")
        finish(reference, args.processes)
        while totals.hits < args.times:
            one_trial(args, reference, rng, totals)
            record(args, began, totals)  # an interrupted measurement keeps what is done
    return 0 if totals.exact == totals.hits else 1


if __name__ == "__main__":
    sys.exit(main())
