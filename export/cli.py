"""The commands from `export` to `page`, and their ends.

This module is loaded before the command is known: numpy and the runtimes are imported inside.
"""

import collections
import contextlib
import dataclasses
import importlib
import io
import math
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tiffin.export.errors import InputError, missing, nearest

if TYPE_CHECKING:
    import numpy as np

    from tiffin.export.runtime import Runner, Tensor
    from tiffin.export.text import Vocabulary
    from tiffin.export.videos import Video

# (mean, std) of raw pixels 0-255: what was subtracted and divided by when the model was trained.
NORMALIZATIONS = {
    "imagenet": ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "tf": ((127.5,), (127.5,)),
    "unit": ((0.0,), (255.0,)),
}
_LOSS = math.log(1.03)  # of log-likelihood: 3 % of the perplexity
_CALIBRATION_IMAGES = 100
_EVALUATION_IMAGES = 500
_TOP = 5


@dataclasses.dataclass
class Export:
    """Turn a Keras model into ONNX and TFLite files that were run and compared with Keras.

    examples:
      tiffin export runs/resnet/2026-01-31_12-00-00 phone/ --calibration photos/
      tiffin export model.keras phone/ --calibration photos/ --normalization imagenet
      tiffin export model.keras phone/ --formats tflite --precisions fp32 fp16
      tiffin export runs/char_rnn/2026-01-31_12-00-00 phone/ --step --calibration text.txt
      tiffin export runs/seq2seq/2026-01-31_12-00-00 phone/ --length 40 --precisions fp32 fp16
    """

    model: Path
    """A .keras file, or the folder of a run."""
    directory: Path
    """Folder for the files; created if need be."""
    formats: tuple[Literal["onnx", "tflite"], ...] = ("onnx", "tflite")
    """File formats."""
    precisions: tuple[Literal["fp32", "fp16", "int8", "int8_dynamic"], ...] = (
        "fp32",
        "fp16",
        "int8",
    )
    """Precisions; int8 needs --calibration."""
    calibration: Path | None = None
    """Folder of images to calibrate with; subfolders named like labels also give accuracies. Of a
    language model a text file; of a translator one with a text, a tab, its translation a line."""
    labels: Path | None = None
    """Text file, one label a line; default: labels.txt beside the model."""
    input_dtype: Literal["uint8", "float32"] = "uint8"
    """Type of the pixels that the files take, 0-255 in both."""
    normalization: tuple[str, ...] = ()
    """What the model wants done to pixels: imagenet, tf, unit, or MEAN STD, 1 or 3 numbers each."""
    logits: bool = False
    """Return logits, not probabilities."""
    max_loss: float | None = None
    """How much accuracy fp16 and int8 may lose; a file that loses more is not handed out. Default:
    0.01; of models of texts 0.0296 nats of log-likelihood, 3 % of the perplexity."""
    step: bool = False
    """Of a recurrent model: export one step, with its states as inputs and outputs."""
    length: int | None = None
    """Of a model over sequences of any length: the one length that the files take; of a translator
    the most tokens of a source, with the end mark."""
    unroll: bool = False
    """With --length: repeat the steps in the file in the place of a loop, which int8 needs."""
    name: str | None = None
    """Stem of the file names; default: the model's own name."""
    explain: bool = False
    """Print layer by layer what int8 costs, and write the table to explain.csv."""
    imports: tuple[str, ...] = ()
    """Python modules that define the model's own layers."""

    def run(self) -> None:
        """Export, and print the table of files."""
        normalization = parse_normalization(self.normalization)
        path = _model_file(self.model, self.imports)
        from tiffin.export import detections, documents, proposals, runtime, text

        with runtime.quiet():
            from tiffin.export import metadata, stage
        vocabularies = text.beside(path)
        model = runtime.read_keras(path)
        given = {"formats": self.formats, "precisions": self.precisions, "name": self.name}
        allowed = _LOSS if vocabularies else 0.01
        allowed = allowed if self.max_loss is None else self.max_loss
        given |= {"explain": self.explain, "max_loss": allowed}
        if "source" in vocabularies:
            manifest = self._translator(model, vocabularies, given)
        else:
            labels = read_label_file(self.labels) if self.labels else find_labels(path)
            if labels and not self.labels:
                print(f"Labels: {path.parent / metadata.LABELS_FILE}")
            model = self._shaped(model)
            runner = runtime.of_model(model)
            if vocabularies:
                given |= self._language(vocabularies[""])
            elif self.calibration:
                calibration, given["evaluation"] = _read_calibration(
                    self.calibration, labels, _image_input(runner)
                )
                given["calibration"] = proposals.given(runner.inputs, calibration)
            task = "classification" if labels else None
            task = "detection" if detections.detects(runner) else task
            manifest = stage.export(
                model,
                self.directory,
                labels=labels,
                input_dtype=self.input_dtype,
                normalization=normalization,
                logits=self.logits,
                **{"task": task} | given,
            )
        print(documents.files_table(manifest))
        print(f"\nThe files and how to use them: {self.directory / documents.CARD}")

    def _language(self, vocabulary: "Vocabulary") -> dict:
        """Return what the stage is told of a language model."""
        from tiffin.export import recurrent, text

        given = {"vocabulary": vocabulary.describe(), "task": "language"}
        if not self.calibration:
            return given
        steps = {} if self.length is None else {"steps": self.length}
        tokens = vocabulary.encode(_read_text(self.calibration))
        if len(tokens) < 4:
            raise InputError(f"{self.calibration} is too short: give a text of a page or more.")
        half = len(tokens) // 2
        return given | {
            "calibration": text.excerpts(tokens[:half], **steps)[0],
            "evaluation": text.excerpts(tokens[half:], **steps),
            "metric": recurrent.log_likelihood,
        }

    def _translator(self, model, vocabularies: "dict[str, Vocabulary]", given: dict) -> dict:
        """Export a translator; returns the manifest."""
        from tiffin.export import text, translation
        from tiffin.export.translator import export_translator

        if self.length is None or self.length < 2:
            raise InputError(
                "A translator leaves for sources of one length: say with --length how many tokens, "
                "the end mark included, such as --length 40."
            )
        if self.calibration:
            lines = [line for line in _read_text(self.calibration).split("\n") if line.strip()]
            pairs = [line.split("\t") for line in lines]
            wrong = [line for line, pair in zip(lines, pairs, strict=True) if len(pair) != 2]
            if wrong or len(pairs) < 2:
                line = f"the line {wrong[0][:60]!r}" if wrong else "no two lines"
                raise InputError(
                    f"{self.calibration} has {line}: a translator is calibrated with lines of a "
                    "text, a tab and its translation, two or more."
                )
            of = vocabularies, self.length
            given["calibration"] = translation.examples(pairs[::2], *of, padding=False)[0]
            given["evaluation"] = translation.examples(pairs[1::2], *of)
        described = text.describe(vocabularies)
        return export_translator(
            model, self.directory, length=self.length, vocabulary=described, **given
        )

    def _shaped(self, model):
        """Return the model, or what of a recurrent one was asked for."""
        from tiffin.export.steps import step_model, with_length

        if self.length is not None and self.length < 1:
            raise InputError(f"--length {self.length}: it must be at least 1.")
        if self.step and self.length is not None:
            raise InputError("--step is for one step, --length for many: give one of them.")
        if self.unroll and self.length is None:
            raise InputError("--unroll needs to know how often: give --length, too.")
        if self.step:
            return step_model(model)
        if self.length is not None:
            return with_length(model, self.length, self.unroll)
        return model


