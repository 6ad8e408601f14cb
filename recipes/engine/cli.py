"""The `tiffin` command. What needs no model answers without loading Keras."""

import argparse
import ast
import dataclasses
import os
import sys
from pathlib import Path

from tiffin.export import cli
from tiffin.export.errors import InputError, nearest
from tiffin.export.files import make_folder, write_text
from tiffin.recipes.engine import registry

_DESCRIPTION = """\
classic deep learning in Keras 3: recipes to train, layers to reuse, checked files for a phone

  tiffin list                               every recipe and variant
  tiffin summary NAME                       layers, parameters, MACs, memory, receptive field
  tiffin copy NAME FILE.py                  a recipe as a script of your own
  tiffin train NAME [options]               train, evaluate, report; --export for checked files
  tiffin study NAME [options]               what textbooks say, measured: claim, table, figure
  tiffin export MODEL.keras DIR [options]   any trained Keras model to ONNX and TFLite files
  tiffin predict FILE IMAGE ...             classify images with a .keras, .onnx or .tflite file
  tiffin benchmark FILE ...                 latency, size and memory in the real runtimes
  tiffin verify FILE IMAGE IMAGE            whether two pictures show the same, by an embedder
  tiffin gallery FILE FOLDER IMAGE ...      who it is, among the people of a folder
  tiffin generate FILE --prompt TEXT        what a language model goes on with
  tiffin translate FILE TEXT ...            what a translator makes of texts
  tiffin page DIR OUT_DIR                   a web page that runs an export's .onnx files

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
    """Print every variant with its family, year, size and the paper's error, and the studies."""
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
    print()
    width = max(map(len, ("study", *registry.studies())))
    print(f"{'study'.ljust(width)}  what it measures")
    for study in registry.studies().values():
        print(f"{study.name.ljust(width)}  {study.claim}")


@dataclasses.dataclass
class Summary:
    """Show what a network costs, layer by layer: parameters, MACs, memory, receptive field.

    examples:
      tiffin summary resnet50
      tiffin summary mobilenet_v2 --size 96 --classes 10 --options alpha=0.5
      tiffin summary runs/resnet/2026-01-31_12-00-00/model.keras
    """

    name: str
    """A variant (`tiffin list` shows all) or a .keras file."""
    size: int | None = None
    """Height and width of the input in pixels, or steps; default: the variant's own."""
    classes: int | None = None
    """Width of the last layer; default: that of the data in `tiffin list`."""
    options: tuple[str, ...] = ()
    """Arguments of the builder, such as alpha=0.5 features=True."""

    def run(self) -> None:
        """Print the table."""
        from tiffin.export.runtime import quiet

        with quiet():
            model = self._model()
            from tiffin.recipes.engine import summary

            text = summary.text(model)
        print(text)

    def _model(self):
        if self.name.endswith(".keras"):
            if self.size or self.classes or self.options:
                raise InputError("--size, --classes and --options are for variants, not for files.")
            from tiffin.export.runtime import read_keras

            return read_keras(Path(self.name))
        shape = registry.find(self.name).input_shape(self.size) if self.size else None
        given = {}
        for option in self.options:
            name, equals, value = option.partition("=")
            if not equals:
                raise InputError(f"--options {option}: write NAME=VALUE, such as alpha=0.5.")
            try:
                given[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                given[name] = value
        try:
            return registry.build(self.name, shape, self.classes, **given)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"{self.name} cannot be built so: {error}") from error


@dataclasses.dataclass
class Copy:
    """Copy a recipe or a study into a script of your own, which runs where it lies.

    examples:
      tiffin copy resnet50 my_net.py
      python my_net.py --data photos/ --export
    """

    name: str
    """A variant, a recipe or a study; `tiffin list` shows all."""
    file: Path
    """The new script."""

    def run(self) -> None:
        """Copy; an existing file stays as it is."""
        study = registry.studies().get(self.name)
        entry = study or registry.find(self.name)
        if self.file.suffix != ".py":
            raise InputError(f"{self.file} must end in .py: it is a Python script.")
        if self.file.exists():
            raise InputError(f"{self.file} exists already: name another file, or remove it first.")
        make_folder(self.file.parent)
        write_text(self.file, entry.path.read_text())
        kind = "study" if study else "recipe"
        print(f"{self.file} is the {kind} {entry.name}: change it, and run it by")
        model = f" --model {self.name}" if self.name != entry.name else ""
        print(f"  python {self.file}{model}")


COMMANDS = {"summary": Summary, "copy": Copy, **cli.COMMANDS}


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


def study(arguments: list[str]) -> None:
    """Run a study by its name."""
    name = arguments[0] if arguments else None
    if name in (None, "-h", "--help"):
        known = "".join(f"  {s.name:15}{s.title}\n" for s in registry.studies().values())
        print(f"usage: tiffin study NAME [options]\n\nstudies:\n{known}", end="")
        if name is None:
            raise InputError("`tiffin study` needs the name of a study.")
        return
    entry = registry.find_study(name)
    from tiffin.export.runtime import quiet

    with quiet():
        module = entry.load()
        from tiffin.recipes.engine.study import main as run
    run(module.Config, f"tiffin study {name}", arguments[1:])


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
    elif given.command == "study":
        study(arguments[1:])
    elif given.command in COMMANDS:
        cli.parse(COMMANDS[given.command], arguments[1:], f"tiffin {given.command}")
    else:
        known = ["list", "train", "study", *COMMANDS]
        raise InputError(f"There is no command '{given.command}'{nearest(given.command, known)}")


def main() -> None:
    """Entry point of the console command."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    # TensorFlow's own default, but for processors without AVX-512, where networks train up to
    # three times as fast with it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    sys.exit(cli.run(lambda: command(sys.argv[1:])))
