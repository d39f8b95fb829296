"""Start a script as several processes of this machine, and start it again where one of them dies.

    python -m vae_jax.tools.launch --processes=2 --devices_per_process=2 -- train.py
    --workdir=runs/two

Each line of output has its process's number before it. When a process dies the others are ended,
and all begin again from the last checkpoint, --restarts times at most, after 1, 2, 4 ... seconds.
SIGTERM and Ctrl-C are passed
on: the run saves and ends. The exit code is the run's: 0 done, 2 bad input, 75 stopped and saved,
  others as they are.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import IO, Any

from absl import flags

from vae_jax import cli as flags_lib
from vae_jax.config import UserError
from vae_jax.mesh import hosts

GRACE = 10  # seconds for the others to end by themselves
LONGEST = 60  # seconds between two tries, at most


def define(values: flags.FlagValues) -> None:
    """Declare the launcher's flags."""
    flags.DEFINE_integer("processes", 1, "how many", lower_bound=1, flag_values=values)
    flags.DEFINE_integer(
        "devices_per_process", 1, "CPU devices, or GPUs, of each", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "restarts", 10, "times to begin again after a death", lower_bound=0, flag_values=values
    )


class Job:
    """The processes of one try."""

    def __init__(self, command: list[str], processes: int, devices: int) -> None:
        with socket.socket() as s:
            s.bind(("localhost", 0))
            coordinator = f"localhost:{s.getsockname()[1]}"
        self.processes = []
        self.readers = []
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(
            map(str, range(processes * devices))
        )
        for p in range(processes):
            mine = gpus.split(",")[p * devices : (p + 1) * devices]
            env = os.environ | {
                "JAX_NUM_CPU_DEVICES": str(devices),
                "CUDA_VISIBLE_DEVICES": ",".join(mine),
            }
            env |= {
                "PYTHONUNBUFFERED": "1",
                "JAX_COORDINATOR_BIND_ADDRESS": coordinator,
            }  # no other machine's business
            argv = [
                *command,
                f"--coordinator={coordinator}",
                f"--processes={processes}",
                f"--process={p}",
            ]
            one = subprocess.Popen(
                [sys.executable, *argv],
                env=env,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C comes to the launcher alone, which passes it on
            )
            self.processes.append(one)
            self.readers.append(
                threading.Thread(target=_copy, args=(one.stdout, f"[{p}] ".encode()), daemon=True)
            )
            self.readers[-1].start()

    def send(self, number: int) -> None:
        for one in self.processes:
            if one.poll() is None:
                one.send_signal(number)

    def wait(self) -> int:
        """The exit code of the first process that failed, or 0; by then none is left."""
        code = 0
        limit = None
        while any(one.poll() is None for one in self.processes):
            ended = [one.returncode for one in self.processes if one.returncode]
            if ended and not code:
                code = ended[0]
                limit = time.monotonic() + GRACE
            if limit and time.monotonic() > limit and code != hosts.STOPPED:
                self.send(signal.SIGKILL)
            time.sleep(0.05)
        for reader in self.readers:
            reader.join()
        return code or next((one.returncode for one in self.processes if one.returncode), 0)


def _copy(lines: IO[bytes], prefix: bytes) -> None:
    """Copy a process's output, or drop it: a full pipe would stop the run."""
    for line in lines:
        with contextlib.suppress(OSError):
            sys.stdout.buffer.write(prefix + line)
            sys.stdout.buffer.flush()


def run(argv: list[str]) -> int:
    """Start the processes, again where one dies; the exit code of the run."""
    if "--" not in argv or argv[-1] == "--":
        raise UserError("launch: want the script after --, as in -- train.py --workdir=runs/one")
    at = argv.index("--")
    values, _ = flags_lib.parse(argv[:at], define)
    command = argv[at + 1 :]
    asked = []
    job = None

    def ask(number: int, _: Any) -> None:
        asked.append(number)
        if job:
            job.send(signal.SIGKILL if len(asked) > 1 else signal.SIGTERM)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, ask)
    for trial in range(values.restarts + 1):
        if asked:
            return hosts.STOPPED
        began = time.monotonic()
        job = Job(command, values.processes, values.devices_per_process)
        code = job.wait()
        if code in (0, 2, hosts.STOPPED):
            return code
        if asked:
            return hosts.STOPPED  # before there was anything to save
        what = f"signal {-code}" if code < 0 else f"exit code {code}"
        if trial < values.restarts:
            pause = min(2**trial, LONGEST)
            lived = time.monotonic() - began
            again = f"all begin again in {pause} s ({trial + 1} of {values.restarts})"
            print(f"launch: a process ended with {what} after {lived:.0f} s; {again}", flush=True)
            time.sleep(pause)
    print(f"launch: gave up: {what}", flush=True)
    return code if code > 0 else 128 - code


if __name__ == "__main__":
    flags_lib.main(run)
