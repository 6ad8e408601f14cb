"""Exporting a translator: an encoder and one step of a decoder, tried apart and together."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import keras
import numpy as np

from tiffin.export import files, recurrent, runtime, stage, verify
from tiffin.export.convert import Interface
from tiffin.export.errors import optional
from tiffin.export.recurrent import TOKEN
from tiffin.export.steps import translator_parts
from tiffin.export.text import END, PAD, START, from_description
from tiffin.export.translation import DECODER, ENCODER, SOURCE, Translator, bleu, chrf, of_keras

_TOGETHER = 100  # texts that pairs of files translate
_SHOWN = 4  # held-out sources that the manifest names, to try it on
_SAME = {"fp32": 0.99}  # share of them that has to be the same as Keras'
_CHRF_LOSS = 2.0  # points that others may lose; of texts below four words BLEU would be zero
_KEPT = ("versions", "created", "verified_on", "format_version", "labels")


def export_translator(
    model,
    directory,
    *,
    length: int,
    vocabulary: Mapping,
    calibration: Mapping[str, np.ndarray] | None = None,
    evaluation: tuple[Mapping[str, np.ndarray], np.ndarray] | None = None,
    formats: Sequence[str] = ("onnx", "tflite"),
    precisions: Sequence[str] = ("fp32", "fp16", "int8"),
    name: str | None = None,
    task: str | None = "translation",
    max_loss: float = 0.01,
    description: str | None = None,
    explain: bool = False,
    say: Callable[[str], None] = print,
) -> dict:
    """Export a translator to two files for each format and precision, and one manifest.

    The encoder, `{name}_encoder_{precision}.{format}`, takes `source` and returns what the decoder
    begins with and remembers; the decoder, `{name}_decoder_...`, takes `token` and these, and
    returns `logits`, each state's next value and, of attention, `weights`. Both keep the bounds of
    `tiffin.export.export`, the encoder by what Keras' decoder makes of its outputs. Then every pair
    translates what Keras translates. Files that are in no such pair are not handed out.

    Args:
        model: see `steps.translator_parts`.
        directory: where the files go.
        length: number of tokens that the encoder takes, end mark and padding included.
        vocabulary: `text.describe`'s values, to lie beside the files.
        calibration: `source`, int32 `[n, length]`, and `target`, `[n, steps]`, which begins with
            the start mark; int8 needs them.
        evaluation: the same, and what follows each token of the target, -1 where there is nothing.
        formats, precisions, name, task, description, explain, say: as for `tiffin.export.export`.
        max_loss: how much log-likelihood of a token, in nats, fp16 and int8 may lose.

    Returns:
        The manifest: `parts` holds one of the form of `tiffin.export.export` for `encoder` and
        `decoder`, `pairs` the files that belong together.

    Raises:
        InputError, ExportError: as `tiffin.export.export`.
    """
    if keras.backend.backend() != "tensorflow":
        from tiffin.export import worker

        options = {k: v for k, v in locals().items() if k not in ("model", "worker")}
        return worker.run("translator.export_translator", model, options)
    stage.check_kinds(formats, precisions)
    directory = files.make_folder(directory)
    name = stage.file_stem(name, model)
    encoder, decoder = translator_parts(model, length)
    encode, step = Interface(encoder).keras(), Interface(decoder).keras()

    def log_likelihood(outputs: Mapping, targets: Mapping) -> float:
        said, _ = recurrent.run_along(step, {TOKEN: targets["given"]}, outputs)
        return recurrent.log_likelihood(said, targets["following"])

    given = {ENCODER: {}, DECODER: {}}
    if calibration is not None:
        source = {SOURCE: np.asarray(calibration[SOURCE], np.int32)}
        given[ENCODER]["calibration"] = source
        given[DECODER]["calibration"] = encode(source) | {TOKEN: calibration["target"]}
    if evaluation is not None:
        optional("sacrebleu", "BLEU")  # before the long part
        pairs, following = evaluation
        source = {SOURCE: np.asarray(pairs[SOURCE], np.int32)}
        targets = {"given": np.asarray(pairs["target"], np.int32), "following": following}
        given[ENCODER]["evaluation"] = source, targets
        given[DECODER]["evaluation"] = encode(source) | {TOKEN: targets["given"]}, following
    metrics = {ENCODER: log_likelihood, DECODER: recurrent.log_likelihood}
    parts, tables = {}, {}
    with stage.workshop(directory) as folder:
        for part, half in ((ENCODER, encoder), (DECODER, decoder)):
            parts[part], table = stage.make_files(
                half,
                folder,
                f"{name}_{part}",
                formats,
                precisions,
                **given[part],
                metric=metrics[part],
                task=task,
                max_loss=max_loss,
                description=description,
                explain=explain,
                say=say,
            )
            tables |= table
        manifest = {key: parts[ENCODER][key] for key in _KEPT}
        manifest |= {"name": name, "task": task, "description": description}
        manifest |= {"preprocessing": _handling(parts, length), "parts": parts}
        vocabularies = {side: from_description(vocabulary[side]) for side in ("source", "target")}
        own = of_keras(model, vocabularies)  # not its halves: nothing may be lost by the cut
        if evaluation is None:
            shape = 8, min(5, length - 1)
            sources = np.random.default_rng(0).integers(END + 1, len(own.source), shape)
            references = None
        else:
            chosen, _ = verify.examples(pairs, _TOGETHER)
            sources = [tokens[(tokens != PAD) & (tokens != END)] for tokens in chosen[SOURCE]]
            references = [
                own.target.decode(tokens[(tokens != PAD) & (tokens != START)])
                for tokens in chosen["target"]
            ]
            shown = [own.source.decode(tokens) for tokens in sources[:_SHOWN]]
            manifest["examples"] = [*dict.fromkeys(shown)]
        manifest |= _together(own, length, parts, folder, sources, references, say)
        stage.publish(
            folder, directory, [f"{name}_{p}" for p in parts], manifest, tables, vocabulary
        )
    if manifest["failed"]:
        raise stage.failure(manifest, directory)
    return manifest


def _handling(parts: Mapping[str, Mapping], length: int) -> str:
    """Return what an app has to do, in words."""
    handed = ", ".join(f"'{o['name']}'" for o in parts[ENCODER]["outputs"])
    states = ", ".join(f"'{o}' as '{i}'" for i, o in parts[DECODER]["states"].items())
    return (
        f"Give the encoder a text's tokens, the end mark </s> ({END}) and padding ({PAD}) up to "
        f"{length}. Give the decoder what it returns, {handed}, under the same names, and the "
        f"start mark <s> ({START}) as 'token'; then, step by step, the token that it says, and "
        f"{states}, until that token is the end mark. vocabulary.json has the tokens in order."
    )


def _together(
    own: Translator,
    length: int,
    parts: Mapping[str, dict],
    folder: Path,
    sources: Sequence[np.ndarray],
    references: Sequence[str] | None,
    say: Callable[[str], None],
) -> dict:
    """Let encoder and decoder of each format and precision translate, and compare with Keras.

    Args:
        own: what Keras runs.
        length: of the sources that the files take.
        parts: the manifests of both, to whose `failed` goes what is in no pair.
        folder: where the files are.
        sources: tokens of texts.
        references: their translations, if there are any.
        say: see `export_translator`.

    Returns:
        `reference`, `bounds`, `pairs`, `files` and `failed` of the manifest.
    """
    wanted = own.translate_tokens(sources)
    texts = [own.target.decode(found.tokens) for found in wanted]
    reference = None
    if references is not None:
        reference = {"metric": "BLEU", "value": bleu(texts, references)}
        reference |= {"chrf": chrf(texts, references), "examples": len(texts)}
    pairs, vocabularies = [], {"source": own.source, "target": own.target}
    halves = {
        part: {(f["format"], f["precision"]): f for f in manifest["files"]}
        for part, manifest in parts.items()
    }
    for kind in dict.fromkeys((*halves[ENCODER], *halves[DECODER])):
        entries = [halves[part].get(kind) for part in parts]
        reason = "Its other half was not handed out."
        if None not in entries:
            pair = {"format": kind[0], "precision": kind[1]}
            pair |= {part: entry["file"] for part, entry in zip(parts, entries, strict=True)}
            encode, step = (runtime.load(folder / pair[part]) for part in parts)
            found = Translator(encode, step, vocabularies, length).translate_tokens(sources)
            same = [a.tokens == b.tokens for a, b in zip(found, wanted, strict=True)]
            pair["same_as_keras"] = float(np.mean(same))
            said = [own.target.decode(one.tokens) for one in found]
            if reference:
                pair |= {"bleu": bleu(said, references), "chrf": chrf(said, references)}
            both = " and ".join(pair[part] for part in parts)
            reason = _fault(pair, reference)
            if reason is None:
                pairs.append(pair)
                score = f", BLEU {pair['bleu']:.2f}" if reference else ""
                say(f"{both}: {pair['same_as_keras']:.1%} translated as Keras does{score}")
                continue
            say(f"{both}: not published. {reason}")
        for part, entry in zip(parts.values(), entries, strict=True):
            if entry is not None:
                part["files"].remove(entry)
                failed = {k: entry[k] for k in ("file", "format", "precision")}
                part["failed"].append(failed | {"reason": reason})
    bounds = {"same_as_keras": _SAME, "fp16 and int8": f"at most {_CHRF_LOSS} chrF lost"}
    both = {k: [e for part in parts.values() for e in part[k]] for k in ("files", "failed")}
    return {"reference": reference, "bounds": {"pairs": bounds}, "pairs": pairs, **both}


def _fault(pair: Mapping, reference: Mapping | None) -> str | None:
    """Say why a pair of files must not leave; None where it may."""
    same = pair["same_as_keras"]
    if same < _SAME.get(pair["precision"], 0):
        return f"Together they translate {1 - same:.1%} of the texts otherwise than Keras."
    if reference is not None and pair["chrf"] < reference["chrf"] - _CHRF_LOSS:
        return (
            f"Together they reach a chrF of {pair['chrf']:.2f}, over {_CHRF_LOSS} below Keras' "
            f"{reference['chrf']:.2f}."
        )
    return None
