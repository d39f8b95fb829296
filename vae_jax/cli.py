"""The command line: absl flags, a config page and its overrides; errors are one line, exit code 2."""

import contextlib
import os
import sys
import traceback

from absl import flags
from ml_collections import config_flags

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.mesh import hosts

PREFIX = "--config."
REPLICAS = "replicas."
HUGE_PAGES, TUNABLE = "VAE_JAX_HUGE_PAGES", "glibc.malloc.hugetlb=1"
KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"


def overrides(argv):
    """The words ``--config.field=value`` of a command line, as [(field, value)]."""
    found = []
    for word in argv:
        if word.startswith(PREFIX):
            field, equals, value = word[len(PREFIX) :].partition("=")
            if not equals:
                raise UserError(f"{field}: want {PREFIX}{field}=VALUE")
            found.append((field, value))
    return found


def apply(c, pairs):
    """Apply overrides in order; ``SECTION.name`` first, since it changes which fields there are, replicas last."""
    varied = [(f.removeprefix(REPLICAS), v) for f, v in pairs if f.startswith(REPLICAS)]
    pairs = [(f, v) for f, v in pairs if not f.startswith(REPLICAS)]
    for section in config_lib.CALLS:
        names = [v for f, v in pairs if f == f"{section}.name"]
        if names and names[-1] != c[section].name:
            c[section] = config_lib.call(section, names[-1])
    for field, value in pairs:
        _check_known(c, field, value)
    values = flags.FlagValues()
    argv = ["", *(f"{PREFIX}{field}={value}" for field, value in pairs)]
    config_flags.DEFINE_config_dict("config", c, flag_values=values, sys_argv=argv)
    for word in argv[1:]:
        try:
            values(["", word])
        except (flags.Error, TypeError, ValueError):
            field, _, value = word[len(PREFIX) :].partition("=")
            old = config_lib.flatten(c)[field]
            raise UserError(f"{field}={value}: want {type(old).__name__}, such as {old!r}") from None
    c = values.config if pairs else c
    for field, value in varied:
        config_lib.replicate(c, field, value.split(","))
    return c


def _check_known(c, field, value):
    flat = config_lib.flatten(c)
    if field not in flat:
        inside = [f for f in flat if f.startswith(field + ".")]
        if inside:
            raise UserError(f"{field}={value}: a section; set one of its fields, such as {inside[0]}")
        raise UserError(f"{field}={value}: unknown field; {config_lib.nearest(field, flat)}")


def parse(argv, define):
    """Parse a script's flags. ``define(flag_values)`` declares them; returns (flags, overrides).

    Wrong flags raise :class:`UserError`; ``--help`` prints and exits as absl does.
    """
    values = flags.FlagValues()
    define(values)
    flags.DEFINE_bool("help", False, "show this help", flag_values=values, short_name="h")
    pairs = overrides(argv[1:])
    try:
        rest = values([a for a in argv if not a.startswith(PREFIX)])
    except flags.Error as error:
        raise UserError(str(error).splitlines()[0]) from None
    if values.help:
        print(sys.modules["__main__"].__doc__ or "")
        print(values.main_module_help() or values.get_help())
        raise SystemExit(0)
    if len(rest) > 1:
        raise UserError(f"{rest[1]}: want flags only, as in --workdir={rest[1]}")
    return values, pairs


def _huge_pages():
    """Begin this program anew, once, with glibc asking the kernel for huge pages, where it gives them to who asks.

    XLA on CPU takes the temporaries of each call from glibc, which maps those above 32 MB anew: a fault for every 4 KB,
    a third of a step of configs/cifar10_vdvae_20k.py (results/performance.md). glibc reads GLIBC_TUNABLES when it
    starts, and drops it in a process with privileges, hence a variable of our own; VAE_JAX_HUGE_PAGES=no begins nothing
    anew. Neither does a script that another program runs (a debugger, a notebook, a test): the process is not its own.
    """
    script = sys.modules["__main__"]
    if script.__spec__:
        own = sys.orig_argv[1:3] == ["-m", script.__spec__.name.removesuffix(".__main__")]
    else:
        own = sys.orig_argv[1:2] == sys.argv[:1] and os.path.isfile(sys.argv[0])
    tunables = os.environ.get("GLIBC_TUNABLES", "")
    if not own or HUGE_PAGES in os.environ or "hugetlb" in tunables:
        return
    if "[madvise]" in _kernel():
        os.environ |= {HUGE_PAGES: "begun", "GLIBC_TUNABLES": f"{tunables}:{TUNABLE}".lstrip(":")}
        with contextlib.suppress(OSError):  # no way to begin anew: it goes on as it is
            os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _kernel():
    """What the kernel says of huge pages; '' where it says nothing."""
    try:
        with open(KERNEL) as file:
            return file.read()
    except OSError:
        return ""


def huge_pages():
    """Whether this process's large temporaries get huge pages, in words; :func:`main` asks for them."""
    kernel, asked = _kernel(), TUNABLE in os.environ.get("GLIBC_TUNABLES", "")
    return "always" if "[always]" in kernel else "asked for" if asked and "[madvise]" in kernel else "no"


def main(run):
    """Run a script's ``run(argv)``: a :class:`UserError` is one line on stderr and exit code 2."""
    _huge_pages()
    try:
        code = run(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = 130
    except SystemExit as done:
        code = done.code or 0
    except Exception as error:
        if not hosts.several():
            raise
        if hosts.lost(error):
            print(f"error: another process of this run is gone: {str(error).splitlines()[0]:.200}", file=sys.stderr)
        else:
            traceback.print_exc()
        code = 1  # and no waiting at exit, which would hang
    hosts.leave(code)
