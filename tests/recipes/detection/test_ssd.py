"""SSD against published counts, torchvision's network and a loss written from the paper."""

import dataclasses
import json

import numpy as np
import parity
import pytest
import torch
from PIL import Image

from tiffin import export, recipes
from tiffin.export import InputError
from tiffin.export.images import Frame
from tiffin.recipes.detection import ssd
from tiffin.recipes.engine import registry, scenes
from tiffin.recipes.engine.box_data import BoxData, BoxSplit
from tiffin.recipes.engine.weights import load_weights

FRAME = Frame.around((96, 96), (96, 96))


@pytest.mark.parametrize(
    "name, count, boxes",
    [
        # ssd.pytorch's counts for VOC, and the paper's numbers of boxes (sections 3.1 and 3.3)
        ("ssd300_vgg16", 26_285_486, 8732),
        *parity.full(("ssd512_vgg16", 27_188_676, 24564)),
        # MobileNetV2, table 6: 4.3 M parameters and 0.8 B MACs on COCO
        ("ssdlite320_mobilenet_v2", 4_386_058, 2434),
        ("ssd_small", 653_420, 3024),
    ],
)
def test_published_counts(name, count, boxes):
    model = parity.check_counts(name, count)
    classes = registry.find(name).variants[name].classes
    assert model.output["deltas"].shape == (None, boxes, 4)
    assert model.output["logits"].shape == (
        None,
        boxes,
        1 + classes,
    )
    found = ssd.default_boxes(model, name)
    assert found.shape == (boxes, 4) and (found[:, 2:] > found[:, :2]).all()


@pytest.mark.full
def test_raw_heads_and_boxes_are_torchvisions(tmp_path):
    parity.torchvision_models()
    from torchvision.models.detection import ssd300_vgg16
    from torchvision.models.detection.image_list import ImageList

    theirs = ssd300_vgg16(weights=None, weights_backbone=None, num_classes=21).eval()
    random = np.random.default_rng(0)
    with torch.no_grad():
        for p in theirs.parameters():
            fan = max(1, p[0].numel())
            scale = (2 / fan) ** 0.5 if p.ndim > 1 else 0.05
            p.copy_(torch.from_numpy(random.normal(0, scale, tuple(p.shape)).astype("float32")))
        theirs.backbone.scale_weight.copy_(torch.linspace(15, 25, 512))
    assert sum(p.numel() for p in theirs.parameters()) == 26_285_486
    ours = recipes.build("ssd300_vgg16", classes=20)

    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    load_weights(ours, tmp_path / "a.pth")
    x = random.normal(size=(1, 300, 300, 3)).astype("float32")
    tensor = torch.from_numpy(x).permute(0, 3, 1, 2).contiguous()
    with torch.no_grad():
        maps = list(theirs.backbone(tensor).values())
        wanted = theirs.head(maps)
        (boxes,) = theirs.anchor_generator(ImageList(tensor, [(300, 300)]), maps)
    found = ours.predict_on_batch(x)
    deltas = wanted["bbox_regression"].numpy()[..., [1, 0, 3, 2]]
    for mine, other in ((found["deltas"], deltas), (found["logits"], wanted["cls_logits"].numpy())):
        np.testing.assert_allclose(mine, other, atol=1e-3 * max(1, np.abs(other).max()))
    # torchvision's boxes are COCO's; it cuts sides, not corners.
    mine = ssd.default_boxes(ours, "ssd300_vgg16", (0.07, 0.15, 0.33, 0.51, 0.69, 0.87, 1.05))
    center, sides = (mine[:, :2] + mine[:, 2:]) / 2, (mine[:, 2:] - mine[:, :2]).clip(max=300)
    wanted = boxes.numpy()[:, [1, 0, 3, 2]]
    np.testing.assert_allclose(center - sides / 2, wanted[:, :2], atol=1e-2)
    np.testing.assert_allclose(center + sides / 2, wanted[:, 2:], atol=1e-2)


