"""The command line: absl flags, a config file, its overrides; errors are one line, exit code 2."""

import ast
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable

from absl import flags
from ml_collections import ConfigDict

from vae_jax import config as config_lib
from vae_jax.config import UserError
from vae_jax.config.fields import UNTYPED
from vae_jax.mesh import hosts

PREFIX = "--config."
REPLICAS = "replicas."
NAMES = {"data.hold_out"}  # tuples of places, or of words without quotes
LENGTHS = {"steps", "optim.warmup", "warmup.steps"}
TUNABLE = "glibc.malloc.hugetlb=1"
KERNEL = "/sys/kernel/mm/transparent_hugepage/enabled"
SWITCHES = {"true": True, "t": True, "1": True, "false": False, "f": False, "0": False}
Pairs = list[tuple[str, str]]  # of a field and the words of its value
Parsed = tuple[flags.FlagValues, Pairs]
EPIPE = 141  # 128 + SIGPIPE: what a shell reports of a program whose reader is gone


def overrides(argv: Iterable[str]) -> Pairs:
    """The words ``--config.field=value`` of a command line, as [(field, value)]."""
    pairs = []
    for word in argv:
        if word.startswith(PREFIX):
            field, equals, value = word[len(PREFIX) :].partition("=")
            if not equals:
                raise UserError(f"{field}: want {PREFIX}{field}=VALUE")
            pairs.append((field, value))
    return pairs


def _tuple(text: str, old: tuple) -> tuple:
    """A tuple from words such as (8,16), 8,16 or 8, with elements of the type that ``old`` has."""
    values = ast.literal_eval(text)
    if isinstance(values, list):
        values = tuple(values)
    if not isinstance(values, tuple):
        values = (values,)
    kinds = {type(v) for v in old}
    if kinds == {float}:
        values = tuple(float(v) for v in values)
    if kinds and not {type(v) for v in values} <= kinds:
        raise ValueError(f"want elements as in {old}")
    return values


def parse_value(text: str, old: object) -> object:
    """The value that the words of a flag mean for a field whose value is ``old``.

    A field that is None takes a number or a tuple, or else the words themselves.

    Raises:
      ValueError, SyntaxError, TypeError: the words have another type.
    """
    if isinstance(old, bool):
        if text.lower() not in SWITCHES:
            raise ValueError(text)
        return SWITCHES[text.lower()]
    if isinstance(old, tuple):
        return _tuple(text, old)
    if old is not None:
        return type(old)(text)
    try:
        return config_lib.plain(ast.literal_eval(text), "value")
    except (ValueError, SyntaxError, UserError):
        return SWITCHES.get(text, text)


def apply(c: ConfigDict, pairs: Pairs) -> ConfigDict:
    """A copy with overrides applied in order, so that the last of two for one field wins.

    ``SECTION.name`` goes first, since it changes which fields there are, and replicas go last. A
    warm-up longer than the run is shortened where a flag set either; a printed line says so.
    """
    c = c.copy_and_resolve_references()
    varied = [(f.removeprefix(REPLICAS), v) for f, v in pairs if f.startswith(REPLICAS)]
    pairs = [(f, v) for f, v in pairs if not f.startswith(REPLICAS)]
    for section in (*config_lib.CALLS, "optim"):
        names = [v for f, v in pairs if f == f"{section}.name"]
        if names and names[-1] != c[section].name:
            c[section] = config_lib.rename(section, c[section], names[-1])
    names = {f"{section}.name" for section in (*config_lib.CALLS, "optim")}
    for field, value in pairs:
        if field not in names:
            _set(c, field, value)
    if LENGTHS & {field for field, _ in pairs}:
        for line in config_lib.shorten_warmups(c):
            print(line)
    for field, value in varied:
        config_lib.replicate(c, field, value.split(","))
    return c


def _set(c: ConfigDict, field: str, text: str) -> None:
    flat = config_lib.flatten(c)
    if field not in flat:
        inside = [f for f in flat if f.startswith(field + ".")]
        if inside:
            wanted = f"set one of its fields, such as {inside[0]}"
            raise UserError(f"{field}={text}: a section; {wanted}")
        raise UserError(f"{field}={text}: unknown field; {config_lib.nearest(field, flat)}")
    old = flat[field]
    if field in NAMES:
        old = ()
    if field in UNTYPED:
        old = None
    try:
        value = parse_value(text, old)
    except (TypeError, ValueError, SyntaxError):
        if field in NAMES:
            words = text.strip("()").split(",")
            return config_lib.set_field(c, field, tuple(filter(None, map(str.strip, words))))
        wanted = f"want {type(old).__name__}, such as {old!r}"
        raise UserError(f"{field}={text}: {wanted}") from None
    config_lib.set_field(c, field, value)


def parse(argv: list[str], define: Callable[[flags.FlagValues], None]) -> Parsed:
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
    _expand_home(values)
    return values, pairs


def parse_fixed(argv: list[str], define: Callable[[flags.FlagValues], None]) -> flags.FlagValues:
    """The flags of a script that measures what is trained: ``--config.FIELD`` is an error."""
    values, pairs = parse(argv, define)
    if pairs:
        field = pairs[0][0]
        raise UserError(f"{field}: this command takes no --config.{field}; the config is fixed")
    return values


