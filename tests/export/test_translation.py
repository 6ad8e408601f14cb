"""The search for a translation, against all that could be said, and against itself."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiffin.export import InputError, text, translation
from tiffin.export.text import END, START, Vocabulary
from tiffin.export.translation import Hypothesis, Translator, log_softmax, search

TOKENS, UNITS = 6, 4


def make(seed: int, tokens: int = TOKENS):
    """Return a decoder's step without a network, and what two sentences begin with."""
    random = np.random.default_rng(seed)
    words, recur = random.normal(size=(tokens, UNITS)), random.normal(size=(UNITS, UNITS))
    head = random.normal(size=(UNITS, tokens)) * 2

    def step(feeds):
        h = np.tanh(feeds["h"] @ recur + words[feeds["token"]] + feeds["context"])
        return {"logits": h @ head, "next_h": h}

    begin = {name: random.normal(size=(2, UNITS)) for name in ("h", "context")}
    return step, begin


def rescored(step, begin, sentence: int, tokens) -> float:
    """Return the log-probability of a text, token by token."""
    feeds = {name: array[sentence : sentence + 1] for name, array in begin.items()}
    total, last = 0.0, START
    for token in tokens:
        outputs = step({"token": np.array([last]), **feeds})
        total += log_softmax(outputs["logits"])[0, token]
        feeds["h"], last = outputs["next_h"], token
    return total


def said(hypothesis: Hypothesis) -> tuple[int, ...]:
    return (*hypothesis.tokens, *([END] if hypothesis.ended else []))


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_a_beam_of_one_is_greedy(seed, most):
    step, begin = make(seed)
    for i, (found,) in enumerate(search(step, begin, [most, most], beam=1)):
        feeds = {name: array[i : i + 1] for name, array in begin.items()}
        greedy, token = [], START
        while len(greedy) < most and token != END:
            outputs = step({"token": np.array([token]), **feeds})
            token = int(np.argmax(np.delete(outputs["logits"][0], [0, 1]))) + 2
            feeds["h"] = outputs["next_h"]
            greedy.append(token)
        assert said(found) == tuple(greedy)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.integers(1, 6), st.sampled_from([0.0, 0.6, 1.0, 2.0]))
def test_scores_are_those_of_reading_the_text_again(seed, beam, penalty):
    step, begin = make(seed)
    for i, found in enumerate(search(step, begin, [7, 4], beam, penalty)):
        assert 1 <= len(found) <= beam
        for one in found:
            assert one.score == pytest.approx(rescored(step, begin, i, said(one)), abs=1e-9)
            assert len(one) == len(said(one)) <= (7, 4)[i]
        values = [one.value(penalty) for one in found]
        assert values == sorted(values, reverse=True)
        assert len({said(one) for one in found}) == len(found)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10_000), st.sampled_from([0.0, 1.0]))
def test_a_beam_as_wide_as_everything_finds_the_best_of_all(seed, penalty):
    step, begin = make(seed)
    words, most = range(END + 1, TOKENS), 3
    texts = [(*w, END) for n in range(most) for w in itertools.product(words, repeat=n)]
    texts += [*itertools.product(words, repeat=most)]
    for i, found in enumerate(search(step, begin, [most, most], 200, penalty)):
        everything = {t: rescored(step, begin, i, t) for t in texts}
        assert {said(one) for one in found} == {*texts}
        best = max(texts, key=lambda t: everything[t] / ((5 + len(t)) / 6) ** penalty)
        assert said(found[0]) == best


def test_a_sentence_is_translated_alike_alone_and_beside_others():
    step, begin = make(3, tokens=90)
    both = search(step, begin, [9, 5], 4)
    for i in (0, 1):
        alone = {name: array[i : i + 1] for name, array in begin.items()}
        assert [said(h) for h in search(step, alone, [[9, 5][i]], 4)[0]] == [
            said(h) for h in both[i]
        ]


