"""Several processes as one run: joining them, agreeing, arrays that span them, leaving together.

Every process runs the same script. Process 0 writes what is written once; each has its part of
every checkpoint and of every batch. A run of one process passes through here untouched.
"""

import glob
import importlib.util
import json
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

from vae_jax.config import UserError

if TYPE_CHECKING:  # a script parses its flags before it imports jax
    from jax import Array
    from jax.sharding import Sharding

STOPPED = 75  # exit code: stopped on request and saved, the same command goes on (EX_TEMPFAIL)
HEARTBEAT = (
    60  # seconds without a sign of life after which a process counts as dead, and the others end
)
_MESSAGE = 2**14  # bytes that process 0 can tell the others at once


def define(values: flags.FlagValues) -> None:
    """The flags of a script that may run as several processes."""
    flags.DEFINE_string(
        "coordinator",
        "",
        "HOST:PORT of process 0, where several processes meet",
        flag_values=values,
    )
    flags.DEFINE_integer(
        "processes", None, "how many processes make this run", lower_bound=1, flag_values=values
    )
    flags.DEFINE_integer(
        "process", None, "which of them this is, from 0", lower_bound=0, flag_values=values
    )
    flags.DEFINE_integer(
        "wait", 300, "seconds to wait for the other processes", lower_bound=1, flag_values=values
    )


def cluster() -> str | None:
    """The launcher whose variables jax reads to join the processes of a run; None on a machine
    alone.

    Only variables that a launcher has set, or a TPU's device file, count: nothing is asked over the
    network.
    """
    env = os.environ
    if (
        int(env.get("SLURM_NTASKS", 1)) > 1
        and {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= env.keys()
    ):
        return "SLURM"
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return "GKE"
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if (
        chips
        and importlib.util.find_spec("libtpu")
        and (env.get("JAX_PLATFORMS") or "tpu").startswith("tpu")
    ):
        return "Cloud TPU"
    return None


def join(values: flags.FlagValues) -> None:
    """Join the other processes before jax lists its devices: by flags, else :func:`cluster`.

    A process that does not meet them in ``--wait`` seconds says so in one line and ends.

    Raises:
      UserError: the flags do not name a process of a run.
    """
    named = {name: values[name].value for name in ("coordinator", "processes", "process")}
    if any(value not in ("", None) for value in named.values()):
        if None in named.values() or not named["coordinator"].rpartition(":")[2].isdigit():
            raise UserError(
                "coordinator: want all of --coordinator=HOST:PORT, --processes=N and --process=I"
            )
        process = named["process"]
        processes = named["processes"]
        if process >= processes:
            want = f"want 0 to {processes - 1}, as --processes says"
            raise UserError(f"process={process}: {want}")
        _initialize(values.wait, *named.values(), cluster_detection_method="deactivate")
        import jax

        count = jax.process_count()
        if count != processes:  # the coordinator's number counts
            raise UserError(f"processes={processes}: the coordinator has {count}; want the same")
    elif launcher := cluster():
        try:
            _initialize(values.wait)
        except (ValueError, OSError):
            if launcher != "Cloud TPU":  # a single host has no others to meet and no list of them
                why = "cannot tell the processes of this run; want --coordinator=…"
                raise UserError(f"{launcher}: {why}") from None


def _initialize(
    wait: int,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
    **options: Any,
) -> None:
    import jax

    def give_up() -> None:  # jax itself would abort, with a page of C++
        who = f"coordinator={coordinator}" if coordinator else f"{cluster()}"
        if coordinator and process and not _listens(coordinator):
            what = f"cannot be reached after {wait} s; want --coordinator=HOST:PORT of process 0"
        else:
            want = f"want {processes or 'all'}, each with another --process"
            what = f"not all processes came in {wait} s; {want}"
        print(f"error: {who}: {what}", file=sys.stderr, flush=True)
        os._exit(1)

    timer = threading.Timer(wait, give_up)
    timer.daemon = True
    timer.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=wait + 60,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=3600,  # process 0 may write the report
            **options,
        )
        jax.devices()  # waits for every process's own
    finally:
        timer.cancel()


def _listens(coordinator: str) -> bool:
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError:
        return False
    return True


def several() -> bool:
    """Whether this run was joined from processes (it may be one); looks at no device."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def first() -> bool:
    """Whether this process writes what is written once."""
    import jax

    return jax.process_index() == 0


def agree(function: Callable[[], Any]) -> Any:
    """``function()`` of process 0 alone, a JSON value, on every process; all wait for it.

    Raises:
      UserError: on process 0, what the function raised; the others end with it, silently.
    """
    import jax

    if jax.process_count() == 1:
        return function()
    from jax.experimental import multihost_utils

    value = None
    error = None
    if first():
        try:
            value = function()
        except UserError as e:
            error = e
    text = json.dumps([value, error and str(error)]).encode()
    sent = np.frombuffer(text.ljust(_MESSAGE)[:_MESSAGE], np.uint8)
    message = multihost_utils.broadcast_one_to_all(sent)
    if error:
        raise error
    value, failed = json.loads(bytes(np.asarray(message, np.uint8)))
    if failed:
        raise SystemExit(2)
    return value


def leave(code: int) -> None:
    """End this process; after an error without waiting for the others, which notice it."""
    if several() and code not in (0, STOPPED):
        sys.stdout.flush()
        sys.stderr.flush()
        if first():
            time.sleep(
                1
            )  # the others' link to each other ends with process 0: let them speak first
        os._exit(code)
    sys.exit(code)


def lost(error: Exception) -> bool:
    """Whether a collective's peer died: an error of Gloo, NCCL or the coordinator."""
    words = "gloo|nccl|peer|heartbeat|coordination service|unavailable|deadline_exceeded"
    return (
        type(error).__name__ == "JaxRuntimeError"
        and re.search(words, str(error), re.IGNORECASE) is not None
    )


def place(tree: Any, sharding: "Sharding | Any") -> Any:
    """Host arrays that every process has whole, as global arrays; each device takes its part."""
    import jax

    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(x: Any) -> "Array":
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def rows(sharding: "Sharding", size: int) -> np.ndarray:
    """Which rows of a batch of this size this process's devices hold, in order."""
    indices = sharding.addressable_devices_indices_map((size,)).values()
    parts = {index[0].indices(size) for index in indices}
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def assemble(tree: Any, sharding: "Sharding") -> Any:
    """Global arrays of which each process has its :func:`rows`."""
    import jax

    if jax.process_count() == 1:
        return tree  # the program takes host arrays as they are

    def put(x: np.ndarray) -> "Array":
        return jax.make_array_from_process_local_data(sharding, x)

    return jax.tree.map(put, tree)


def fetch(x: "Array") -> np.ndarray:
    """An array as numpy, whole, on every process; all must ask for it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)
