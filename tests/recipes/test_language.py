"""Language models, from a text to files that write on."""

import gzip
import json
import math
import subprocess
import sys

import keras
import numpy as np
import pytest

import tiffin.export
from tiffin import recipes
from tiffin.export import InputError, recurrent, text
from tiffin.export.text import Vocabulary
from tiffin.recipes.engine import language, registry, summary
from tiffin.recipes.engine.text_data import TextSplit, load_text, read_text
from tiffin.recipes.sequence import word_lm
from tiffin.recipes.sequence.char_rnn import CELLS, Config
from tiffin.recipes.sequence.word_lm import SIZES

VERSE = "the cat sat on the mat, and the dog lay on the log.\n"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small model of a verse that repeats, trained and exported by the recipe itself."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "verse.txt").write_text(VERSE * 120)
    config = Config(
        data=str(folder / "verse.txt"),
        units=48,
        embedding=8,
        steps=20,
        batch_size=8,
        epochs=6,
        learning_rate=0.01,
        export=True,
        output=folder / "run",
    )
    return folder / "run", config.run()


@pytest.mark.parametrize("name", [*CELLS, *SIZES])
def test_variants_have_as_many_parameters_and_macs_as_their_table_says(name):
    row = registry.find(name).variants[name]
    model = recipes.build(name)
    assert summary.trainable(model) == row.parameters
    assert sum(r.macs for r in summary.rows(model)) == row.macs
    assert name not in CELLS or abs(row.parameters / 720_000 - 1) < 0.01
    assert name in summary.text(model)


def test_a_verse_is_learned_by_heart_and_leaves_in_six_files(run):
    directory, metrics = run
    assert metrics["test"]["nats"] < 0.3
    assert metrics["test"]["perplexity"] == pytest.approx(math.exp(metrics["test"]["nats"]))
    assert metrics["test"]["bits"] == pytest.approx(metrics["test"]["nats"] / math.log(2))
    manifest = json.loads((directory / "export/manifest.json").read_text())
    made = [(f["format"], f["precision"]) for f in manifest["files"]]
    assert made == [(k, p) for k in ("onnx", "tflite") for p in ("fp32", "fp16", "int8")]
    assert manifest["states"] == {"rnn_1_h": "next_rnn_1_h", "rnn_1_c": "next_rnn_1_c"}
    assert all(f["same_tokens"] == 200 for f in manifest["files"] if f["precision"] == "fp32")
    ports = [t["name"] for t in manifest["inputs"]]
    assert ports == ["token", "rnn_1_h", "rnn_1_c"]
    reference = manifest["reference"]["value"]
    assert all(reference - f["metric"] <= math.log(1.03) for f in manifest["files"])
    assert (directory / "export/vocabulary.json").read_bytes() == (
        directory / "vocabulary.json"
    ).read_bytes()
    assert "the " in (directory / language.SAMPLES).read_text()
    card = (directory / "export/README.md").read_text()
    assert "zeros as states" in card and "log_likelihood" in card


@pytest.mark.full
@pytest.mark.parametrize("tied", [False, True])
def test_words_are_learned_and_leave_with_their_vocabulary(tied, tmp_path, capsys):
    folder = tmp_path / "texts"
    folder.mkdir()
    for part, times in (("train", 150), ("valid", 20), ("test", 20)):
        (folder / f"verse.{part}.txt").write_text((VERSE + "a zebra's here!\n") * times)
    config = word_lm.Config(
        data=str(folder), vocabulary=14, units=32, tied=tied, batch_size=5, epochs=12,
        dropout=0.1, learning_rate=3.0, export=True, output=tmp_path / "run",
    )  # fmt: skip
    metrics = config.run()
    assert (config.steps, config.clip_norm, config.decay_factor) == (20, 5.0, 0.5)
    assert metrics["test"]["perplexity"] < 2
    assert len(metrics["export"]["files"]) == 6
    stored = text.find_vocabulary(tmp_path / "run/model.keras")
    assert stored.kind == "words" and len(stored) == 14 and stored.tokens[0] == "<unk>"
    said = written(capsys, tmp_path / "run", prompt="the cat sat on the", length=30)
    assert "the cat sat on the mat, and the dog lay on the log.\n" in said


