"""The `tiffin` command: what it prints, and how it fails."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tiffin.export.errors import InputError
from tiffin.recipes.engine.cli import Copy, Summary, main

REPO = Path(__file__).parents[2]
TIFFIN = Path(sys.executable).parent / "tiffin"


def tiffin(*arguments, cwd=None, **environment) -> tuple[int, str, str]:
    """Run a command in a process of its own; return its status and what it said."""
    done = subprocess.run(
        [TIFFIN, *map(str, arguments)], cwd=cwd, capture_output=True, text=True,
        env=os.environ | {"COLUMNS": "100"} | environment,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def here(monkeypatch, capsys):
    """Run a command in this process, which has Keras already; return what `tiffin` returns."""

    def run(*arguments) -> tuple[int, str, str]:
        monkeypatch.setenv("COLUMNS", "100")
        monkeypatch.setattr(sys, "argv", ["tiffin", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return end.value.code or 0, *capsys.readouterr()

    return run


@pytest.fixture
def fails(here):
    """Run a command that must end with status 2 and one error; return it."""

    def run(*arguments) -> str:
        code, _, said = here(*arguments)
        assert code == 2, said
        assert "Traceback" not in said
        errors = [line for line in said.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, said
        return " ".join(errors[0].split())

    return run


def test_help_and_list_answer_without_keras():
    code, out, _ = tiffin("--help")
    assert code == 0 and all(f"tiffin {c}" in out for c in ("train", "export", "predict"))
    assert tiffin()[1] == out
    code, out, _ = tiffin("list", PYTHONPROFILEIMPORTTIME="1")
    assert code == 0
    rows = {line.split()[0]: line.split() for line in out.splitlines() if line}
    assert rows["padding"][:2] == ["padding", "Sizes"]  # a study
    assert rows["resnet50"][:5] == ["resnet50", "resnet", "classification", "2015", "25,557,032"]
    _, _, imports = tiffin("list", PYTHONPROFILEIMPORTTIME="1")
    assert "tyro" not in imports and "keras" not in imports and "numpy" not in imports
    code, out, _ = tiffin("train", "--help")
    assert code == 0 and "tiffin train mobilenet_v2 --export" in out
    code, out, _ = tiffin("study", "--help")
    assert code == 0 and "batch_norm" in out


@pytest.mark.parametrize("word", ["list", "--help"])
def test_a_reader_that_leaves_early_is_no_error(word):
    process = subprocess.Popen(
        [TIFFIN, word], stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    process.stdout.close()  # as `head` does
    assert process.stderr.read() == b"" and process.wait() == 0


def test_recipe_help_is_the_same_by_file_and_by_name(here):
    code, out, _ = here("train", "resnet50", "--help")
    text = " ".join(out.replace("│", " ").split())  # whichever lines it is broken into
    assert code == 0 and "--stride-in" in text and "(default: resnet50)" in text
    script = REPO / "recipes/classification/resnet.py"
    done = subprocess.run([sys.executable, script, "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "--stride-in" in done.stdout


def test_mistyped_names_get_the_nearest(here, fails):
    assert "did you mean 'train'" in fails("trian")
    assert "did you mean 'mobilenet_v2' or" in fails("train", "mobilnet_v2")
    assert "'resnet20'" in fails("train", "resnet2O")
    assert "needs the name of a recipe" in fails("train")
    code, _, said = here("train", "resnet20", "--leraning-rate", "1")
    assert code == 2 and "--learning-rate" in said


def test_bad_data_and_folders_are_told_in_a_paragraph(fails, tmp_path, monkeypatch):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    said = fails("train", "resnet20", "--data", "./empty")
    assert "nothing in it" in said and "photos/cat/1.jpg" in said
    assert not list((tmp_path / "runs").rglob("*.keras"))
    # Not even root may make a folder there.
    said = fails("train", "resnet20", "--output", "/sys/tiffin")
    assert "Cannot write /sys/tiffin" in said and "name a folder that can be written to" in said
    (tmp_path / "file").write_text("")
    said = fails("train", "resnet20", "--output", tmp_path / "file" / "run")
    assert "is a file, not a folder" in said


@pytest.mark.full
def test_transfer_on_photos_from_a_folder(tmp_path):
    """Forty cut-outs of two kinds of blood cells: transfer from saved weights, export, predict."""
    import xml.etree.ElementTree as tree

    source = REPO.parent / "shared/data/bccd"
    if not source.is_dir():
        pytest.skip("needs the blood-cell pictures in ../shared/data/bccd")
    counts = dict.fromkeys(("RBC", "WBC"), 0)
    for note in sorted((source / "Annotations").glob("*.xml")):
        picture = Image.open(source / "JPEGImages" / f"{note.stem}.jpg")
        for thing in tree.parse(note).iter("object"):
            name = thing.findtext("name")
            if counts.get(name, 20) >= 20:
                continue
            box = [int(thing.findtext(f"bndbox/{k}")) for k in ("xmin", "ymin", "xmax", "ymax")]
            (tmp_path / "photos" / name).mkdir(parents=True, exist_ok=True)
            counts[name] += 1
            picture.crop(box).save(tmp_path / "photos" / name / f"{counts[name]}.jpg")
    assert counts == {"RBC": 20, "WBC": 20}
    first, second = tmp_path / "digits", tmp_path / "cells"
    code, _, said = tiffin("train", "resnet20", "--epochs", "4", "--output", first)
    assert code == 0, said
    code, out, said = tiffin(
        "train", "resnet20", "--data", tmp_path / "photos", "--image-size", "32", "--weights",
        first / "model.keras", "--freeze", "conv2_block3_out", "--epochs", "30", "--batch-size",
        "14", "--learning-rate", "0.02", "--export", "--output", second,
    )  # fmt: skip
    assert code == 0, said
    assert "Head replaced: logits" in out
    assert len(list((second / "export").glob("resnet20_*"))) == 6
    code, out, said = tiffin(
        "predict",
        second / "export/resnet20_int8.tflite",
        *sorted((tmp_path / "photos/WBC").iterdir()),
    )
    assert code == 0, said
    assert np.sum([("WBC" in line) for line in out.splitlines()]) >= 18


def test_summary_counts_as_the_paper_does(here):
    code, out, _ = here("summary", "resnet50")
    totals = " ".join(out.split())
    # The paper's table 1 has 3.8 x 10^9; torch's form, strided in the 3x3, 4.09.
    assert code == 0 and "25,557,032 of them trainable" in totals and "3,858.0 M" in totals
    assert "receptive field 483 pixels" in totals
    row = next(line for line in out.splitlines() if line.startswith("| conv2_block1_2_conv "))
    cells = [cell.strip() for cell in row.split("|")]
    # 3 x 3 x 64 x 64 weights, each used at 56 x 56 places.
    assert cells[3:6] == ["56 x 56 x 64", "36,864", f"{56 * 56 * 36_864 / 1e6:.2f}"]


def test_summary_takes_the_builders_options(capsys):
    Summary("mobilenet_v2", size=96, options=("alpha=0.35",)).run()
    assert "mobilenet_v2 at 96 x 96 x 3" in capsys.readouterr().out
    said = {"shortcut=C": "shortcut='C' must be", "alpha": "write NAME", "alpha=1": "no option"}
    for option, message in said.items():
        with pytest.raises(InputError, match=message):
            Summary("resnet20", options=(option,)).run()
    for option in ("alpha=half", "input_shape=3"):
        with pytest.raises(InputError, match="mobilenet_v2 cannot be built so"):
            Summary("mobilenet_v2", options=(option,)).run()
    with pytest.raises(InputError, match=r"no file no\.keras"):
        Summary("no.keras").run()


@pytest.mark.full
def test_a_copied_recipe_is_ones_own(fails, tmp_path):
    code, out, _ = tiffin("copy", "resnet20", "deep/my_net.py", cwd=tmp_path)
    assert code == 0 and "python deep/my_net.py --model resnet20" in out
    script = tmp_path / "deep/my_net.py"
    script.write_text(script.read_text().replace('("conv4", 8, 64)', '("conv4", 8, 96)'))
    command = [sys.executable, script, "--model", "resnet20", "--epochs", "1", "--image-size", "8"]
    done = subprocess.run(
        [*command, "--output", "run"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '"recipe": "my_net"' in (tmp_path / "run/metrics.json").read_text()
    wrong = {"exists already": script, r"must end in \.py": tmp_path / "net"}
    for message, path in wrong.items():
        with pytest.raises(InputError, match=message):
            Copy("resnet20", path).run()
    assert "no recipe 'resnet2'" in fails("copy", "resnet2", tmp_path / "net.py")
