"""Training in several places: the same numbers as in one, and an end that all of them notice."""

import itertools
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import split_training
from hypothesis import given
from hypothesis import strategies as st
from jax._src.clusters.slurm_cluster import SlurmCluster
from numerics import FAST_XLA

from tiffin.export.errors import InputError
from tiffin.recipes.engine import distribution, scenes
from tiffin.recipes.engine.augmentation import augmenter
from tiffin.recipes.engine.box_data import load_boxes
from tiffin.recipes.engine.data import Split, load_images
from tiffin.recipes.engine.distribution import ALONE, Place, Request
from tiffin.recipes.engine.pair_data import load_pairs
from tiffin.recipes.engine.text_data import load_text

SCRIPT = Path(split_training.__file__)
FURTHER = [("resnet20", "center_loss", "ssd"), ("seq2seq", "gan")]


def start(folder: Path, *words, devices: int = 1) -> subprocess.Popen:
    """Start the script in a process of its own, which sees `devices`."""
    folder.mkdir(exist_ok=True)
    flags = f"{FAST_XLA} --xla_force_host_platform_device_count={devices}"
    env = os.environ | {"KERAS_BACKEND": "jax", "XLA_FLAGS": flags}
    env |= {"TF_CPP_MIN_LOG_LEVEL": "3", "XLA_PYTHON_CLIENT_PREALLOCATE": "false"}
    command = [sys.executable, str(SCRIPT), str(folder), *map(str, words)]
    path = folder / f"{time.monotonic_ns()}.log"
    with open(path, "w") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT)
    process.path = path
    return process


