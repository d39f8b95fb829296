"""python -m vae_jax.data prepare NAME [--data_dir=DIR] [--manual_dir=DIR]

Write a data set where ``--config.data.name=NAME`` finds it. mnist, fashion_mnist, kmnist,
binarized_mnist, cifar10 and cifar10_20k need no TensorFlow; other names of the TFDS catalogue do,
for the preparing only.
"""

import argparse
from typing import NoReturn

from vae_jax import cli as flags
from vae_jax.config import UserError
from vae_jax.data.prepare import prepare


def main(argv: list[str]) -> None:
    def error(message: str) -> NoReturn:
        raise UserError(f"{message}; want: python -m vae_jax.data prepare NAME [--data_dir=DIR]")

    parser = argparse.ArgumentParser(
        "python -m vae_jax.data",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.error = error
    parser.add_argument("command", choices=["prepare"])
    parser.add_argument("name")
    parser.add_argument("--data_dir", default="", help="default: TFDS's own")
    parser.add_argument("--manual_dir", default="", help="original files, also unpacked or as .xz")
    args = parser.parse_args(argv[1:])
    print(f"{args.name} is in {prepare(args.name, args.data_dir, args.manual_dir)}")


if __name__ == "__main__":
    flags.main(main)