@dataclasses.dataclass
class Predict:
    """Classify images, or detect objects in them, with a .keras, .onnx or .tflite file.

    A detector also takes videos. Its boxes are drawn on the images and the frames, which are
    written to --output.

    examples:
      tiffin predict phone/resnet20_int8.tflite cat.jpg dog.jpg
      tiffin predict runs/ssd/2026-01-31_12-00-00 photos/ --score 0.5
      tiffin predict phone/ssd_small_int8.tflite street.mp4 --output drawn/
    """

    file: Path
    """A .keras, .onnx or .tflite file, or the folder of a run."""
    images: tuple[Path, ...]
    """Images, for a detector also videos (.mp4, .avi, .mov, .mkv, .webm), or folders of them."""
    score: float = 0.3
    """Of a detector: least score of what is shown."""
    output: Path = Path("detections")
    """Of a detector: folder for the images and videos with boxes drawn on them."""
    imports: tuple[str, ...] = ()
    """Python modules that define the model's own layers (.keras only)."""

    def run(self) -> None:
        """Print the five most probable classes, or the objects, of each image."""
        from tiffin.export import detections, images, runtime, videos

        if not 0 <= self.score <= 1:
            raise InputError(f"--score {self.score}: it is a share, from 0 to 1.")
        paths = list(_image_files(self.images, images.SUFFIXES | videos.SUFFIXES))
        file = _model_file(self.file, self.imports)
        runner = runtime.load(file)
        tensor, labels = _image_input(runner), find_labels(file)
        detector = detections.detects(runner)
        drawn = self._drawn(paths) if detector else {}
        failed = []
        for path in paths:
            try:
                if path.suffix.lower() in videos.SUFFIXES:
                    if not detector:
                        raise InputError(
                            f"{path} is a video, and {runner} is no detector: name images."
                        )
                    image = videos.Video(path)
                else:
                    image = images.load_image(path) if detector else _read_image(path, tensor)
            except InputError as error:
                failed.append(error)
                if len(paths) > 1:
                    print(f"Skipped: {error}", file=sys.stderr)
                continue
            print(path)
            if isinstance(image, videos.Video):
                self._detect_in_frames(runner, image, labels, drawn[path])
            elif detector:
                self._detect(runner, image, labels, drawn[path])
            else:
                self._classify(runner, image, labels)
        if len(failed) == len(paths):
            raise (
                failed[0]
                if len(paths) == 1
                else InputError(f"None of the {len(paths)} images could be read.")
            )

    def _classify(self, runner: "Runner", image: "np.ndarray", labels) -> None:
        import numpy as np

        scores = probabilities(runner(image[None]), runner)[0]
        if labels and len(labels) != len(scores):
            raise InputError(
                f"{runner} has {len(scores)} classes, but there are {len(labels)} labels: "
                "put the labels.txt that belongs to it beside it."
            )
        for index in np.argsort(-scores, kind="stable")[:_TOP]:
            print(f"  {scores[index]:6.1%}  {labels[index] if labels else f'class {index}'}")

    def _detect(self, runner: "Runner", image: "np.ndarray", labels, drawn: Path) -> None:
        from tiffin.export import detections

        found = detections.find(runner, image, self.score)
        for one in found:
            at = ", ".join(f"{value:.0f}" for value in one.box)
            print(f"  {one.score:6.1%}  {detections.name(one, labels)}  (y1, x1, y2, x2: {at})")
        detections.draw(image, found, labels, drawn)
        print(f"  {len(found)} found, drawn in {drawn}")

    def _detect_in_frames(self, runner: "Runner", video: "Video", labels, drawn: Path) -> None:
        from tqdm import tqdm

        from tiffin.export import detections
        from tiffin.export.videos import writing_video

        kinds, frames, start = collections.Counter(), 0, time.perf_counter()
        bar = tqdm(video, total=video.count or None, unit=" frames", leave=False, disable=None)
        with bar, writing_video(drawn, video.size, video.rate) as write:
            for frame in bar:
                found = detections.find(runner, frame, self.score)
                kinds.update(detections.name(one, labels) for one in found)
                write(detections.drawn(frame, found, labels))
                frames += 1
        rate = frames / (time.perf_counter() - start)
        said = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "nothing"
        print(f"  {frames} frames, {rate:.1f} a second, drawn in {drawn}; found in all: {said}")

    def _drawn(self, paths: Sequence[Path]) -> dict[Path, Path]:
        """Return where each picture goes: below --output as they lie below what they share.

        Raises:
            InputError: one of them would be overwritten.
        """
        from tiffin.export.videos import SUFFIXES

        top = os.path.commonpath([path.resolve().parent for path in paths])
        result = {}
        for path in paths:
            place = self.output / path.resolve().relative_to(top)
            # Beside cat.jpg there may be a cat.png.
            ending = ".mp4" if place.suffix.lower() in SUFFIXES else ".png"
            ended = place if place.suffix == ending else place.with_name(f"{place.name}{ending}")
            if ended.resolve() == path.resolve():
                raise InputError(f"{path} would be overwritten: name another folder with --output.")
            result[path] = ended
        return result