def test_a_variant_gives_what_was_not_asked_for():
    config = word_lm.Config(model="word_lm_medium", dropout=0.1)
    config.take_defaults()
    assert (config.steps, config.epochs, config.dropout, config.clip_norm) == (35, 39, 0.1, 5.0)
    assert len(config.milestones) == 33 and config.milestones[0] == 6 / 39
    model = recipes.build("word_lm_small", classes=50)
    model.compile()
    config = word_lm.Config()
    config.take_defaults()
    config.compile(model, steps=100, epochs=13)
    rates = [float(model.optimizer._learning_rate(100 * e)) for e in (0, 3, 4, 5, 12)]
    assert rates == pytest.approx([20, 20, 10, 5, 20 / 2**9])
    assert model.optimizer.global_clipnorm == 5 / 20


def test_words_are_parted_and_joined_as_people_write_them():
    said = 'He said: "don\'t (ever) go, e.g. to <unk>!"\nNo.'
    parts = text.split("words", said)
    assert parts[:5] == ["He", "said", ":", '"', "don't"] and "<unk>" in parts and "\n" in parts
    words = Vocabulary("words", ("<unk>", "go", ",", "(", "ever", ")", "\n"))
    assert words.decode(words.encode("go, (ever)\n go elsewhere")) == "go, (ever)\ngo <unk>"
    spaced = Vocabulary("spaced words", ("<unk>", "mr.", "n't", "\n"))
    assert spaced.decode(spaced.encode("mr.  does n't \n mr.\n")) == "mr. <unk> n't\nmr.\n"


def written(capsys, file, **options) -> str:
    from tiffin.export.cli import Generate

    capsys.readouterr()
    Generate(file, **{"prompt": "the c", "length": 60, "temperature": 0} | options).run()
    return capsys.readouterr().out


