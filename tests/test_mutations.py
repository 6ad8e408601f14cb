"""Whether the tests notice: a sign, an index or a bound is changed, and they have to fail."""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

REPO = Path(__file__).parents[1]


class Mutation(NamedTuple):
    """One change.

    Attributes:
        file: whose text is changed.
        old: what stands there once.
        new: what takes its place.
        tests: file and `-k` expression of those that have to notice.
    """

    file: str
    old: str
    new: str
    tests: tuple[str, str]


MARGINS = ("tests/layers/test_losses.py", "margin_heads_follow_the_papers")
BOXES = "tests/layers/test_boxes.py"
CELLS = ("tests/layers/test_recurrent.py", "equal_torch")
VERDICTS = ("tests/export/test_stage.py", "every_bound or either_side")
MUTATIONS = {
    "AM-softmax adds its margin": Mutation(
        "layers/margin.py", "return cosine - self.margin", "return cosine + self.margin", MARGINS
    ),
    "ArcFace turns the other way": Mutation(
        "layers/margin.py",
        "math.cos(self.margin) - sine * math.sin",
        "math.cos(self.margin) + sine * math.sin",
        MARGINS,
    ),
    "the monotone part of psi falls half as far": Mutation(
        "layers/margin.py", "sign * multiple - 2 * k)", "sign * multiple - k)", MARGINS
    ),
    "semi-hard triplets mix up positive and negative": Mutation(
        "layers/pair_losses.py",
        "others = distances[:, None, :]",
        "others = distances[:, :, None]",
        ("tests/layers/test_losses.py", "triplet_loss"),
    ),
    "an intersection is the square of one side": Mutation(
        "layers/boxes.py",
        "return sides[..., 0] * sides[..., 1]",
        "return sides[..., 0] * sides[..., 0]",
        (BOXES, "its_definition"),
    ),
    "boxes are decoded by their own variance twice": Mutation(
        "layers/boxes.py",
        "deltas[..., 2:] * variances[1]",
        "deltas[..., 2:] * variances[0]",
        (BOXES, "encoding_is_the_papers"),
    ),
    "RoIAlign is half a pixel off": Mutation(
        "layers/regions.py", "(0.5 if self.aligned else 0.0)", "(0.0 if self.aligned else 0.5)",
        (BOXES, "roi_align"),
    ),
    "suppression spares the box before": Mutation(
        "layers/suppression.py",
        "(iou(boxes, boxes) > threshold) & earlier",
        "(iou(boxes, boxes) < threshold) & earlier",
        (BOXES, "suppression_is_onnx"),
    ),
    "the LSTM's gates i and f change places": Mutation(
        "layers/recurrent.py",
        "c = gate(f) * states[1] + gate(i)",
        "c = gate(i) * states[1] + gate(f)",
        CELLS,
    ),
    "the peephole of o sees the old state": Mutation(
        "layers/recurrent.py", "gate(o + to_o * c) *", "gate(o + to_o * states[1]) *", CELLS
    ),
    "the coupled gate keeps what it writes": Mutation(
        "layers/recurrent.py", "c = (1 - i) * states[1]", "c = i * states[1]", CELLS
    ),
    "a float file may be off by any amount": Mutation(
        "export/verify.py",
        'if m["max_difference"] > limit:',
        'if m["max_difference"] > 1e9 * limit:',
        VERDICTS,
    ),
    "a dead output passes": Mutation(
        "export/verify.py", "if share < 0.01:", "if share < 0.0:", VERDICTS
    ),
    "an int8 file may lose ten times the bound": Mutation(
        "export/verify.py",
        'loss <= limits["metric_loss"] + 1e-9',
        'loss <= 10 * limits["metric_loss"] + 1e-9',
        VERDICTS,
    ),
    "a detection's score may be off by one": Mutation(
        "export/verify.py", "(apart <= 1e-3)", "(apart <= 1)",
        ("tests/export/test_detections.py", "compared_one_by_one"),
    ),
}  # fmt: skip


def mutated(mutation: Mutation) -> str:
    """Return a file's text after the change."""
    text = (REPO / mutation.file).read_text()
    assert text.count(mutation.old) == 1, f"{mutation.file} does not hold once: {mutation.old}"
    return text.replace(mutation.old, mutation.new)


def packages(folder: Path, mutation: Mutation) -> None:
    """Lay out `tiffin` as links to the three folders, one file of which is another."""
    (folder / "tiffin").mkdir()
    top, name = mutation.file.split("/")
    for part in ("layers", "recipes", "export"):
        if part != top:
            (folder / "tiffin" / part).symlink_to(REPO / part)
    (folder / "tiffin" / top).mkdir()
    for path in (REPO / top).iterdir():
        if path.name not in (name, "__pycache__"):
            (folder / "tiffin" / top / path.name).symlink_to(path)
    (folder / "tiffin" / top / name).write_text(mutated(mutation))


@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_mutations_fit_the_code(mutation):
    assert mutated(mutation)


@pytest.mark.full
@pytest.mark.parametrize("mutation", MUTATIONS.values(), ids=MUTATIONS)
def test_mutations_are_noticed(mutation, tmp_path):
    packages(tmp_path, mutation)
    path, keywords = mutation.tests
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", path]
    # Found before the installed packages, in every process that the tests start, too.
    done = subprocess.run(
        [*command, "-k", keywords, "-rf", "--tb=line"],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        cwd=REPO,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1 and "FAILED" in done.stdout, done.stdout + done.stderr