@dataclasses.dataclass
class Benchmark:
    """Measure latency, size and peak memory in the real runtimes, each file in a fresh process.

    examples:
      tiffin benchmark phone/
      tiffin benchmark a.onnx b.tflite --threads 1 2 4 --seconds 3
    """

    files: tuple[Path, ...]
    """Model files, or folders of them."""
    threads: tuple[int, ...] = (1,)
    """Threads that one call may use; one line of the table for each number."""
    seconds: float = 1.0
    """For how long to measure each."""
    imports: tuple[str, ...] = ()
    """Python modules that define a model's own layers (.keras only)."""

    def run(self) -> None:
        """Measure one file after the other, and print one table."""
        if not self.files:
            raise InputError("Name the files to measure, or a folder that holds them.")
        if not self.threads or min(self.threads) < 1 or not self.seconds > 0:
            raise InputError("--threads and --seconds must be positive numbers.")
        from tiffin.export import benchmark

        rows, failed = [], []
        for path in benchmark.find_models(self.files):
            imports = ("tiffin.layers", *self.imports) if path.suffix == ".keras" else ()
            try:
                for threads in self.threads:
                    result = benchmark.measure(path, threads, self.seconds, imports=imports)
                    rows.append((path, result))
            except InputError as error:
                failed.append(error)
        if rows:
            benchmark.show(rows)
        if failed:
            raise InputError(" ".join(map(str, failed)))


