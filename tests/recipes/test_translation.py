"""Sequence to sequence: data, decoders, and a translator from training to files."""

import gzip
import json
import os
import random
import subprocess
import sys

import keras
import numpy as np
import pytest
import torch

from tiffin import recipes
from tiffin.export import ExportError, InputError, text, translation, translator
from tiffin.export.cli import Export, Translate
from tiffin.export.steps import translator_parts
from tiffin.recipes.engine import pair_data, registry, summary
from tiffin.recipes.engine import translation as task
from tiffin.recipes.engine.pair_data import PairSplit, load_pairs, make_vocabulary, written_dates
from tiffin.recipes.sequence.seq2seq import VARIANTS, Config

NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
FILES = ("a.en", "a.num.gz", ("en", "de"), "utf-8")


def corpus(folder, count: int = 1200):
    """Write numbers as words and as digits: two parallel files, one of them packed."""
    chance = random.Random(0)
    drawn = [[chance.randrange(10) for _ in range(chance.randint(1, 5))] for _ in range(count)]
    (folder / "a.en").write_text("".join(f"{' '.join(NUMBERS[i] for i in n)}\n" for n in drawn))
    digits = "".join(f"{' '.join(map(str, n))}\n" for n in drawn)
    (folder / "a.num.gz").write_bytes(gzip.compress(digits.encode()))
    return [str(folder / name) for name in FILES[:2]]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small translator of numbers, trained and exported by the recipe itself."""
    folder = tmp_path_factory.mktemp("run")
    source, target = corpus(folder)
    config = Config(
        model="seq2seq_bahdanau",
        data=source,
        target=target,
        tokens="words",
        units=32,
        embedding=16,
        batch_size=32,
        epochs=9,
        learning_rate=0.01,
        dropout=0.0,
        export=True,
        output=folder / "run",
    )
    return folder / "run", config.run()


# ---------------------------------------------------------------- networks


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_have_as_many_parameters_and_macs_as_their_table_says(name):
    row = registry.find(name).variants[name]
    model = recipes.build(name)
    assert summary.trainable(model) == row.parameters
    assert sum(r.macs for r in summary.rows(model)) == row.macs
    assert name in summary.text(model)


def test_multiply_accumulates_are_counted_by_hand():
    macs = {r.name: r.macs for r in summary.rows(recipes.build("seq2seq_luong"))}
    assert macs["encoder"] == 2 * 20 * (256 + 256) * 3 * 256
    step = (256 + 256) * 3 * 256 + 256 * 512 + 2 * 20 * 512 + (512 + 256) * 256 + 256 * 4000
    assert macs["logits"] == 20 * step


def equations(variant: str, w: dict, source, target):
    """The papers' equations in float64, one text and one word at a time."""

    def gru(cell, x, h):
        k, u, b = (w[f"{cell}/{part}"] for part in ("kernel", "recurrent_kernel", "bias"))
        xs, hs = (x @ k + b[0]).chunk(3), (h @ u + b[1]).chunk(3)
        z, r = torch.sigmoid(xs[0] + hs[0]), torch.sigmoid(xs[1] + hs[1])
        return z * h + (1 - z) * torch.tanh(xs[2] + r * hs[2])

    def maxout(x):
        return (
            (x @ w["linear/kernel"] + w["linear/bias"])
            .chunk(2)[0]
            .maximum((x @ w["linear/kernel"] + w["linear/bias"]).chunk(2)[1])
        )

    units = w["decoder_cell/recurrent_kernel"].shape[0]
    words = w["source_words/embeddings"][source[source > 0]]
    sides = []
    for side, order in (("forward", words), ("backward", words.flip(0))):
        h, states = torch.zeros(units).double(), []
        for x in order:
            h = gru(f"{side}/cell", x, h)
            states.append(h)
        sides.append(torch.stack(states))
    keys = torch.cat([sides[0], sides[1].flip(0)], 1)
    summed = torch.cat([sides[0][-1], sides[1][-1]])
    h = torch.tanh(summed @ w["first_h/kernel"] + w["first_h/bias"])
    logits = []
    for token in target:
        word = w["words/embeddings"][token]
        if variant == "seq2seq_peeky":
            h = gru("decoder_cell", torch.cat([word, summed]), h)
            x = maxout(torch.cat([h, word, summed]))
        elif variant == "seq2seq_bahdanau":
            query = h @ w["attention/query_kernel"]
            e = torch.tanh(query + keys @ w["projected_keys/kernel"]) @ w["attention/v"]
            context = torch.softmax(e, 0) @ keys
            h = gru("decoder_cell", torch.cat([word, context]), h)
            x = maxout(torch.cat([h, word, context]))
        elif variant == "seq2seq_luong":
            h = gru("decoder_cell", word, h)
            context = torch.softmax(keys @ (h @ w["attention/kernel"]), 0) @ keys
            x = torch.tanh(torch.cat([context, h]) @ w["features/kernel"])
        else:
            x = h = gru("decoder_cell", word, h)
        logits.append(x @ w["logits/kernel"] + w["logits/bias"])
    return torch.stack(logits)