def test_loss_is_the_papers():
    config = ssd.Config()
    network = config.raw((96, 96, 3), 3, (127.5, 60.0))
    random = np.random.default_rng(1)
    count = len(config.boxes)
    outputs = {
        "deltas": random.normal(size=(2, count, 4)).astype("float32"),
        "logits": random.normal(size=(2, count, 4)).astype("float32"),
    }
    real = np.array([[[10, 20, 40, 50], [60, 60, 110, 100]], [[5, 5, 20, 22], [0, 0, 0, 0]]], float)
    kinds = np.array([[2, 0], [1, -1]])
    targets = {"boxes": real.astype("float32"), "classes": kinds.astype("int32")}
    found = {k: float(v) for k, v in config.losses(targets, outputs).items()}
    box_loss = class_loss = matches = 0.0
    for i in range(2):
        things = real[i][kinds[i] >= 0]
        a, b = config.boxes.astype(float)[:, None], things[None]
        sides = (np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])).clip(0)
        shared = sides.prod(-1)
        areas = [(z[..., 2:] - z[..., :2]).prod(-1) for z in (a, b)]
        overlap = shared / (areas[0] + areas[1] - shared)
        owner = np.where(overlap.max(1) >= 0.5, overlap.argmax(1), -1)
        for thing in np.argsort(-overlap.max(0)):
            owner[overlap[:, thing].argmax()] = thing
        log_p = outputs["logits"][i] - np.log(np.exp(outputs["logits"][i]).sum(-1, keepdims=True))
        for n in np.flatnonzero(owner >= 0):
            box, anchor = things[owner[n]], config.boxes[n].astype(float)
            h, w = box[2:] - box[:2]
            ha, wa = anchor[2:] - anchor[:2]
            wanted = [
                ((box[0] + box[2]) - (anchor[0] + anchor[2])) / 2 / ha / 0.1,
                ((box[1] + box[3]) - (anchor[1] + anchor[3])) / 2 / wa / 0.1,
                np.log(h / ha) / 0.2,
                np.log(w / wa) / 0.2,
            ]
            d = np.abs(outputs["deltas"][i, n] - wanted)
            box_loss += np.where(d < 1, d**2 / 2, d - 0.5).sum()
            class_loss -= log_p[n, 1 + kinds[i][owner[n]]]
        positives = (owner >= 0).sum()
        matches += positives
        class_loss += np.sort(-log_p[owner < 0, 0])[::-1][: 3 * positives].sum()
    assert network.output["logits"].shape == (None, count, 4) and matches >= 3
    assert found["box_loss"] == pytest.approx(box_loss / matches, rel=1e-4)
    assert found["class_loss"] == pytest.approx(class_loss / matches, rel=1e-4)


def test_a_picture_without_objects_teaches_background():
    config = ssd.Config()
    config.raw((96, 96, 3), 3, (127.5, 60.0))
    count = len(config.boxes)
    outputs = {"deltas": np.ones((1, count, 4)), "logits": np.zeros((1, count, 4))}
    outputs = {name: value.astype("float32") for name, value in outputs.items()}
    targets = {"boxes": np.zeros((1, 1, 4), "float32"), "classes": np.full((1, 1), -1, "int32")}
    found = {k: float(v) for k, v in config.losses(targets, outputs).items()}
    assert found["box_loss"] == 0 and found["class_loss"] == pytest.approx(3 * np.log(4), rel=1e-5)