@dataclasses.dataclass
class Verify:
    """Say whether two pictures show the same: by an embedder, .keras, .onnx or .tflite.

    examples:
      tiffin verify phone/arcface_r18_int8.tflite anna1.jpg anna2.jpg
      tiffin verify runs/arcface/2026-01-31_12-00-00 a.jpg b.jpg --threshold 1.1
    """

    file: Path
    """A .keras, .onnx or .tflite file, or the folder of a run."""
    first: Path
    """A picture."""
    second: Path
    """Another one."""
    threshold: float | None = None
    """Distance up to which they count as the same, 0 to 2; default: the manifest's."""
    imports: tuple[str, ...] = ()
    """Python modules that define the model's own layers (.keras only)."""

    def run(self) -> None:
        """Print the distance and the decision."""
        import numpy as np

        from tiffin.export import similarity

        embedder = _Embedder(self.file, self.threshold, self.imports)
        first, second = (embedder.picture(path) for path in (self.first, self.second))
        first, second = similarity.embed(embedder.runner, np.stack([first, second]))
        distance = float(np.linalg.norm(first - second))
        said = "the same" if distance <= embedder.threshold else "different"
        print(f"distance {distance:.4f}, threshold {embedder.threshold:.4f}: {said}")


@dataclasses.dataclass
class Gallery:
    """Identify pictures among those enrolled: a folder with a folder of pictures a person.

    examples:
      tiffin gallery phone/arcface_r18_int8.tflite people/ door.jpg
      tiffin gallery phone/arcface_r18_int8.tflite people/ --save people.npz
      tiffin gallery phone/arcface_r18_int8.tflite people.npz door1.jpg door2.jpg
    """

    file: Path
    """A .keras, .onnx or .tflite file, or the folder of a run."""
    enrolled: Path
    """A folder of folders of pictures, or the file of an earlier --save."""
    images: tuple[Path, ...]
    """Pictures to identify, or folders of them; none to --save only."""
    save: Path | None = None
    """Write what was enrolled to this .npz file."""
    threshold: float | None = None
    """Distance beyond which nobody is recognised, 0 to 2; default: the manifest's."""
    imports: tuple[str, ...] = ()
    """Python modules that define the model's own layers (.keras only)."""

    def run(self) -> None:
        """Print who is nearest to each picture, and whether near enough."""
        import numpy as np

        from tiffin.export import similarity

        if not self.images and not self.save:
            raise InputError("Name the pictures to identify, or a file to --save the gallery in.")
        embedder = _Embedder(self.file, self.threshold, self.imports)
        if self.enrolled.is_dir():
            names, known = self._enrol(embedder)
        else:
            names, known = similarity.load_gallery(self.enrolled, embedder.file)
        print(f"{len(set(names))} enrolled by {len(names)} pictures")
        if self.save:
            similarity.save_gallery(self.save, names, known, embedder.file)
        for path, embedding in embedder.embeddings(
            _image_files(self.images) if self.images else ()
        ):
            distances = np.linalg.norm(known - embedding, axis=1)
            nearest_one = int(distances.argmin())
            who = names[nearest_one] if distances[nearest_one] <= embedder.threshold else "unknown"
            print(f"{path}: {who} (nearest {names[nearest_one]}, {distances[nearest_one]:.4f})")

    def _enrol(self, embedder: "_Embedder"):
        import numpy as np

        paths = [path for path in _image_files([self.enrolled]) if path.parent != self.enrolled]
        found = list(embedder.embeddings(paths))
        if not found:
            raise InputError(
                f"{self.enrolled} has no readable pictures in folders: one folder a person, such "
                "as people/anna/1.jpg."
            )
        names = [path.parent.relative_to(self.enrolled).as_posix() for path, _ in found]
        return names, np.stack([embedding for _, embedding in found])