def small(variant: str, **options) -> keras.Model:
    """Return a network with weights that are large enough to matter."""
    keras.utils.set_random_seed(1)
    model = recipes.build(variant, (None,), 11, sources=9, units=6, embedding=5, **options)
    chance = np.random.default_rng(0)
    for v in model.trainable_variables:
        v.assign(chance.normal(size=v.shape) * 0.7)
    return model


SOURCE = np.array([[4, 5, 6, 7, 2], [8, 3, 2, 0, 0], [4, 2, 0, 0, 0]], np.int32)
TARGET = np.array([[1, 4, 5, 10], [1, 6, 0, 0], [1, 9, 9, 3]], np.int32)


@pytest.mark.parametrize("variant", VARIANTS)
def test_decoders_follow_their_papers_equations(variant):
    model = small(variant)
    weights = {}
    for v in model.variables:
        side = next((f"{s}/" for s in ("forward", "backward") if f"{s}_" in v.path), "")
        layer, name = v.path.split("/")[-2:]
        weights[f"{side}cell/{name}" if side else f"{layer}/{name}"] = torch.tensor(
            keras.ops.convert_to_numpy(v)
        ).double()
    logits = keras.ops.convert_to_numpy(model({"source": SOURCE, "target": TARGET}))
    for i, (source, target) in enumerate(zip(SOURCE, TARGET, strict=True)):
        expected = equations(variant, weights, torch.tensor(source), torch.tensor(target))
        np.testing.assert_allclose(logits[i], expected, atol=1e-5)