def test_longer_texts_gain_by_the_penalty():
    short, long = Hypothesis((3,), -2.0, True), Hypothesis((3, 4, 5, 3, 4), -2.5, True)
    assert short.value(0) > long.value(0) and short.value(1) < long.value(1)
    assert long.value(1) == pytest.approx(-2.5 / (11 / 6))


def translator(length=None) -> Translator:
    """Return one that says a source's characters, whatever the network is."""
    vocabulary = Vocabulary("characters", (*text.SPECIAL, *"abc"))

    def encode(feeds):
        return {"left": feeds["source"].astype(float)}

    def step(feeds):
        logits = np.eye(6)[feeds["left"][:, 0].astype(int)] * 50
        return {"logits": logits, "next_left": np.roll(feeds["left"], -1, 1)}

    return Translator(encode, step, {"source": vocabulary, "target": vocabulary}, length)


def test_texts_of_all_lengths_come_back_in_their_order():
    texts = ["abc", "a", "cabba", "bb"] * 40
    for length in (None, 8):
        found = translator(length).translate(texts, beam=1)
        assert [one.text for one in found] == texts
    outputs = translator().along("ab", [3, 4])
    assert outputs["logits"].argmax(-1).tolist() == [3, 4, END]


@pytest.mark.parametrize(
    "sentence, message",
    [
        ("", "The sentence is empty"),
        ("axb", "never seen 'x': it knows 6 characters|never seen 'x'"),
        ("abcabc", "'abcabc' has 6 characters, the model takes 5: divide it"),
        ("abc" * 40, r"'(abc)+\.\.\.' has 120 characters"),
    ],
)
def test_what_cannot_be_translated_is_told(sentence, message):
    with pytest.raises(InputError, match=message):
        translator(length=6).translate([sentence])


def test_files_without_their_other_half_are_told(tmp_path):
    pieces = Vocabulary("characters", (*text.SPECIAL, "a"))
    path = tmp_path / "vocabulary.json"
    path.write_text(json.dumps(pieces.describe()))
    (tmp_path / "model.keras").write_bytes(b"")
    with pytest.raises(InputError, match="is a language model, run by `tiffin generate`"):
        translation.load(tmp_path / "model.keras")
    both = text.describe({"source": pieces, "target": pieces})
    path.write_text(json.dumps(both))
    with pytest.raises(InputError, match="belongs to a translator"):
        text.find_vocabulary(path)
    for content in (None, "", "[]", '{"pairs": []}', '{"pairs": [{"encoder": "a.onnx"}]}'):
        if content is not None:
            (tmp_path / "manifest.json").write_text(content)
        with pytest.raises(InputError, match="does not say what belongs to b.onnx"):
            translation._halves(tmp_path / "b.onnx")
    (tmp_path / "manifest.json").write_text(
        '{"pairs": [{"encoder": "a.onnx", "decoder": "b.onnx"}]}'
    )
    assert translation._halves(tmp_path / "b.onnx") == ("a.onnx", "b.onnx")


def test_bleu_is_the_papers():
    # Papineni et al. 2002, sections 2.1 and 2.3, for a candidate of 7 words, a reference of 8:
    # 5, 3, 2 and 1 of its 7, 6, 5 and 4 n-grams are found, and it is short by one word.
    candidate, reference = "a b c d x e y", "a b c d e f g h"
    shares = [5 / 7, 3 / 6, 2 / 5, 1 / 4]
    expected = 100 * np.exp(1 - 8 / 7) * np.prod(shares) ** 0.25
    assert translation.bleu([candidate], [reference]) == pytest.approx(expected)
    assert translation.bleu([reference], [reference]) == pytest.approx(100)


def test_chrf_tells_short_texts_apart():
    assert translation.bleu(["1 2"], ["1 2"]) == 0
    assert translation.chrf(["1 2"], ["1 2"]) == pytest.approx(100)
    assert translation.chrf(["3 4"], ["1 2"]) < 20