class _Embedder:
    """A model that embeds pictures, and the distance up to which they are the same."""

    def __init__(self, file: Path, threshold: float | None, imports: Sequence[str]):
        from tiffin.export import runtime, similarity

        if threshold is not None and not 0 <= threshold <= 2:
            raise InputError(f"--threshold {threshold}: it is a distance from 0 to 2.")
        self.file = _model_file(file, imports)
        self.runner = runtime.load(self.file)
        self.tensor = _image_input(self.runner)
        self.threshold = similarity.find_threshold(self.file) if threshold is None else threshold

    def picture(self, path: Path) -> "np.ndarray":
        return _read_image(path, self.tensor)

    def embeddings(self, paths) -> "Iterator[tuple[Path, np.ndarray]]":
        """Yield each readable picture's path and embedding; a bad one is named and left out."""
        from tiffin.export import similarity

        for path in paths:
            try:
                image = self.picture(path)
            except InputError as error:
                print(f"Skipped: {error}", file=sys.stderr)
                continue
            yield path, similarity.embed(self.runner, image[None])[0]


@dataclasses.dataclass
class Generate:
    """Let a language model write: from a .keras, .onnx or .tflite file.

    examples:
      tiffin generate runs/char_rnn/2026-01-31_12-00-00 --prompt "To be"
      tiffin generate phone/char_lstm_int8.tflite --prompt "To be" --temperature 0.7 --top-k 10
    """

    file: Path
    """A .keras, .onnx or .tflite file beside its vocabulary.json, or the folder of a run."""
    prompt: str = "\n"
    """What it goes on from; a line break by default."""
    length: int = 500
    """How many tokens to write."""
    temperature: float = 0.8
    """Below 1 the likely gains, at 0 only the likeliest is written."""
    top_k: int | None = None
    """Choose among so many of the likeliest only."""
    seed: int | None = None
    """Of the chance, for the same text once more."""
    imports: tuple[str, ...] = ()
    """Python modules that define the model's own layers (.keras only)."""

    def run(self) -> None:
        """Print the prompt and what follows, token by token."""
        if not 0 <= self.temperature < math.inf:
            raise InputError(f"--temperature {self.temperature}: it must be at least 0.")
        if self.length < 1 or (self.top_k is not None and self.top_k < 1):
            raise InputError("--length and --top-k must be at least 1.")
        if not self.prompt:
            raise InputError("--prompt is empty: give at least a letter, or leave it out.")
        from tiffin.export import recurrent, runtime, text

        file = _model_file(self.file, self.imports)
        vocabulary = text.find_vocabulary(file)
        prompt = vocabulary.encode(self.prompt)
        if file.suffix == ".keras":
            from tiffin.export.steps import step_model

            run = runtime.of_model(step_model(runtime.read_keras(file)))
        else:
            run = runtime.load(file)
        states = recurrent.of_language(run)
        seed = random.randrange(2**32) if self.seed is None else self.seed
        tokens = [*prompt]
        shown = vocabulary.decode(tokens)
        print(shown, end="", flush=True)
        for token in text.generate(
            run, states, prompt, self.length, self.temperature, self.top_k, seed
        ):
            tokens.append(token)
            said = vocabulary.decode(tokens)
            print(said[len(shown) :], end="", flush=True)
            shown = said
        print()