@pytest.fixture
def config(tmp_path) -> ssd.Config:
    """A short training on scenes in YOLO form, one of whose pictures cannot be read."""
    for part, (images, boxes, classes) in zip(
        ("train", "val", "test"), scenes.make((12, 4, 5), 64, seed=3), strict=True
    ):
        for i, (image, these, kinds) in enumerate(zip(images, boxes, classes, strict=True)):
            for kind in ("images", "labels"):
                (tmp_path / "set" / kind / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(tmp_path / "set" / "images" / part / f"{i}.png")
            y1, x1, y2, x2 = these.T / 64
            rows = np.stack([kinds, (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1], 1)
            np.savetxt(tmp_path / "set" / "labels" / part / f"{i}.txt", rows)
    (tmp_path / "set" / "classes.txt").write_text("\n".join(scenes.CLASSES))
    # Not the last picture of the test: one that cannot be read must not shift the others.
    (tmp_path / "set" / "images" / "test" / "1.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    return ssd.Config(
        data=str(tmp_path / "set"), image_size=64, epochs=1, batch_size=4,
        augment=("mosaic", "iou_crop", "color_jitter"), output=tmp_path / "run",
    )  # fmt: skip


def test_a_whole_run_on_a_folder(config, tmp_path):
    """Train, evaluate, leave pictures and strict JSON."""
    config.run()

    def refuse(word):
        raise ValueError(word)

    text = (tmp_path / "run" / "metrics.json").read_text()
    test = json.loads(text, parse_constant=refuse)["test"]
    assert test["examples"] == 4 and 0 <= test["map50"] <= 1 and test["images_per_second"] > 0
    assert set(test["classes"]) == set(scenes.CLASSES)
    drawn = {p.stem for p in (tmp_path / "run").glob("*.png")}
    assert drawn == {"augmented", "confusion", "curves", "detections", "precision_recall"}
    assert "COCO AP50" in (tmp_path / "run" / "report.md").read_text()


@pytest.mark.full
def test_a_run_goes_on(config, tmp_path):
    config.run()
    dataclasses.replace(config, resume=True, epochs=2).run()
    assert json.loads((tmp_path / "run" / "metrics.json").read_text())["epochs"] == 2


def test_any_backbone_with_the_strides():
    model = recipes.build("ssd_small", (96, 96, 3), 2, backbone="mobilenet_v1", alpha=0.25)
    assert model.output["logits"].shape[1:] == (576 * 4 + 144 * 4 + 36 * 4, 3)
    with pytest.raises(InputError, match="resnet20 has no map of stride 8"):
        recipes.build("ssd_small", (96, 96, 3), 2, backbone="resnet20")


@pytest.mark.parametrize(
    "config, message",
    [
        (ssd.Config(scales=(0.1, 0.2)), "takes 4 numbers"),
        (ssd.Config(match_iou=1.5), "--match-iou"),
        (ssd.Config(score_threshold=1.0), "--score-threshold"),
        (ssd.Config(detections=0), "--detections"),
        (ssd.Config(suppression="none", coordinates="relative"), "--suppression none"),
        (ssd.Config(backbone="arcface_r18"), "no classification network"),
        (ssd.Config(augment=("mosaik",)), "did you mean 'mosaic'"),
    ],
)
def test_wrong_options_are_told_before_anything_is_loaded(config, message):
    with pytest.raises(InputError, match=message):
        config.run()


@pytest.mark.parametrize(
    "options, outputs",
    [
        *parity.full(
            ({"suppression": "none"}, {"boxes": (3024, 4), "scores": (3024, 10)}),
            (
                {"coordinates": "relative"},
                {"boxes": (100, 4), "scores": (100,), "classes": (100,), "count": ()},
            ),
        ),
        (
            {"suppression": "runtime"},
            {"boxes": (100, 4), "scores": (100,), "classes": (100,), "count": ()},
        ),
    ],
)
def test_what_leaves_can_be_chosen(options, outputs, tmp_path):
    config = ssd.Config(epochs=1, export=True, output=tmp_path, precisions=("fp32",), **options)
    network = config.network((96, 96, 3), 10, (60.0, 60.0))
    model = config.exported(config.inference(network))
    assert {name: tuple(t.shape[1:]) for name, t in model.output.items()} == outputs
    (images, boxes, classes), *_ = scenes.make((6, 1, 1), 96)
    split = BoxSplit.of(
        boxes, classes, [np.zeros(len(c), bool) for c in classes], [FRAME] * 6, images
    )
    data = BoxData("scenes", scenes.CLASSES, split, split, split, None)
    given = config.export_options(data, {})
    manifest = export.export(model, tmp_path / "out", precisions=("fp32",), **given)
    wanted = pytest.approx(manifest["reference"]["value"], abs=1e-3)
    assert [file["metric"] for file in manifest["files"]] == [wanted, wanted]
