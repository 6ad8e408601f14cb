"""YOLO against published counts and a Darknet written from its C code."""

import numpy as np
import parity
import pytest
import torch
from darknet import reorg_by_loops

from tiffin import recipes
from tiffin.export import InputError
from tiffin.recipes.detection import yolo
from tiffin.recipes.engine import box_data, registry
from tiffin.recipes.engine.weights import load_weights


@pytest.mark.parametrize(
    "name, count, rows",
    [
        # Sizes of the authors' files, less the statistics of batch normalisation; ports of v1
        *parity.full(("yolov1", 271_703_550, 98)),
        ("yolov1_fast", 45_089_374, 98),
        ("yolov2", (203_934_260 - 16) // 4 - 20_672, 845),
        *parity.full(("yolov3", (248_007_048 - 20) // 4 - 52_608, 10_647)),
        ("yolov3_tiny", (35_434_956 - 20) // 4 - 6_368, 2535),
        ("yolov3_small", 436_774, 2160),
    ],
)
def test_published_counts(name, count, rows):
    model = parity.check_counts(name, count)
    classes = registry.find(name).variants[name].classes
    assert model.output["deltas"].shape == (None, rows, 4)
    assert model.output["logits"].shape == (
        None,
        rows,
        1 + classes,
    )


# As in Darknet's files of configuration: filters, kernel, stride; a route's layers, counted from
# there or, where not negative, from the beginning.
TINY = """16 3 1; pool 2; 32 3 1; pool 2; 64 3 1; pool 2; 128 3 1; pool 2; 256 3 1; pool 2; 512 3 1
pool 1; 1024 3 1; 256 1 1; 512 3 1; head 512 3; yolo; route -4; 128 1 1; up; route -1 8; 256 3 1
head 256 3; yolo"""
V2 = """32 3 1; pool 2; 64 3 1; pool 2; 128 3 1; 64 1 1; 128 3 1; pool 2; 256 3 1; 128 1 1; 256 3 1
pool 2; 512 3 1; 256 1 1; 512 3 1; 256 1 1; 512 3 1; pool 2; 1024 3 1; 512 1 1; 1024 3 1; 512 1 1
1024 3 1; 1024 3 1; 1024 3 1; route -9; 64 1 1; reorg; route -1 -4; 1024 3 1; head 1024 5; yolo"""
PAIR = "{0} 1 1; {1} 3 1; shortcut -3; "
V3 = "32 3 1; 64 3 2; " + PAIR.format(32, 64) + "128 3 2; " + PAIR.format(64, 128) * 2
V3 += "256 3 2; " + PAIR.format(128, 256) * 8 + "512 3 2; " + PAIR.format(256, 512) * 8
V3 += "1024 3 2; " + PAIR.format(512, 1024) * 4
V3 += "512 1 1; 1024 3 1; " * 3 + "head 1024 3; yolo; route -4; 256 1 1; up; route -1 61; "
V3 += "256 1 1; 512 3 1; " * 3 + "head 512 3; yolo; route -4; 128 1 1; up; route -1 36; "
V3 += "128 1 1; 256 3 1; " * 3 + "head 256 3; yolo"


def run_darknet(rows: str, x: np.ndarray, classes: int, random) -> tuple[list, bytes]:
    """Run a network of random weights on a picture NCHW; return its heads and its file."""
    x = torch.from_numpy(x)
    numbers, outputs, heads = [], [], []
    functional = torch.nn.functional

    def draw(count: int, low: float, high: float) -> torch.Tensor:
        numbers.append(random.uniform(low, high, count).astype("<f4"))
        return torch.from_numpy(numbers[-1])

    def draw_kernel(filters: int, size: int) -> torch.Tensor:
        most = 1.7 / (x.shape[1] * size**2) ** 0.5
        kernel = draw(filters * x.shape[1] * size**2, -most, most)
        return kernel.reshape(filters, -1, size, size)

    for row in rows.replace("\n", ";").split(";"):
        kind, *given = row.split()
        given = [int(n) for n in given]
        if kind == "pool":
            if given[0] == 1:  # sees nothing beyond the right and the lower border
                x = functional.max_pool2d(functional.pad(x, (0, 1, 0, 1), value=-1e9), 2, 1)
            else:
                x = functional.max_pool2d(x, 2, 2)
        elif kind == "route":
            x = torch.cat([outputs[n] for n in given], 1)
        elif kind == "shortcut":
            x = outputs[-1] + outputs[given[0]]
        elif kind == "up":
            x = functional.interpolate(x, scale_factor=2, mode="nearest")
        elif kind == "reorg":
            x = torch.from_numpy(np.stack([reorg_by_loops(one) for one in x.numpy()]))
        elif kind == "head":
            width = given[1] * (5 + classes)
            bias = draw(width, -0.5, 0.5)
            x = functional.conv2d(x, draw_kernel(width, 1), bias)
            heads.append(x)
        elif kind != "yolo":
            filters, (size, stride) = int(kind), given
            beta, gamma = draw(filters, -0.5, 0.5), draw(filters, 0.7, 1.3)
            mean, variance = draw(filters, -0.2, 0.2), draw(filters, 0.5, 1.5)
            x = functional.conv2d(x, draw_kernel(filters, size), None, stride, size // 2)
            x = (x - mean[:, None, None]) / (variance.sqrt() + 1e-6)[:, None, None]
            x = functional.leaky_relu(x * gamma[:, None, None] + beta[:, None, None], 0.1)
        outputs.append(x)
    header = np.array([0, 2, 0], "<i4").tobytes() + np.array([0], "<i8").tobytes()
    return heads, header + np.concatenate(numbers).tobytes()


@pytest.mark.parametrize(
    "name, rows, size",
    [
        ("yolov3_tiny", TINY, 96),
        pytest.param("yolov2", V2, 64, marks=pytest.mark.full),
        pytest.param("yolov3", V3, 64, marks=pytest.mark.full),
    ],
)
def test_files_of_darknet_answer_as_in_darknet(name, rows, size, tmp_path):
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (2, size, size, 3)).astype("float32")
    heads, data = run_darknet(rows, pixels.transpose(0, 3, 1, 2) / np.float32(255), 7, random)
    (tmp_path / "a.weights").write_bytes(data)
    model = recipes.build(name, (size, size, 3), 7, normalization=(0.0, 255.0))
    assert "loaded from" in load_weights(model, tmp_path / "a.weights")[0]
    found = model.predict_on_batch(pixels)
    wanted = [h.permute(0, 2, 3, 1).reshape(2, -1, 12).numpy() for h in heads]
    wanted = np.concatenate(wanted, 1)
    atol = 1e-3 * np.abs(wanted).max()
    np.testing.assert_allclose(found["deltas"], wanted[..., [1, 0, 3, 2]], atol=atol)
    np.testing.assert_allclose(found["logits"], wanted[..., 4:], atol=atol)
    assert np.abs(wanted).mean() > 50 * atol  # alive


def test_a_file_of_darknet_for_other_classes_and_for_the_first_layers(tmp_path):
    random = np.random.default_rng(1)
    _, data = run_darknet(TINY, np.zeros((1, 3, 32, 32), "float32"), 4, random)
    (tmp_path / "a.weights").write_bytes(data)
    model = recipes.build("yolov3_tiny", (32, 32, 3), 2)
    said = "\n".join(load_weights(model, tmp_path / "a.weights"))
    assert "Head replaced: stride_32_logits: the file has 4 classes" in said
    kept = model.get_layer("stride_16_deltas").get_weights()[1]
    assert np.abs(kept).max() > 0.1  # boxes are no matter of classes
    # The first two convolutions: 16 and 32 filters.
    (tmp_path / "tiny.conv.4").write_bytes(data[: 20 + 4 * (16 * 31 + 32 * (4 + 144))])
    fresh = recipes.build("yolov3_tiny", (32, 32, 3), 2)
    before = [layer.get_weights() for layer in fresh.layers]
    said = "\n".join(load_weights(fresh, tmp_path / "tiny.conv.4"))
    assert "Weights of 4 layers" in said and "further layers, these start fresh" in said
    changed = [
        layer.name
        for layer, old in zip(fresh.layers, before, strict=True)
        if any(np.any(a != b) for a, b in zip(layer.get_weights(), old, strict=True))
    ]
    assert changed == ["layer1_conv", "layer1_bn", "layer2_conv", "layer2_bn"]


@pytest.mark.parametrize(
    "cut, message", [(8, "cannot be read"), (-4, "fit yolov3_tiny for no number"), (-1, "be read")]
)
def test_damaged_files_of_darknet(cut, message, tmp_path):
    _, data = run_darknet(TINY, np.zeros((1, 3, 32, 32), "float32"), 4, np.random.default_rng(1))
    (tmp_path / "a.weights").write_bytes(data[:cut])
    with pytest.raises(InputError, match=message):
        load_weights(recipes.build("yolov3_tiny", (32, 32, 3), 4), tmp_path / "a.weights")


def test_a_file_of_darknet_for_another_network(tmp_path):
    (tmp_path / "a.weights").write_bytes(bytes(4020))
    with pytest.raises(InputError, match="none of its networks"):
        load_weights(recipes.build("resnet20"), tmp_path / "a.weights")


def test_anchors_come_from_the_data(monkeypatch):
    monkeypatch.setattr(box_data, "SCENES", (300, 10, 10))
    config = yolo.Config(data="digits", image_size=64)
    data = config.load_data()
    config.make_model(data, (127.5, 60.0))
    found = np.concatenate(config.boxes.anchors)
    assert len(found) == 6 and (np.diff(found[:3].prod(1)) > 0).all()
    assert found[:3].prod(1).min() > found[3:].prod(1).max()  # the coarse map has the large ones
    assert (found > 3).all() and (found < 24).all()


@pytest.mark.parametrize(
    "options, message",
    [
        ({"input_shape": (100, 100, 3)}, "multiples of 32"),
        ({"variant": "yolov1", "input_shape": (448, 448, 3), "backbone": "resnet18"}, "v1 has no"),
        ({"variant": "yolov4"}, "did you mean"),
    ],
)
def test_what_cannot_be_built(options, message):
    with pytest.raises((InputError, ValueError), match=message):
        yolo.yolo(**options)


def test_another_backbone():
    model = yolo.yolo("yolov3_tiny", (64, 64, 3), 2, backbone="mobilenet_v1", alpha=0.25)
    assert model.output["logits"].shape == (None, (4 + 16) * 3, 3)
