"""The command ``vae-jax``: the scripts of this project from any folder.

    vae-jax train --config=digits --workdir=runs/digits
    vae-jax eval --workdir=runs/digits --iw_k=1000

``--config=NAME`` is a file of yours, or else one of the config files that come with the package.
"""

import os
import runpy
import sys
from collections.abc import Sequence

import vae_jax
from vae_jax.config import UserError, nearest
from vae_jax.config.files import config_file, find_configs, root

SCRIPTS = ("train", "eval")
MODULES = {
    "study": "vae_jax.tools.study",
    "export": "vae_jax.tools.export",
    "predict": "vae_jax.tools.predict",
    "data": "vae_jax.data.__main__",
    "compare": "vae_jax.tools.compare",
    "explore": "vae_jax.tools.explore",
    "partition": "vae_jax.tools.partition",
    "launch": "vae_jax.tools.launch",
}
COMMANDS = (*SCRIPTS, *MODULES)
DEFAULTS = {"train": "digits", "partition": "digits", "study": "study_digits"}
USAGE = f"usage: vae-jax {'|'.join(COMMANDS)} [flags]; vae-jax COMMAND --help lists the flags"


def with_config(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command, where ``--config`` names the path of a file.

    Without ``--config`` it is the command's default. What follows ``--`` is another command's.

    Raises:
      UserError: there is no such file.
    """
    end = len(words)
    if "--" in words:
        end = words.index("--")
    paths = []
    known = False
    for place, word in enumerate(words):
        before = words[place - 1] if place else ""
        if place < end and word.startswith(("--config=", "-config=")):
            word = f"--config={config_file(word.partition('=')[2])}"
            known = True
        elif place < end and before in ("--config", "-config"):
            word = config_file(word)
            known = True
        paths.append(word)
    if command in DEFAULTS and not known:
        paths.insert(0, f"--config={config_file(DEFAULTS[command])}")
    return paths


def launched(words: Sequence[str]) -> list[str]:
    """The words of ``launch``; ``train`` or ``eval`` after ``--`` becomes the script's path."""
    if "--" not in words[:-1]:
        return list(words)
    at = words.index("--") + 1
    command = words[at].removesuffix(".py")
    if command not in SCRIPTS or os.path.isfile(words[at]):
        return list(words)
    script = os.path.join(root(), f"{command}.py")
    return [*words[:at], script, *with_config(command, words[at + 1 :])]


def dispatch(argv: Sequence[str]) -> None:
    """Run the command that ``argv[1]`` names as its script would run; it ends the process.

    Raises:
      UserError: there is no such command, or no such config file.
    """
    command = argv[1]
    if command not in COMMANDS:
        raise UserError(f"{command}: no such command; {nearest(command, COMMANDS)}")
    words = with_config(command, argv[2:])
    if command == "launch":
        words = launched(words)
    sys.argv = [f"{argv[0]} {command}", *words]
    find_configs()
    if command in SCRIPTS:
        runpy.run_path(os.path.join(root(), f"{command}.py"), run_name="__main__")
    else:
        runpy.run_module(MODULES[command], run_name="__main__", alter_sys=True)


def main() -> int:
    """The entry point; returns the exit code."""
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(USAGE)
        return 0 if len(sys.argv) > 1 else 2
    if sys.argv[1] == "--version":
        print(vae_jax.__version__)
        return 0
    try:
        dispatch(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