def _expand_home(values: flags.FlagValues) -> None:
    """``~/`` at the start of a flag is the home folder: a shell leaves it in --workdir=~/run."""
    for name in values:
        value = values[name].value
        if isinstance(value, str) and (value + "/").startswith("~/"):
            path = os.path.expanduser(value)
            if path == value:
                raise UserError(f"{name}={value}: no home folder here; want the path without ~")
            values[name].value = path


def define_files(values: flags.FlagValues) -> None:
    """Declare the flags that say where a run's files are now, and whether they may have changed.

    ``data_dir``, where TFDS data is, is each script's own.
    """
    places = {
        "data_path": "where the images of folder:, npz: or an own function are, if they moved",
        "code_path": "folder of the run's own losses and nets, if they moved",
    }
    for name, described in places.items():
        flags.DEFINE_string(name, "", described, flag_values=values)
    described = "go on though the run's data, or the text of its own loss or net, changed"
    flags.DEFINE_bool("accept_changed_data", False, described, flag_values=values)


def huge_pages() -> str:
    """Whether this process's large temporaries get huge pages, in words.

    XLA on CPU takes the temporaries of each call from glibc, which maps those above 32 MB anew: a
    page fault for every 4 KB, a third of a step of configs/cifar10_vdvae_20k.py
    (results/performance.md). glibc reads GLIBC_TUNABLES when a process starts, so that ``make`` and
    ``launch/`` set it.
    """
    try:
        with open(KERNEL) as file:
            kernel = file.read()
    except OSError:
        kernel = ""
    if "[always]" in kernel:
        return "always"
    if "[madvise]" not in kernel:
        return "no"
    if TUNABLE in os.environ.get("GLIBC_TUNABLES", ""):
        return "asked for"
    return f"no; GLIBC_TUNABLES={TUNABLE} before the command makes large models faster on a CPU"


def advise() -> None:
    """Print one line where huge pages would make this process faster."""
    words = huge_pages()
    if words.startswith("no;"):
        print(f"huge pages: {words}")


def use_writable_caches() -> None:
    """Where the home folder cannot be written, keep all caches below /tmp, and say so in one line.

    Those are ours, the compiler's, matplotlib's and fontconfig's: each would warn, or write to a
    folder of its own. To be called before they are imported.
    """
    home = os.path.expanduser("~")
    try:
        if not os.path.isabs(home):  # a container's user without a home folder
            raise OSError("no home folder")
        folder = os.path.join(home, ".cache", "vae_jax")
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except OSError:
        folder = os.path.join(tempfile.gettempdir(), f"vae_jax-{os.getuid()}")
    places = {
        "VAE_JAX_CACHE": folder,
        "XDG_CACHE_HOME": folder,
        "MPLCONFIGDIR": os.path.join(folder, "matplotlib"),
    }
    places = {name: path for name, path in places.items() if not os.environ.get(name)}
    if not places:
        return
    os.environ.update(places)
    for path in places.values():
        os.makedirs(path, exist_ok=True)
    print(f"home folder {home}: cannot be written; caches are in {folder}", file=sys.stderr)


def _without_platform(error: Exception) -> str:
    """One line for a JAX platform that is not there; '' for every other exception."""
    words = str(error).partition("\n")[0]
    if not isinstance(error, RuntimeError) or not words.startswith("Unable to initialize backend"):
        return ""
    platforms = os.environ.get("JAX_PLATFORMS", "")
    return f"JAX_PLATFORMS={platforms}: not on this machine ({words:.160}); want cpu, or unset it"


def _without_memory(error: Exception) -> str:
    """One line for an array that does not fit into memory; '' for every other exception."""
    words = str(error).partition("\n")[0]
    if not isinstance(error, MemoryError) and not words.startswith("RESOURCE_EXHAUSTED"):
        return ""
    want = "a smaller batch, latent or net, more accumulate, or remat=full; eval.py takes --batch"
    return f"not enough memory ({words:.160}); want {want}"


def use_any_output() -> None:
    """Let nothing that is printed raise: a closed stdout is nowhere, and letters that it lacks are
    escaped (of a class 日本 where the locale is C).
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115  for the whole process
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def drop_output() -> None:
    """Send what is still to be printed nowhere: the reader of stdout is gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _exit_code(run: Callable[[list[str]], int | None]) -> int | str | None:
    """Run a script's ``run(argv)``; what it raises becomes one line on stderr and an exit code."""
    try:
        use_any_output()
        use_writable_caches()
        code = run(sys.argv)
        sys.stdout.flush()
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        drop_output()
        return EPIPE
    except SystemExit as done:
        return done.code or 0
    except Exception as error:
        line = _without_platform(error) or _without_memory(error)
        if line:
            print(f"error: {line}", file=sys.stderr)
            return 2
        if not hosts.several():
            raise
        if hosts.lost(error):
            reason = str(error).splitlines()[0]
            print(f"error: another process of this run is gone: {reason:.200}", file=sys.stderr)
        else:
            traceback.print_exc()
        return 1  # and no waiting at exit, which would hang


def main(run: Callable[[list[str]], int | None]) -> None:
    """Run a script's ``run(argv)``: a :class:`UserError` is one line on stderr and exit code 2."""
    hosts.leave(_exit_code(run))