@dataclasses.dataclass
class Translate:
    """Translate texts: by a .keras, .onnx or .tflite file.

    examples:
      tiffin translate runs/seq2seq/2026-01-31_12-00-00 "3rd of May, 1979"
      tiffin translate phone/seq2seq_luong_decoder_int8.tflite "A man is sleeping." --beam 1
      tiffin translate phone/seq2seq_luong_decoder_fp32.onnx < english.txt > german.txt
    """

    file: Path
    """A .keras file beside its vocabulary.json, the folder of a run, or one of the two files,
    encoder or decoder, of an export."""
    texts: tuple[str, ...]
    """What to translate; without any, each line of the standard input."""
    beam: int = 5
    """Translations that are followed side by side; 1: the likeliest word at every step."""
    length_penalty: float = 1.0
    """Exponent: 0 leaves the likelihood alone, which favours short translations."""
    scores: bool = False
    """Print the log-probability of each translation before it, and a tab."""
    imports: tuple[str, ...] = ()
    """Python modules that define the model's own layers (.keras only)."""

    def run(self) -> None:
        """Print a line for each text."""
        if self.beam < 1:
            raise InputError(f"--beam {self.beam}: it must be at least 1.")
        if not 0 <= self.length_penalty < math.inf:
            raise InputError(f"--length-penalty {self.length_penalty}: it must not be negative.")
        from tiffin.export import translation

        translator = translation.load(_model_file(self.file, self.imports))
        for text in self.texts or sys.stdin:
            (said,) = translator.translate([text.strip()], self.beam, self.length_penalty)
            score = f"{said.hypothesis.score:.4f}\t" if self.scores else ""
            print(f"{score}{said.text}", flush=True)


@dataclasses.dataclass
class Page:
    """Make a web page that runs an export in the visitor's own browser, a phone's included.

    Any web server can host the folder; nothing that a visitor gives it is sent anywhere.

    examples:
      tiffin page phone/ site/
      tiffin page phone/ --serve
      tiffin page phone/ site/ --runtime node_modules/onnxruntime-web/dist
    """

    export: Path
    """Folder of an export, with its manifest.json and .onnx files."""
    output: tuple[()] | tuple[Path]
    """Folder for the page: new, empty, or of an older page; with --serve it may be left out."""
    runtime: Path | None = None
    """Folder dist of the npm package onnxruntime-web, which is copied beside the page, so that it
    needs no network; default: the page fetches it, checked, from cdn.jsdelivr.net."""
    serve: bool = False
    """Show the page: serve it to this machine until Ctrl-C."""
    port: int = 8000
    """Of --serve; 0: any that is free."""

    def run(self) -> None:
        """Write the page, and serve it where that was asked for."""
        if not 0 <= self.port < 65536:
            raise InputError(f"--port {self.port}: it is a number from 0 to 65535.")
        if not self.output and not self.serve:
            raise InputError("Name a folder for the page, or give --serve to look at it.")
        from tiffin.export import page

        with contextlib.ExitStack() as stack:
            if self.output:
                (folder,) = self.output
            else:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="tiffin-")))
            manifest = page.write(self.export, folder, self.runtime)
            size = sum(entry["bytes"] for entry in manifest["files"]) / 1e6
            count = len(manifest["files"])
            print(f"{folder}: {manifest['name']}, {count} .onnx files, {size:.2f} MB")
            if not self.serve:
                print(f"See it by: python -m http.server --directory {folder}")
                return
            with page.server(folder, self.port) as server, contextlib.suppress(KeyboardInterrupt):
                address = f"http://127.0.0.1:{server.server_port}/"
                print(f"The page: {address} (Ctrl-C ends it)", flush=True)
                server.serve_forever()


COMMANDS = {
    "export": Export,
    "predict": Predict,
    "benchmark": Benchmark,
    "verify": Verify,
    "gallery": Gallery,
    "generate": Generate,
    "translate": Translate,
    "page": Page,
}


def parse(kind: type, arguments: Sequence[str], prog: str) -> None:
    """Read a command's arguments and run it; a wrong option exits with status 2.

    Args:
        kind: a dataclass with a method `run`; fields without default are positional.
        arguments: the words after the command's name.
        prog: how the command is called, for the help.
    """
    import tyro

    markers = (
        tyro.conf.PositionalRequiredArgs,
        tyro.conf.PositionalMetavarFromFieldName,
        tyro.conf.FlagCreatePairsOff,
        tyro.conf.DisallowNone,
    )
    tyro.cli(kind, args=arguments, prog=prog, config=markers).run()


