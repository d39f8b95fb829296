"""Several processes as one run: joining them, agreeing, arrays that span them, leaving together.

Every process runs the same script. Process 0 writes what is written once; each has its part of every
checkpoint and of every batch. A run of one process passes through here untouched.
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

import numpy as np
from absl import flags

from vae_jax.config import UserError

STOPPED = 75  # exit code: stopped on request and saved, the same command goes on (EX_TEMPFAIL)
HEARTBEAT = 60  # seconds without a sign of life after which a process counts as dead, and the others end
_MESSAGE = 2**14  # bytes that process 0 can tell the others at once


def define(values):
    """The flags of a script that may run as several processes."""
    flags.DEFINE_string("coordinator", "", "HOST:PORT of process 0, where several processes meet", flag_values=values)
    flags.DEFINE_integer("processes", None, "how many processes make this run", lower_bound=1, flag_values=values)
    flags.DEFINE_integer("process", None, "which of them this is, from 0", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("wait", 300, "seconds to wait for the other processes", lower_bound=1, flag_values=values)


def cluster():
    """What says how this process and others make one run, for jax to read; None on a machine alone.

    Only variables that a launcher has set, or a TPU's device file, count: nothing is asked over the network.
    """
    env = os.environ
    if int(env.get("SLURM_NTASKS", 1)) > 1 and {"SLURM_STEP_NODELIST", "SLURM_PROCID"} <= env.keys():
        return "SLURM"
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        return "Open MPI"
    if "," in env.get("TPU_WORKER_HOSTNAMES", "") or "MEGASCALE_COORDINATOR_ADDRESS" in env:
        return "GKE"
    chips = glob.glob("/dev/accel[0-9]*") or glob.glob("/dev/vfio/[0-9]*")
    if chips and importlib.util.find_spec("libtpu") and (env.get("JAX_PLATFORMS") or "tpu").startswith("tpu"):
        return "Cloud TPU"
    return None


def join(values):
    """Join the other processes, before anything else asks jax for devices: flags first, else :func:`cluster`.

    A process that does not meet them in ``--wait`` seconds says so in one line and ends.

    Raises:
      UserError: the flags do not name a process of a run.
    """
    given = {name: values[name].value for name in ("coordinator", "processes", "process")}
    if any(v not in ("", None) for v in given.values()):
        if None in given.values() or not given["coordinator"].rpartition(":")[2].isdigit():
            raise UserError("coordinator: want all of --coordinator=HOST:PORT, --processes=N and --process=I")
        if given["process"] >= given["processes"]:
            raise UserError(f"process={given['process']}: want 0 to {given['processes'] - 1}, as --processes says")
        _initialize(values.wait, *given.values(), cluster_detection_method="deactivate")
        import jax

        if jax.process_count() != given["processes"]:  # the coordinator's number counts
            raise UserError(f"processes={given['processes']}: the coordinator has {jax.process_count()}; want the same")
    elif found := cluster():
        try:
            _initialize(values.wait)
        except (ValueError, OSError):
            if found != "Cloud TPU":  # of a single host, which has no others to meet and no list of them
                raise UserError(f"{found}: cannot tell the processes of this run; want --coordinator=…") from None


def _initialize(wait, coordinator=None, processes=None, process=None, **how):
    import jax

    def give_up():  # jax itself would abort, with a page of C++
        who = f"coordinator={coordinator}" if coordinator else f"{cluster()}"
        if coordinator and process and not _listens(coordinator):
            what = f"cannot be reached after {wait} s; want --coordinator=HOST:PORT of process 0"
        else:
            what = f"not all processes came in {wait} s; want {processes or 'all'}, each with another --process"
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
            shutdown_timeout_seconds=3600,  # process 0 may still write the report; a dead one is noticed before
            **how,
        )
        jax.devices()  # waits for every process's own
    finally:
        timer.cancel()


def _listens(coordinator):
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2).close()
    except OSError:
        return False
    return True


def several():
    """Whether this run was joined from processes (it may be one); looks at no device."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def first():
    """Whether this process writes what is written once."""
    import jax

    return jax.process_index() == 0


def agree(function):
    """``function()`` of process 0 alone, a JSON value, on every process; all wait for it.

    Raises:
      UserError: on process 0, what the function raised; the others end with it, silently.
    """
    import jax

    if jax.process_count() == 1:
        return function()
    from jax.experimental import multihost_utils

    found, error = None, None
    if first():
        try:
            found = function()
        except UserError as e:
            error = e
    text = json.dumps([found, error and str(error)]).encode()
    told = multihost_utils.broadcast_one_to_all(np.frombuffer(text.ljust(_MESSAGE)[:_MESSAGE], np.uint8))
    if error:
        raise error
    found, failed = json.loads(bytes(np.asarray(told, np.uint8)))
    if failed:
        raise SystemExit(2)
    return found


def leave(code):
    """End this process. After an error it does not wait for the others, which end as they notice."""
    if several() and code not in (0, STOPPED):
        sys.stdout.flush()
        sys.stderr.flush()
        if first():
            time.sleep(1)  # the others' link to each other ends with process 0: let them speak first
        os._exit(code)
    sys.exit(code)


def lost(error):
    """Whether an error is what a collective says when a peer died: Gloo's on CPU, NCCL's, or the coordinator's."""
    words = "gloo|nccl|peer|heartbeat|coordination service|unavailable|deadline_exceeded"
    return type(error).__name__ == "JaxRuntimeError" and re.search(words, str(error), re.IGNORECASE) is not None


def place(tree, sharding):
    """Host arrays that every process has whole, as global arrays; each device takes its part."""
    import jax

    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def put(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            return jax.device_put(x, sharding)
        x = np.asarray(x)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, tree)


def rows(sharding, size):
    """Which rows of a batch of this size this process's devices hold, in order."""
    parts = {index[0].indices(size) for index in sharding.addressable_devices_indices_map((size,)).values()}
    return np.concatenate([np.arange(*part) for part in sorted(parts)])


def assemble(tree, sharding):
    """Global arrays of which each process has its :func:`rows`."""
    import jax

    if jax.process_count() == 1:
        return tree  # the program takes host arrays as they are
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), tree)


def fetch(x):
    """An array as numpy, whole, on every process; all must ask for it."""
    if x.is_fully_addressable or x.is_fully_replicated:
        return np.asarray(x)
    from jax.experimental import multihost_utils

    return multihost_utils.process_allgather(x, tiled=True)