def test_all_kinds_of_file_write_the_same(run, capsys):
    directory, _ = run
    files = [directory, *(directory / f"export/char_lstm_fp32.{k}" for k in ("onnx", "tflite"))]
    said = {written(capsys, file) for file in files}
    assert len(said) == 1
    (said,) = said
    assert said.startswith("the cat") and "the dog lay on the log.\n" in said
    assert len(said) == len("the c") + 60 + 1
    drawn = [written(capsys, files[1], temperature=1.5, seed=s) for s in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert written(capsys, files[1], temperature=1.5, top_k=1, seed=3) == said


def test_samples_in_the_documents_run_step_by_step(run):
    directory, _ = run
    for name in ("python_onnxruntime.py", "python_litert.py"):
        done = subprocess.run(
            [sys.executable, directory / "export/samples" / name], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "logits" in done.stdout


@pytest.mark.full
def test_a_runs_step_and_sequences_are_exported_by_the_command(run, tmp_path):
    from tiffin.export.cli import Export

    directory, _ = run
    Export(directory, tmp_path, step=True, formats=("tflite",), precisions=("int8_dynamic",)).run()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["files"][0]["same_tokens"] > 0
    assert text.find_vocabulary(tmp_path / "manifest.json").kind == "characters"
    (tmp_path / "verse.txt").write_text(VERSE * 20)
    calibrated = {"step": True, "calibration": tmp_path / "verse.txt", "name": "c"}
    Export(directory, tmp_path, formats=("tflite",), precisions=("int8",), **calibrated).run()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["reference"]["metric"] == "log_likelihood" and manifest["files"][0]["metric"]
    assert manifest["bounds"]["int8"] == {"metric_loss": math.log(1.03)}
    whole = {"length": 6, "unroll": True, "calibration": tmp_path / "verse.txt", "name": "w"}
    whole |= {"formats": ("tflite",), "precisions": ("int8",), "max_loss": 0.5}
    Export(directory, tmp_path, **whole).run()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["bounds"]["int8"] == {"metric_loss": 0.5}
    assert manifest["reference"]["metric"] == "log_likelihood" and manifest["files"][0]["metric"]
    for content, said in (("c", "is too short"), ("Ω", "never seen")):
        (tmp_path / "verse.txt").write_text(content)
        with pytest.raises(InputError, match=said):
            Export(directory, tmp_path, **calibrated).run()
    with pytest.raises(InputError, match="cannot be read as UTF-8 text"):
        Export(directory, tmp_path, **calibrated | {"calibration": tmp_path / "none.txt"}).run()
    Export(directory, tmp_path, length=7, formats=("onnx",), precisions=("fp32",), name="w").run()
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["inputs"][0]["shape"] == ["batch", 7] and "states" not in manifest
    for options, said in (
        ({}, "a recurrent one can leave as a single step"),
        ({"step": True, "length": 3}, "give one of them"),
        ({"unroll": True}, "give --length, too"),
        ({"length": 0}, "--length 0"),
    ):
        with pytest.raises(InputError, match=said):
            Export(directory, tmp_path, precisions=("fp32",), **options).run()


@pytest.mark.full
def test_a_run_goes_on_after_its_end(tmp_path):
    (tmp_path / "verse.txt").write_text(VERSE * 40)
    options = {"units": 8, "embedding": 4, "steps": 10, "batch_size": 4, "output": tmp_path / "run"}
    Config(data=str(tmp_path / "verse.txt"), epochs=1, **options).run()
    again = Config(data=str(tmp_path / "verse.txt"), epochs=2, resume=True, **options).run()
    assert again["epochs"] == 2


def test_readers_read_on_where_they_stopped():
    split = TextSplit(np.arange(100, dtype=np.int32), steps=5, rows=3)
    tokens, following = split.arrays()
    assert len(split) == 18 and tokens.shape == (6, 3, 5)
    np.testing.assert_array_equal(following, tokens + 1)
    np.testing.assert_array_equal(tokens[1:, :, 0], tokens[:-1, :, -1] + 1)
    np.testing.assert_array_equal(tokens[0, 1:, 0], tokens[-1, :-1, -1] + 1)


def test_cross_entropy_reads_every_token_once():
    model = recipes.build("char_gru", (None,), 7, units=6)
    tokens = np.random.default_rng(0).integers(0, 7, 1100).astype(np.int32)
    logits = keras.ops.convert_to_numpy(model(tokens[None, :-1]))
    expected = -recurrent.log_likelihood({"logits": logits}, tokens[1:])
    assert language.cross_entropy(model, tokens, 1) == pytest.approx(expected, abs=1e-5)
    # Seven readers begin without what was before, which costs this untrained model next to nothing.
    assert language.cross_entropy(model, tokens, 7) == pytest.approx(expected, abs=1e-2)
    assert language.cross_entropy(model, tokens[:4], 64) > 0


def test_samples_follow_the_temperature_and_the_likeliest():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05]))
    random = np.random.default_rng(0)

    def shares(**options):
        drawn = [text.sample(logits, random=random, **options) for _ in range(4000)]
        return np.bincount(drawn, minlength=4) / len(drawn)

    np.testing.assert_allclose(shares(temperature=1, top_k=None), np.exp(logits), atol=0.03)
    squared = np.exp(2 * logits) / np.exp(2 * logits).sum()
    np.testing.assert_allclose(shares(temperature=0.5, top_k=None), squared, atol=0.03)
    np.testing.assert_allclose(shares(temperature=1, top_k=2), [0.625, 0.375, 0, 0], atol=0.03)
    assert shares(temperature=0, top_k=None)[0] == 1


def test_log_likelihood_leaves_out_what_is_not_asked_for():
    logits = np.random.default_rng(0).normal(size=(2, 3, 5))
    shares = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = np.log([shares[0, 0, 4], shares[1, 2, 1]]).mean()
    targets = np.array([[4, -1, -1], [-1, -1, 1]])
    assert recurrent.log_likelihood({"logits": logits}, targets) == pytest.approx(expected)


# ---------------------------------------------------------------- bad input


def test_texts_are_read_plain_and_packed(tmp_path):
    (tmp_path / "a.txt").write_bytes("\ufeffÄ b\r\nc".encode())
    (tmp_path / "a.txt.gz").write_bytes(gzip.compress("Ä b\nc".encode()))
    (tmp_path / "old.txt").write_bytes("Ä b\nc".encode("latin-1"))
    assert read_text(str(tmp_path / "a.txt")) == ("Ä b\nc", "a.txt")
    assert read_text(str(tmp_path / "a.txt.gz"))[0] == "Ä b\nc"
    assert read_text(str(tmp_path / "old.txt"), "latin-1")[0] == "Ä b\nc"
    assert len(read_text("pydoc")[0]) > 300_000