def run(command: Callable[[], object]) -> int:
    """Run a command and return its exit status: 0, 2 for a user's mistake, 130 for Ctrl-C.

    A mistake is told in one paragraph on standard error.
    """
    # A name from a file may hold what no encoding has, such as half a pair of surrogates.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        command()
        sys.stdout.flush()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        if error.name not in ("jax", "torch"):
            raise
        print(f"error: {missing(error, 'The backend that Keras is set to')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # Whoever reads, such as `head`, has seen enough; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def main() -> None:
    """`python -m tiffin.export COMMAND ...`: the commands without the recipes."""
    sys.exit(run(lambda: _command("python -m tiffin.export", sys.argv[1:])))


def _command(prog: str, arguments: Sequence[str]) -> None:
    name, *rest = arguments or ["--help"]
    if name in COMMANDS:
        parse(COMMANDS[name], rest, f"{prog} {name}")
    elif name in ("-h", "--help"):
        for command, kind in COMMANDS.items():
            print(f"{prog} {command:10} {kind.__doc__.splitlines()[0]}")
        print(f"\n`{prog} COMMAND --help` explains each.")
    else:
        raise InputError(f"There is no command '{name}'{nearest(name, COMMANDS)}")


def parse_normalization(words: Sequence[str]) -> tuple[tuple[float, ...], ...] | None:
    """Read `--normalization`: a preset, or mean and standard deviation of raw pixels 0-255.

    Args:
        words: nothing, a name of `NORMALIZATIONS`, or 2 or 6 numbers, the means first.

    Returns:
        `(mean, std)`, each of 1 or 3 numbers, or None for nothing.

    Raises:
        InputError: another name or count, or a standard deviation that is not positive.
    """
    if not words:
        return None
    if len(words) == 1 and words[0] in NORMALIZATIONS:
        return NORMALIZATIONS[words[0]]
    try:
        numbers = tuple(float(word) for word in words)
    except ValueError as error:
        raise InputError(
            f"--normalization {' '.join(words)} is unknown{nearest(words[0], NORMALIZATIONS)}"
        ) from error
    half = len(numbers) // 2
    finite = all(map(math.isfinite, numbers))
    if len(numbers) not in (2, 6) or not finite or min(numbers[half:]) <= 0:
        raise InputError(
            f"--normalization takes a mean and a positive standard deviation in pixels, one number "
            f"each or one a channel (2 or 6 numbers), not {' '.join(words)}."
        )
    return numbers[:half], numbers[half:]


def _read_text(path: Path, what: str = "UTF-8 text") -> str:
    """Return the content of a UTF-8 file.

    Raises:
        InputError: it is missing, or no such text.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as {what} ({error}).") from error


def read_label_file(path: Path) -> list[str]:
    """Read a file with one label a line.

    Raises:
        InputError: it is missing, empty or no UTF-8 text.
    """
    labels = _read_text(path, "a list of labels, one a line").rstrip().splitlines()
    if not labels:
        raise InputError(f"{path} is empty: it must hold one label a line.")
    return labels


def find_labels(path: Path) -> list[str] | None:
    """Return the labels inside a model file, or of the `labels.txt` beside it, or None."""
    from tiffin.export import metadata

    if labels := metadata.read_labels(path):
        return labels
    beside = path.parent / metadata.LABELS_FILE
    return read_label_file(beside) if beside.exists() else None


def probabilities(outputs: "dict[str, np.ndarray]", runner: "Runner") -> "np.ndarray":
    """Return the class probabilities `[batch, classes]` among a model's outputs.

    An output named `logits`, or one that is no distribution, goes through a softmax.

    Raises:
        InputError: no output has the shape `[batch, classes]`.
    """
    import numpy as np

    found = [t.name for t in runner.outputs if len(t.shape) == 2]
    if {"boxes", "scores"} == {t.name for t in runner.outputs}:
        raise InputError(
            f"{runner} leaves the choice among all its boxes to the app. To predict with it, "
            "export it with suppression inside."
        )
    if not found:
        names = ", ".join(t.name for t in runner.outputs)
        raise InputError(f"{runner} is no classifier: no output among {names} is [batch, classes].")
    name = next((n for n in ("probabilities", "logits") if n in found), found[0])
    scores = outputs[name].astype(np.float32)
    # Probabilities in 8 bits do not add up exactly.
    near_one = np.abs(scores.sum(-1) - 1) < 0.05
    if name == "probabilities" or (name != "logits" and (scores >= 0).all() and near_one.all()):
        return scores
    scores = np.exp(scores - scores.max(-1, keepdims=True))
    return scores / scores.sum(-1, keepdims=True)


def _import_layers(modules: Sequence[str]) -> None:
    """Import what registers custom layers: this project's own, and the modules that were named."""
    from tiffin.export.runtime import quiet

    if modules:
        sys.path.insert(0, "")
    with quiet():
        importlib.import_module("tiffin.layers")
        for module in modules:
            try:
                importlib.import_module(module)
            except ImportError as error:
                raise InputError(
                    f"--imports {module}: {error}. Name an installed module, or one in this folder."
                ) from error


def _model_file(path: Path, imports: Sequence[str]) -> Path:
    """Return a model file, of a run's folder its model; what a .keras file needs is imported."""
    file = path / "model.keras" if path.is_dir() else path
    if path.is_dir() and not file.exists():
        raise InputError(f"The folder {path} holds no model.keras: name a run, or a model file.")
    if file.suffix == ".keras":
        _import_layers(imports)
    return file


def _image_files(paths: Sequence[Path], suffixes: Set[str] = frozenset()) -> Iterator[Path]:
    """Return files as they are named, and of folders those that end so; by default images."""
    from tiffin.export.images import SUFFIXES

    suffixes = suffixes or SUFFIXES
    if not paths:
        raise InputError("Name the images, or a folder that holds them.")
    for path in paths:
        if not path.is_dir():
            yield path
            continue
        images = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes)
        if not images:
            raise InputError(
                f"There is no image in the folder {path}: put .jpg or .png files there."
            )
        yield from images


