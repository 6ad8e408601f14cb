"""The `tiffin` command. What needs no model answers without loading Keras."""

import argparse
import os
import sys

from tiffin.export import cli
from tiffin.export.errors import InputError, nearest
from tiffin.recipes.engine import registry

_DESCRIPTION = """\
classic deep learning in Keras 3: recipes to train, layers to reuse, checked files for a phone

  tiffin list                               every recipe and variant
  tiffin train NAME [options]               train, evaluate, report; --export for checked files
  tiffin export MODEL.keras DIR [options]   any trained Keras model to ONNX and TFLite files
  tiffin predict FILE IMAGE ...             classify images with a .keras, .onnx or .tflite file
  tiffin benchmark FILE ...                 latency, size and memory in the real runtimes

`tiffin COMMAND --help` explains a command; `tiffin train NAME --help` a recipe's options.
"""
_EXAMPLES = """\
examples:
  tiffin train mobilenet_v2 --export
  tiffin train resnet20 --data cifar10 --data-dir ~/tensorflow_datasets --epochs 10
  tiffin train resnet50 --data photos/ --weights runs/resnet/2026-01-31_12-00-00/model.keras

NAME is a variant or a recipe; `tiffin list` shows all, `tiffin train NAME --help` its options.
"""


def show_list() -> None:
    """Print every variant with its family, year, size and the paper's error."""
    rows = [("variant", "recipe", "task", "year", "parameters", "MACs", "paper's top-1 error, %")]
    for entry in registry.recipes().values():
        for name, row in entry.variants.items():
            error = "-" if row.error is None else f"{row.error:.2f} {row.data}"
            size = f"{row.parameters:,}", f"{row.macs / 1e6:,.0f} M"
            rows.append((name, entry.name, entry.task, row.year, *size, error))
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = [
            str(c).rjust(w) if i in (3, 4, 5) else str(c).ljust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        print("  ".join(cells).rstrip())


def train(arguments: list[str]) -> None:
    """Run a recipe by the name of its file or of one of its variants."""
    name = arguments[0] if arguments else None
    if name in (None, "-h", "--help"):
        print("usage: tiffin train NAME [options]\n\n" + _EXAMPLES, end="")
        if name is None:
            raise InputError("`tiffin train` needs the name of a recipe.")
        return
    entry = registry.find(name)
    from tiffin.export.runtime import quiet

    with quiet():
        module = entry.load()
        from tiffin.recipes.engine import training
    model = name if name in entry.variants else None
    training.main(module.Config, model, f"tiffin train {name}", arguments[1:])


def command(arguments: list[str]) -> None:
    """Do what one `tiffin` command line says."""
    parser = argparse.ArgumentParser(
        prog="tiffin",
        usage="tiffin COMMAND ...",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments[:1])
    if given.version:
        from importlib.metadata import version

        print(f"tiffin {version('tiffin')}")
    elif given.command is None:
        parser.print_help()
    elif given.command == "list":
        show_list()
    elif given.command == "train":
        train(arguments[1:])
    elif given.command in cli.COMMANDS:
        cli.parse(cli.COMMANDS[given.command], arguments[1:], f"tiffin {given.command}")
    else:
        known = ["list", "train", *cli.COMMANDS]
        raise InputError(f"There is no command '{given.command}'{nearest(given.command, known)}")


def main() -> None:
    """Entry point of the console command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    sys.exit(cli.run(lambda: command(sys.argv[1:])))