@pytest.mark.parametrize(
    "name, content, said",
    [
        ("empty.txt", b"", "is empty: there is nothing to learn"),
        ("blank.txt", b" \n\n", "is empty"),
        ("program", b"\x7fELF\0\0\1", "is no text: it holds zero bytes"),
        ("old.txt", b"gr\xfc\xdfe", r"is not utf-8: byte 2 is 0xfc.*latin-1"),
        (
            "cut.txt.gz",
            gzip.compress(b"hello" * 1000, mtime=0)[:40],
            "cannot be read .*download it again",
        ),
        ("plain.txt.gz", b"hello", "cannot be read .*gzip"),
        ("short.txt", b"hello", "has 4 characters to train, too few for 4 rows of 10 steps"),
    ],
)
def test_what_is_no_text_is_told(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        load_text(str(tmp_path / name), "utf-8", 4, 10, "characters")


def test_missing_texts_and_unknown_encodings_are_told(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_text(str(tmp_path / "nothing.txt"))
    (tmp_path / "a.txt").write_text("a")
    with pytest.raises(InputError, match="--encoding utf-9 is unknown"):
        read_text(str(tmp_path / "a.txt"), "utf-9")


def test_unknown_characters_and_damaged_vocabularies_are_told(tmp_path):
    vocabulary = Vocabulary("characters", tuple("abc"))
    assert vocabulary.decode(vocabulary.encode("cab")) == "cab"
    with pytest.raises(InputError, match="never seen 'x' 'é': it knows 3 characters"):
        vocabulary.encode("axé")
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(vocabulary.describe()))
    assert text.find_vocabulary(path) == vocabulary
    kinds = [
        ("characters", ["a", "a"]),
        ("characters", [1]),
        ("characters", "ab"),
        ("runes", ["a"]),
    ]
    broken = [json.dumps({"kind": kind, "tokens": tokens}) for kind, tokens in kinds]
    for content in (*broken, "", "[]", '{"kind": "characters"}'):
        path.write_text(content)
        with pytest.raises(InputError, match=r"cannot be read as a vocabulary"):
            text.find_vocabulary(path)


def test_folders_need_a_text_for_each_part(tmp_path):
    (tmp_path / "a.train.txt").write_text(VERSE * 9)
    with pytest.raises(InputError, match="has 0 files with valid or val or dev in their names"):
        load_text(str(tmp_path), "utf-8", 2, 3, "words")
    for name in ("a.valid.txt", "a.test.txt"):
        (tmp_path / name).write_text("the <unk> sat on a gnu\n" * 9)
    data = load_text(str(tmp_path), "utf-8", 2, 3, "words")
    assert data.vocabulary.kind == "spaced words" and data.vocabulary.tokens[0] == "<unk>"
    assert list(data.test.tokens[:3]) == [data.vocabulary.tokens.index("the"), 0, 4]
    with pytest.raises(InputError, match="there is no such file"):
        read_text(str(tmp_path))


@pytest.mark.parametrize(
    "options, said",
    [
        ({"steps": 0}, "--steps 0"),
        ({"weights": "imagenet"}, "is for pictures"),
        ({"clip_norm": 0.0}, "--clip-norm 0.0: it must be above zero"),
        ({"units": 0}, "cannot be built: .*units"),
        ({"dropout": 1.5}, "cannot be built: .*1.5"),
    ],
)
def test_options_out_of_range_are_told(options, said, tmp_path):
    (tmp_path / "verse.txt").write_text(VERSE * 40)
    defaults = {"steps": 5, "batch_size": 2, "output": tmp_path / "run"}
    with pytest.raises(InputError, match=said):
        Config(data=str(tmp_path / "verse.txt"), **defaults | options).run()
    assert not (tmp_path / "run").exists()


def test_generate_says_what_it_lacks(run, capsys, tmp_path):
    directory, _ = run
    for options, said in (
        ({"prompt": "Ω"}, "never seen 'Ω'"),
        ({"prompt": ""}, "--prompt is empty"),
        ({"temperature": -1}, "--temperature -1"),
        ({"length": 0}, "--length and --top-k"),
        ({"top_k": 0}, "--length and --top-k"),
    ):
        with pytest.raises(InputError, match=said):
            written(capsys, directory, **options)
    inputs = keras.Input((3,))
    keras.Model(inputs, keras.layers.Dense(2)(inputs)).save(tmp_path / "other.keras")
    with pytest.raises(InputError, match="cannot be read as a vocabulary"):
        written(capsys, tmp_path / "other.keras")
    (tmp_path / "vocabulary.json").write_bytes((directory / "vocabulary.json").read_bytes())
    with pytest.raises(InputError, match="no recurrent layer"):
        written(capsys, tmp_path / "other.keras")
    assert tiffin.export.load(tmp_path / "other.keras")