def _image_input(runner: "Runner") -> "Tensor":
    """Return the one input that takes an image; beside it there may be one for proposals.

    Raises:
        InputError: there are several inputs, or the one takes no image `[batch, height, width, 1 or
            3]`.
    """
    from tiffin.export.proposals import PROPOSALS

    taken = [t for t in runner.inputs if t.name != PROPOSALS]
    if [len(t.shape) for t in taken] != [4] or taken[0].shape[3] not in (1, 3):
        shapes = ", ".join(f"'{t.name}' {list(t.shape)}" for t in runner.inputs)
        raise InputError(
            f"{runner} does not take one image [batch, height, width, 1 or 3]; it takes "
            f"{shapes or 'nothing'}."
        )
    return taken[0]


def _read_image(path: Path, tensor: "Tensor") -> "np.ndarray":
    """Return an image's raw pixels in the size and channels of a model's input."""
    import numpy as np

    from tiffin.export.images import load_image

    height, width, channels = tensor.shape[1:]
    image = load_image(path, (height, width) if height and width else None)
    if channels == 1:
        # Luma of ITU-R 601, as every decoder makes grey.
        image = np.rint(image @ np.float32([0.299, 0.587, 0.114]))[..., None].astype(np.uint8)
    return image if tensor.dtype == "uint8" else image.astype(np.float32)


def _read_calibration(
    folder: Path, labels: Sequence[str] | None, tensor: "Tensor"
) -> tuple["np.ndarray", "tuple[np.ndarray, np.ndarray] | None"]:
    """Read images to calibrate with, and those of labelled subfolders to evaluate on.

    Returns:
        Raw pixels `[n, height, width, channels]`, n at most 100, and, if subfolders are named like
        labels, up to 500 others with their class indices. At most half of the images then
        calibrate.

    Raises:
        InputError: no readable image.
    """
    import numpy as np

    if not folder.is_dir():
        raise InputError(f"--calibration {folder} is no folder: name a folder of images.")
    if not tensor.shape[1] or not tensor.shape[2]:
        raise InputError(
            "The model takes images of any size, a phone wants one: build it with "
            "keras.Input((height, width, channels)), load the weights, and save it again."
        )
    index = {label: i for i, label in enumerate(labels or ())}
    paths = list(_image_files([folder]))
    random.Random(0).shuffle(paths)
    classes = [
        next((index[part] for part in p.relative_to(folder).parts[:-1] if part in index), None)
        for p in paths
    ]
    labelled = any(c is not None for c in classes)
    wanted = min(_CALIBRATION_IMAGES, (len(paths) + 1) // 2 if labelled else len(paths))
    calibration, evaluation = [], []
    for path, label in zip(paths, classes, strict=True):
        if len(calibration) == wanted and (not labelled or len(evaluation) == _EVALUATION_IMAGES):
            break
        if len(calibration) == wanted and label is None:
            continue
        try:
            image = _read_image(path, tensor)
        except InputError as error:
            print(f"Skipped: {error}", file=sys.stderr)
            continue
        if len(calibration) < wanted:
            calibration.append(image)
        else:
            evaluation.append((image, label))
    if not calibration:
        raise InputError(f"No image in {folder} could be read: put .jpg or .png files there.")
    if not evaluation:
        return np.stack(calibration), None
    images, targets = zip(*evaluation, strict=True)
    return np.stack(calibration), (np.stack(images), np.array(targets))