def several(folders: list[Path], *words, die: dict[int, int] | None = None) -> list:
    """Start a process of one training in each folder; `die`: by process, the epoch to die in."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{found.getsockname()[1]}"
    where = ["--coordinator", address, "--processes", len(folders), "--process"]
    die = die or {}
    return [
        start(folder, *words, *where, i, *(["--die", die[i]] if i in die else []))
        for i, folder in enumerate(folders)
    ]


def ended(process, within: float = 400) -> tuple[int, str]:
    """Return the exit status of a process and what it said."""
    try:
        status = process.wait(within)
    finally:
        process.kill()
    return status, process.path.read_text()


def kept(folder: Path, kind: str, index: int = 0) -> dict[str, np.ndarray]:
    with np.load(folder / f"{kind}.{index}.npz") as file:
        return dict(file)


def train(top: Path, kinds: tuple[str, ...]) -> dict[str, Path]:
    """Return the folders of the same trainings in one place, on four devices, in two processes."""
    split_training.texts(top)
    folders = {name: top / name for name in ("one", "devices", "processes")}

    def trainings():
        yield [start(folders["one"], *kinds)]
        yield [start(folders["devices"], *kinds, "--devices", 4, devices=4)]
        yield several([folders["processes"]] * 2, *kinds)

    for processes in trainings():
        for status, said in [ended(process) for process in processes]:
            assert status == 0, said
    return folders


def compare(folders: dict[str, Path], kind: str) -> None:
    alone = kept(folders["one"], kind)
    assert len(alone["losses"]) >= 8 and np.isfinite(alone["losses"]).all()
    others = {name: kept(folders[name], kind) for name in ("devices", "processes")}
    others["process 1"] = kept(folders["processes"], kind, 1)
    for other in others.values():
        np.testing.assert_allclose(other["losses"], alone["losses"], rtol=1e-5)
        # Relative above one, where moving variances are.
        np.testing.assert_allclose(other["weights"], alone["weights"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "kinds", [("char_rnn",), *(pytest.param(x, marks=pytest.mark.full) for x in FURTHER)]
)
def test_losses_and_weights_are_those_of_one_process(kinds, tmp_path):
    folders = train(tmp_path, kinds)
    for kind in kinds:
        compare(folders, kind)
    # The process that does not lead leaves nothing, the other one all of a run.
    for folder in (folders["one"], folders["processes"]):
        left = {path.name for path in (folder / kinds[0]).iterdir()}
        assert {"model.keras", "last.weights.h5", "history.csv", "logs"} <= left


@pytest.mark.full
@pytest.mark.parametrize(("victim", "again"), [(1, 1), (0, 2)])
def test_a_process_that_dies_ends_the_others_and_any_number_goes_on(victim, again, tmp_path):
    split_training.texts(tmp_path)
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    processes = several([broken] * 2, "char_rnn", die={victim: 2})
    status, _ = ended(processes[victim])
    begun = time.monotonic()
    status, said = ended(processes[1 - victim], 60)
    assert status in (1, 2) and time.monotonic() - begun < 60
    assert f"Process {victim} on " in said and "--resume" in said
    history = (broken / "char_rnn" / "history.csv").read_text()
    assert len(history.splitlines()) == 2  # one epoch, and the names

    if again == 1:
        runs = [start(broken, "char_rnn", "--resume")]
    else:
        runs = several([broken] * again, "char_rnn", "--resume")
    for status, said in [ended(process) for process in [*runs, start(whole, "char_rnn")]]:
        assert status == 0, said
    expected, found = kept(whole, "char_rnn"), kept(broken, "char_rnn")
    np.testing.assert_allclose(found["weights"], expected["weights"], rtol=0, atol=1e-5)
    half = len(expected["losses"]) // 2
    np.testing.assert_allclose(found["losses"], expected["losses"][half:], rtol=1e-5)


@pytest.mark.full
@pytest.mark.parametrize("victim", [0, 1])
def test_a_process_that_hangs_is_named(victim, tmp_path):
    split_training.texts(tmp_path)
    words = ["char_rnn", "--patience", 8, "--freeze"]
    processes = several([tmp_path / "run"] * 2, *words, die={victim: 2})
    status, said = ended(processes[1 - victim], 120)
    processes[victim].kill()
    assert status == 1 and f"Process {victim} on " in said and "--resume" in said


def test_a_coordinator_that_is_not_there_is_told(tmp_path):
    words = ["--coordinator", "127.0.0.1:1", "--processes", 2, "--process", 1, "--patience", 2]
    status, said = ended(start(tmp_path / "run", "char_rnn", *words), 60)
    assert status and "did not get together with the others at 127.0.0.1:1" in said


@pytest.mark.full
def test_a_mistake_of_one_process_is_told_by_all(tmp_path):
    split_training.texts(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "source.txt").write_text("abc def\n" * 200)
    folders = [tmp_path / "run", tmp_path / "other" / "run"]
    (status, here), (other, there) = (ended(p, 120) for p in several(folders, "char_rnn"))
    assert status and other
    assert "The data is not that of process 0" in there
    assert "Process 1 on " in here and "The data is not that of process 0" in here


# ---------------------------------------------------------------- who reads what


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 6), st.integers(0, 50))
def test_processes_share_a_batch_without_gap_or_overlap(count, devices, each, rest):
    places = [Place(i, count, count * devices) for i in range(count)]
    batch = np.arange(count * devices * each)
    np.testing.assert_array_equal(
        np.concatenate([batch[p.rows(len(batch))] for p in places]), batch
    )
    number = len(batch) + rest
    whole = places[0].whole(number)
    assert whole % (count * devices) == 0 and 0 <= number - whole < count * devices


@pytest.fixture(scope="module")
def splits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("texts")
    split_training.texts(folder)
    digits = load_images("digits", None, 8, 8, 0).train.take(np.arange(43))
    source, target = (str(folder / f"{name}.txt") for name in ("source", "target"))
    pairs = load_pairs(source, target, ("en", "de"), "utf-8", "words", 100, None, 0).train
    text = load_text(source, "utf-8", 8, 4, "characters").train
    return {"images": digits, "pairs": pairs, "text": text}


def batches(split, place, steps=7):
    """Return some batches of training as lists of arrays, and all of validation."""
    import tensorflow as tf

    if isinstance(split, Split):
        augment = augmenter(["rotation", "noise"])
        endless = split.training_batches(8, 3, 0, augment, place=place)
    elif hasattr(split, "training_batches"):
        endless = split.training_batches(8, 3, 0, True, place=place)
    else:
        endless = split.batches(8, place)
    found = itertools.islice(endless.as_numpy_iterator(), steps)
    return [
        tf.nest.flatten(batch) for batch in (*found, *split.batches(8, place).as_numpy_iterator())
    ]


@pytest.mark.parametrize("kind", ["images", "pairs", "text"])
@pytest.mark.parametrize("count", [2, 4])
def test_the_shares_of_all_processes_are_the_batches_of_one(splits, kind, count):
    whole = batches(splits[kind], Place(0, 1, count))
    parts = [batches(splits[kind], Place(i, count, count)) for i in range(count)]
    assert len(whole) == len(parts[0]) > 7
    for batch, *shares in zip(whole, *parts, strict=True):
        for array, *mine in zip(batch, *shares, strict=True):
            # Grey levels: vector instructions round otherwise at the end of an array.
            np.testing.assert_allclose(np.concatenate(mine), array, rtol=0, atol=1e-3)


def test_a_process_opens_its_own_files_alone(photos):
    # So many that reading ahead does not come to the next epoch, where the order is another.
    for path in [*photos.glob("*/*")]:
        for i in range(10):
            shutil.copy(path, path.with_name(f"{i}_{path.name}"))
    split = load_images(str(photos), None, 8, 8, 0).train
    split.images = None
    opened = [set(), set()]

    def read(path, index):
        opened[index].add(path)
        return Split.decode(split, path)

    for index in (0, 1):
        split.decode = lambda path, index=index: read(path, index)
        place = Place(index, 2, 2)
        assert len([*itertools.islice(split.training_batches(4, 0, 0, place=place), 3)]) == 3
    assert opened[0] and not opened[0] & opened[1]


def test_an_unreadable_file_leaves_processes_in_step(photos, capsys):
    split = load_images(str(photos), None, 8, 8, 0).train
    split.images = None
    Path(split.paths[1]).write_bytes(b"no picture")
    shapes = [
        [images.shape[0] for images, _ in split.batches(4, Place(i, 2, 2)).as_numpy_iterator()]
        for i in (0, 1)
    ]
    assert shapes[0] == shapes[1] and sum(shapes[0]) == len(split) // 2
    assert "Skipped" in capsys.readouterr().out


def test_detection_data_is_shared_too(monkeypatch):
    monkeypatch.setattr("tiffin.recipes.engine.box_data.SCENES", (9, 4, 4))
    split = load_boxes("digits", None, 64, 0).train
    whole, *parts = (
        next(iter(split.training_batches(8, 0, 0, place=place).as_numpy_iterator()))[1]
        for place in (ALONE, Place(0, 2, 2), Place(1, 2, 2))
    )
    for name, array in whole.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    assert scenes.CLASSES


# ---------------------------------------------------------------- what is asked for


TORCHRUN = {"MASTER_ADDR": "host", "MASTER_PORT": "7", "WORLD_SIZE": "4", "RANK": "2"}


def slurm(nodes: str) -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "4711", "SLURM_STEP_NODELIST": nodes, "SLURM_NTASKS": "3",
        "SLURM_PROCID": "1", "SLURM_LOCALID": "0",
    }  # fmt: skip


@pytest.fixture
def environment(monkeypatch):
    for name in [*TORCHRUN, *slurm(""), "JOB_COMPLETION_INDEX", "LOCAL_RANK", "LOCAL_WORLD_SIZE"]:
        monkeypatch.delenv(name, raising=False)
    return lambda values: [monkeypatch.setenv(*item) for item in values.items()]


def test_torchrun_and_kubernetes_are_read(environment):
    assert Request().completed() == Request(processes=1, process=0)
    environment({"JOB_COMPLETION_INDEX": "3"})
    assert Request().completed().processes == 1  # one training a pod
    assert Request(None, "a:1", 5).completed() == Request(None, "a:1", 5, 3)
    environment(TORCHRUN)
    assert Request().completed() == Request(None, "host:7", 4, 2)
    assert Request(process=1, coordinator="b:8").completed() == Request(None, "b:8", 4, 1)
    environment({"LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": "1"})
    assert distribution._own_device() == [1]


@pytest.mark.parametrize(
    "nodes", ["node001", "node001,host2", "node[001-0015],host2", "node[001,007-015],host2"]
)
def test_slurm_is_read_as_jax_does(environment, nodes):
    environment(slurm(nodes))
    address = SlurmCluster.get_coordinator_address(None, None)
    assert Request().completed() == Request(None, address, 3, 1)
    assert distribution._own_device() is None
    environment({"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_LOCALID": "1"})
    assert distribution._own_device() == [1]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (Request(coordinator="a:1"), "--processes is missing"),
        (Request(processes=2), "--coordinator is missing"),
        (Request(coordinator="a:1", processes=2), "--process is missing"),
        (Request(None, "a:1", 2, 2), "from 0 to 1"),
        (Request(None, "host", 2, 1), "HOST:PORT"),
        (Request(process=1), "goes with"),
        (Request(devices=0), "at least 1"),
        (Request(devices=2), "KERAS_BACKEND=jax"),
        (Request(None, "a:1", 2, 1), "KERAS_BACKEND=jax"),
    ],
)
def test_what_cannot_be_is_told(environment, asked, said):
    with pytest.raises(InputError, match=said), distribution.join(asked):
        pass


def test_batches_that_cannot_be_shared_are_told():
    Place(0, 1, 4).check_batch(8)
    with pytest.raises(InputError, match="take 8 or 12"):
        Place(0, 1, 4).check_batch(10)
    with pytest.raises(InputError, match="do not divide"):
        Place(0, 1, 4).whole(3)


MIRRORED = """
from tiffin.export import InputError
from tiffin.recipes.embedding.am_softmax import Config as AMSoftmax
import tensorflow as tf, tiny_recipe, sys, json, pathlib
cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
found = tf.config.list_logical_devices
tf.config.list_logical_devices = lambda kind=None: found("CPU" if kind == "GPU" else kind)
own = AMSoftmax(devices=2)
try:
    own.run()
except InputError as error:
    assert "KERAS_BACKEND=jax" in str(error)
else:
    raise SystemExit("a margin loss is not Keras' own")
config = tiny_recipe.Config(output=pathlib.Path(sys.argv[1]), devices=2, epochs=2, batch_size=64)
print(json.dumps(config.run()["test"]["accuracy"]))
"""


@pytest.mark.full
def test_tensorflow_takes_its_own_strategy_where_it_has_devices(tmp_path):
    path = f"{SCRIPT.parent}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    env = os.environ | {"PYTHONPATH": path, "KERAS_BACKEND": "tensorflow"}
    command = [sys.executable, "-c", MIRRORED, str(tmp_path / "run")]
    said = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout.splitlines()[-1]) > 0.3
    assert (tmp_path / "run" / "model.keras").exists()