@pytest.mark.parametrize("cell", ["gru", pytest.param("lstm", marks=pytest.mark.full)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_never_changes_what_is_said(variant, cell):
    model = small(variant, cell=cell)
    wide = {"source": np.pad(SOURCE, ((0, 0), (0, 3))), "target": np.pad(TARGET, ((0, 0), (0, 2)))}
    logits, padded = (
        keras.ops.convert_to_numpy(model(x)) for x in ({"source": SOURCE, "target": TARGET}, wide)
    )
    np.testing.assert_allclose(padded[:, :4], logits, atol=1e-5)


@pytest.mark.parametrize(
    ("cell", "length"),
    [
        ("gru", None),
        ("lstm", 6),
        pytest.param("gru", 6, marks=pytest.mark.full),
        pytest.param("lstm", None, marks=pytest.mark.full),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_halves_say_step_by_step_what_the_whole_says(variant, cell, length):
    model = small(variant, cell=cell)
    vocabulary = text.Vocabulary("characters", (*text.SPECIAL, *"abcdefgh"))
    encoder, step = map(translation.runtime.of_model, translator_parts(model, length))
    names = {"source": vocabulary, "target": vocabulary}
    pair = translation.Translator(encoder, step, names, length)
    whole = keras.ops.convert_to_numpy(model({"source": SOURCE, "target": TARGET}))
    for i, sentence in enumerate(("bcde", "fa", "b")):
        outputs = pair.along(sentence, TARGET[i, 1:])
        np.testing.assert_allclose(outputs["logits"], whole[i], atol=1e-5)
        if "weights" in outputs:
            weights = outputs["weights"]
            np.testing.assert_allclose(weights.sum(1), 1, atol=1e-5)
            assert not weights[:, len(sentence) + 1 :].any()


def test_beams_are_scored_as_the_whole_network_scores_their_texts():
    model = small("seq2seq_luong")
    vocabulary = text.Vocabulary("characters", (*text.SPECIAL, *"abcdefgh"))
    own = translation.of_keras(model, {"source": vocabulary, "target": vocabulary})
    for sentence in ("abc", "fed"):
        (said,) = own.translate([sentence], beam=4)
        tokens = [*said.hypothesis.tokens, *([text.END] if said.hypothesis.ended else [])]
        given = np.array([[text.START, *tokens[:-1]]], np.int32)
        logits = model({"source": own.tokens(sentence)[None], "target": given})
        gains = translation.log_softmax(keras.ops.convert_to_numpy(logits))[0]
        expected = gains[np.arange(len(tokens)), tokens].sum()
        assert said.hypothesis.score == pytest.approx(expected, abs=1e-4)


# ---------------------------------------------------------------- a run


def test_numbers_are_learned_by_heart_and_leave_in_twelve_files(run):
    directory, metrics = run
    test = metrics["test"]
    assert test["exact_greedy"] > 0.9 and test["bleu_beam"] > 90 and test["perplexity"] < 1.2
    manifest = json.loads((directory / "export/manifest.json").read_text())
    assert manifest["task"] == "translation" and not manifest["failed"]
    kinds = [(k, p) for k in ("onnx", "tflite") for p in ("fp32", "fp16", "int8")]
    assert [(p["format"], p["precision"]) for p in manifest["pairs"]] == kinds
    assert len(manifest["files"]) == 12
    for pair in manifest["pairs"]:
        assert pair["same_as_keras"] > (0.99 if pair["precision"] == "fp32" else 0.8)
        assert (directory / "export" / pair["encoder"]).exists()
    decoder = manifest["parts"]["decoder"]
    assert [t["name"] for t in decoder["inputs"]] == [
        "token", "h", "keys", "mask", "projected_keys"
    ]  # fmt: skip
    assert decoder["states"] == {"h": "next_h"}
    assert (directory / "export/vocabulary.json").read_bytes() == (
        directory / "vocabulary.json"
    ).read_bytes()
    card = (directory / "export/README.md").read_text()
    assert "start mark <s> (1)" in card and "Keras itself: BLEU" in card
    for name in (task.TRANSLATIONS, task.ATTENTION, "curves.png", "report.md"):
        assert (directory / name).stat().st_size > 300


def translated(capsys, file, *texts, **options) -> list[str]:
    capsys.readouterr()
    Translate(file, texts, **options).run()
    return capsys.readouterr().out.splitlines()


def test_all_kinds_of_file_translate_alike(run, capsys, monkeypatch):
    directory, _ = run
    texts = ("one two three", "seven", "nine nine zero four")
    files = [
        directory / "export" / f"seq2seq_bahdanau_{half}_fp32.{kind}"
        for half, kind in (("decoder", "onnx"), ("encoder", "onnx"), ("decoder", "tflite"))
    ]
    for options in ({"beam": 1}, {"beam": 3}):
        said = {tuple(translated(capsys, file, *texts, **options)) for file in [directory, *files]}
        assert said == {("1 2 3", "7", "9 9 0 4")}
    monkeypatch.setattr("sys.stdin", iter(["one\n", "two six\n"]))
    assert translated(capsys, files[0]) == ["1", "2 6"]
    (line,) = translated(capsys, files[0], "one", scores=True)
    score, _, said = line.partition("\t")
    assert said == "1" and -1 < float(score) < 0


def test_the_sample_in_the_documents_translates(run):
    directory, _ = run
    sample = directory / "export/samples/python_translate.py"
    done = subprocess.run(
        [sys.executable, sample, "four two"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "4 2"


@pytest.mark.full
def test_a_run_is_exported_by_the_command(run, tmp_path, capsys):
    directory, _ = run
    lines = [f"{NUMBERS[i]} {NUMBERS[j]}\t{i} {j}\n" for i in range(10) for j in range(4)]
    (tmp_path / "pairs.txt").write_text("".join(lines))
    given = {"calibration": tmp_path / "pairs.txt", "formats": ("tflite",), "name": "n"}
    Export(directory, tmp_path, length=4, precisions=("fp32", "int8"), **given).run()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert [pair["precision"] for pair in manifest["pairs"]] == ["fp32", "int8"]
    assert manifest["parts"]["encoder"]["inputs"][0]["shape"] == ["batch", 4]
    assert translated(capsys, tmp_path / "n_decoder_int8.tflite", "two nine") == ["2 9"]
    bare = {"formats": ("onnx",), "precisions": ("fp32",), "name": "bare"}
    Export(directory, tmp_path, length=3, **bare).run()
    assert translated(capsys, tmp_path / "bare_encoder_fp32.onnx", "six") == ["6"]
    with pytest.raises(InputError, match="say with --length how many tokens"):
        Export(directory, tmp_path, **bare).run()
    with pytest.raises(InputError, match="int8 needs calibration data"):
        Export(directory, tmp_path, length=3).run()
    for content, said in (("one 1\n", "has the line 'one 1'"), ("one\t1", "has no two lines")):
        (tmp_path / "pairs.txt").write_text(content)
        with pytest.raises(InputError, match=said):
            Export(directory, tmp_path, length=3, **given).run()


def test_pairs_that_translate_otherwise_are_not_handed_out(run, tmp_path, monkeypatch):
    directory, _ = run
    vocabularies = text.read_vocabularies(directory / "vocabulary.json")
    pairs = [(f"{a} {b}", f"{i} {j}") for i, a in enumerate(NUMBERS) for j, b in enumerate(NUMBERS)]
    model = keras.saving.load_model(directory / "model.keras")
    given = {
        "evaluation": translation.examples(pairs, vocabularies, 4),
        "vocabulary": text.describe(vocabularies),
        "formats": ("tflite",),
        "precisions": ("fp16",),
    }
    # What the runtime says is no longer what it said when the halves were tried apart.
    whole = translator.Translator.translate_tokens

    def wrong(self, sources):
        found = whole(self, sources)
        return found if self.length is None else found[::-1]  # of files, a length is known

    monkeypatch.setattr(translator.Translator, "translate_tokens", wrong)
    with pytest.raises(ExportError, match="2 of 2 files .* Together they reach a chrF of") as error:
        translator.export_translator(model, tmp_path, length=4, **given)
    assert not error.value.manifest["files"] and not [*tmp_path.glob("*.tflite")]
    assert [entry["file"] for entry in error.value.manifest["failed"]] == [
        f"seq2seq_bahdanau_{half}_fp16.tflite" for half in ("encoder", "decoder")
    ]


def test_what_translate_lacks_is_told(run, capsys, tmp_path):
    directory, _ = run
    file = directory / "export/seq2seq_bahdanau_decoder_int8.tflite"
    for texts, options, said in (
        (("one " * 9,), {}, "has 9 words, the model takes 5: divide it"),
        (("",), {}, "The sentence is empty"),
        (("one",), {"beam": 0}, "--beam 0"),
        (("one",), {"length_penalty": -1.0}, "--length-penalty -1.0"),
    ):
        with pytest.raises(InputError, match=said):
            translated(capsys, file, *texts, **options)
    lone = tmp_path / file.name
    lone.write_bytes(file.read_bytes())
    with pytest.raises(InputError, match="vocabulary.json cannot be read"):
        translated(capsys, lone, "one")
    (tmp_path / "vocabulary.json").write_bytes((directory / "vocabulary.json").read_bytes())
    with pytest.raises(InputError, match="does not say what belongs to"):
        translated(capsys, lone, "one")
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match="has no decoder"):
        translated(capsys, tmp_path / "other.keras", "one")


@pytest.mark.full
def test_a_decoder_that_learns_from_its_own_words_goes_on_after_its_end(tmp_path):
    source, target = corpus(tmp_path, 300)
    options = {"data": source, "target": target, "tokens": "words", "units": 8, "embedding": 4}
    options |= {"model": "seq2seq_feedback", "output": tmp_path / "run"}
    Config(epochs=1, **options).run()
    assert not (tmp_path / "run" / task.ATTENTION).exists()
    again = Config(epochs=2, resume=True, **options).run()
    assert again["epochs"] == 2


def test_teacher_forcing_falls_evenly():
    config = Config(model="seq2seq_feedback")
    assert config.truth() == (0.0, 0.0) and Config().truth() == (1.0, 1.0)
    assert Config(model="seq2seq_feedback", teacher_forcing=(1.0, 0.5)).truth() == (1.0, 0.5)
    model = small("seq2seq_context", mixed=True)
    callback = task.TeacherForcing(model.layers[-1], 1.0, 0.5)
    callback.set_params({"epochs": 3})
    seen = []
    for epoch in range(3):
        callback.on_epoch_begin(epoch)
        seen.append(float(model.layers[-1].truth.numpy()))
    assert seen == [1.0, 0.75, 0.5]


# ---------------------------------------------------------------- data


def test_dates_are_what_they_say():
    pairs = written_dates(500, seed=0)
    assert len(dict(pairs)) == 500 and pairs == written_dates(500, seed=0)
    assert all(len(iso) == 10 and iso[:4] in said for said, iso in pairs)
    known = dict(written_dates(20_000, seed=1))
    months = [*pair_data._MONTHS]
    for said, iso in known.items():
        year, month, day = map(int, iso.split("-"))
        if "/" in said:
            assert [int(part) for part in said.split("/")] == [month, day, year]
        elif said.count(".") == 2:
            assert [int(part) for part in said.split(".")] == [day, month, year]
        else:
            assert months[month][:3].lower() in said.lower() and str(day) in said
    assert {"1st", "2nd", "3rd", "11th", "12th", "13th", "21st", "22nd", "23rd"} <= {
        word.lower() for said in known for word in said.replace(",", " ").split()
    }


def test_batches_hold_every_pair_once_and_little_padding(tmp_path):
    source, target = corpus(tmp_path)
    data = load_pairs(source, target, *FILES[2:], "words", 50, None, seed=0)
    assert (len(data.test), len(data.validation), len(data.train)) == (120, 60, 1020)
    batches = data.train.training_batches(16, 0, 0, True)
    count = len(data.train) // 16
    epoch = [*batches.take(count).as_numpy_iterator()]
    padding = np.mean([np.mean(given["source"] == 0) for given, _ in epoch])
    assert padding < 0.05
    seen = sorted(tuple(row[row > 2]) for given, _ in epoch for row in given["target"])
    every = sorted(tuple(row[row > 2]) for row in data.train.rows(1, np.arange(1020), True, False))
    assert len(seen) == count * 16 and not {*seen} - {*every}
    again = [*data.train.training_batches(16, 0, 0, True).take(count).as_numpy_iterator()]
    later = [*data.train.training_batches(16, 0, 1, True).take(count).as_numpy_iterator()]
    np.testing.assert_array_equal(epoch[3][1], again[3][1])
    second = [*batches.skip(count).take(1).as_numpy_iterator()]
    np.testing.assert_array_equal(second[0][1], later[0][1])
    for given, following in epoch:
        assert (given["target"][:, 0] == text.START).all()
        np.testing.assert_array_equal(
            np.where(following == text.END, 0, following)[:, :-1], given["target"][:, 1:]
        )
        assert ((given["source"] == text.END).sum(1) == 1).all()
    whole = [*data.test.batches(50).as_numpy_iterator()]
    assert [len(following) for _, following in whole] == [50, 50, 20]


@pytest.mark.parametrize(
    "right, penalty", [("a b c d", 1.0), ("a b c d e f g h", 1.5), ("none", 1.0)]
)
def test_the_length_penalty_is_that_of_the_best_bleu(right, penalty):
    """Of two candidates the short one is likelier; with exponents above 1 the long one wins."""
    said = [
        translation.Translation(words, translation.Hypothesis((3,) * count, score, True))
        for words, count, score in (("a b c d", 4, -10.0), ("a b c d e f g h", 8, -15.0))
    ]
    asked = []

    class Stub:
        def candidates(self, sentences, beam):
            asked.extend([*sentences, beam])
            return [said for _ in sentences]

    assert task.best_penalty(Stub(), [("x", right)] * 700, 5) == penalty
    assert asked == ["x"] * 500 + [5]


def test_the_loss_leaves_padding_out():
    loss = Config().objective()["loss"]
    logits = np.random.default_rng(0).normal(size=(2, 3, 5)).astype("float32")
    following = np.array([[4, 2, 0], [2, 0, 0]])
    gains = translation.log_softmax(logits)
    expected = -np.mean([gains[0, 0, 4], gains[0, 1, 2], gains[1, 0, 2]])
    assert float(loss(following, logits)) == pytest.approx(expected, abs=1e-6)


def test_pieces_of_words_come_back_as_words(tmp_path):
    texts = [f"the {a} {b} sat on the {c}." for a in ("black", "white", "grey")
             for b in ("cat", "dog", "cow", "mouse") for c in ("mat", "log", "house")]  # fmt: skip
    pieces = make_vocabulary("pieces", texts, 60)
    assert pieces.tokens[:4] == (*text.SPECIAL, "<unk>") and len(pieces) <= 60
    for said in ("the grey mouse sat on the log.", "the white house"):
        assert pieces.decode(pieces.encode(said)) == said
    assert 3 in pieces.encode("the ÿ cat")
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(text.describe({"source": pieces, "target": pieces})))
    again = text.read_vocabularies(path)["target"]
    assert again == pieces and again.encode("the cat").tolist() == pieces.encode("the cat").tolist()
    stored = json.loads(path.read_text())
    for damage in ({"sentencepiece": ""}, {"sentencepiece": "AAAA"}, {"tokens": ["<unk>", "a"]}):
        path.write_text(json.dumps(stored | {"source": stored["source"] | damage}))
        with pytest.raises(InputError, match="cannot be read as a vocabulary"):
            text.read_vocabularies(path)
    with pytest.raises(InputError, match="No 12 pieces can be made"):
        make_vocabulary("pieces", texts, 12)


def test_marks_in_a_text_are_no_marks():
    words = make_vocabulary("words", ["a <s> b <pad> <unk> <s>"], 20)
    assert words.tokens == (*text.SPECIAL, "<unk>", "a", "b")
    assert words.encode("a <s> <pad> b").tolist() == [4, 3, 3, 5]
    characters = make_vocabulary("characters", ["<s>"], 20)
    assert characters.tokens == (*text.SPECIAL, "<", ">", "s")
    assert characters.encode("<s>").tolist() == [3, 5, 4]


def test_folders_hold_a_file_for_each_side_and_part(tmp_path):
    for part, count in (("train", 60), ("val", 20), ("test_2016", 15)):
        for language in ("en", "de"):
            lines = "".join(f"{language} {i} \n" for i in range(count))
            (tmp_path / f"{part}.{language}.gz").write_bytes(gzip.compress(lines.encode()))
    data = load_pairs(str(tmp_path), None, ("de", "en"), "utf-8", "words", 50, None, 0)
    assert [len(part) for part in (data.train, data.validation, data.test)] == [60, 20, 15]
    assert data.test.pairs[3] == ("de 3", "en 3") and "from de to en" in data.summary()
    with pytest.raises(InputError, match=r"0 files with train in their names that end in .fr"):
        load_pairs(str(tmp_path), None, ("fr", "en"), "utf-8", "words", 50, None, 0)


def test_empty_sides_and_long_texts_are_left_out_and_said(tmp_path, capsys):
    lines = ["a b"] * 30 + ["", "c"] + ["a " * 40]
    (tmp_path / "a").write_text("\n".join(lines) + "\n")
    (tmp_path / "b").write_text("\n".join(["x"] * 33) + "\n")
    given = str(tmp_path / "a"), str(tmp_path / "b"), ("en", "de"), "utf-8", "words", 50
    data = load_pairs(*given, 10, seed=1)
    said = capsys.readouterr().out
    assert "1 pairs with an empty side are left out" in said and data.length == 10
    assert len(data.train) + len(data.validation) + len(data.test) in (31, 32)
    (tmp_path / "a").write_text("a\n" * 20)
    (tmp_path / "b").write_text("b\n" * 18 + "\n\n")
    assert len(pair_data.read_pairs(*given[:2], "utf-8")) == 18


@pytest.mark.parametrize(
    "change, said",
    [
        ({"target": None}, "name the file of the translations, too, as --target FILE"),
        ({"target": "nothing"}, "there is no such file"),
        ({"data": "short"}, "a.num.gz 100: line by line one must be"),
        ({"data": "binary"}, "is no text: it holds zero bytes"),
        ({"data": "latin"}, "is not utf-8"),
        ({"data": "few", "target": "few"}, "has 3 pairs: that is too few"),
        ({"beam": 0}, "--beam 0: it must be at least 1"),
        ({"vocabulary": 3}, "--vocabulary 3: it must be at least 10"),
        ({"length": 1}, "--length 1: it must be at least 2"),
        ({"length": 2, "tokens": "words", "data": "long", "target": "long"}, "raise --length"),
        ({"teacher_forcing": (1.0, 1.5)}, "--teacher-forcing 1.0 1.5: they are shares"),
        ({"length_penalty": -1.0}, "--length-penalty -1.0"),
        ({"dropout": 1.0}, "cannot be built: dropout=1.0"),
        ({"weights": "coco"}, "is for pictures"),
    ],
)
def test_what_cannot_be_learned_is_told(change, said, tmp_path):
    corpus(tmp_path, 100)
    (tmp_path / "short").write_text("one\n" * 99)
    (tmp_path / "few").write_text("one\n" * 3)
    (tmp_path / "long").write_text("one two three\n" * 50)
    (tmp_path / "binary").write_bytes(b"\x7fELF\0\0\1")
    (tmp_path / "latin").write_bytes(b"gr\xfc\xdfe\n")
    options = {"data": "a.en", "target": "a.num.gz", "tokens": "characters"} | change
    for name in ("data", "target"):
        if options[name]:
            options[name] = str(tmp_path / options[name])
    with pytest.raises(InputError, match=said):
        Config(**options, output=tmp_path / "run").run()
    assert not (tmp_path / "run").exists()


def test_rows_are_padded_to_the_longest():
    vocabulary = make_vocabulary("characters", ["abc"], 10)
    split = PairSplit.of([("abc", "a"), ("b", "cb"), ("ca", "abc")], [vocabulary] * 2)
    assert split.lengths(0).tolist() == [3, 1, 2] and split.lengths(1).tolist() == [1, 2, 3]
    given, following = split.batch(np.array([2, 1]))
    assert given["source"].tolist() == [[5, 3, 2], [4, 2, 0]]
    assert given["target"].tolist() == [[1, 3, 4, 5], [1, 5, 4, 0]]
    assert following.tolist() == [[3, 4, 5, 2], [5, 4, 2, 0]]
    wide = PairSplit.of(split.pairs, [vocabulary] * 2, multiple=4)
    given, following = wide.batch(np.array([2, 1]))
    assert given["source"].tolist() == [[5, 3, 2, 0], [4, 2, 0, 0]]
    assert given["target"].shape == following.shape == (2, 4)
    assert wide.rows(1, np.array([2]), True, True).tolist() == [[1, 3, 4, 5, 2, 0, 0, 0]]


@pytest.mark.full
def test_a_translator_trains_on_jax_and_leaves(tmp_path):
    source, target = corpus(tmp_path, 200)
    script = f"""
from pathlib import Path
from tiffin.recipes.sequence.seq2seq import Config
Config(model="seq2seq_luong", data={source!r}, target=Path({target!r}), tokens="words", units=8,
       embedding=4, epochs=1, teacher_forcing=(1.0, 0.5), export=True, formats=("tflite",),
       precisions=("fp32",), output=Path({str(tmp_path / "run")!r})).run()
"""
    environment = os.environ | {"KERAS_BACKEND": "jax"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    manifest = json.loads((tmp_path / "run/export/manifest.json").read_text())
    assert len(manifest["pairs"]) == 1
    assert json.loads((tmp_path / "run/metrics.json").read_text())["backend"] == "jax"
