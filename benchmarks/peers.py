"""The same networks by torchvision and pytorchcv, for the comparisons."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Our variant: (library, its name).
PEERS = {
    "alexnet_owt": ("torchvision", "alexnet"),
    "zfnet": ("pytorchcv", "zfnet"),
    "vgg16": ("torchvision", "vgg16"),
    "vgg16_bn": ("torchvision", "vgg16_bn"),
    "googlenet_bn": ("torchvision", "googlenet"),
    "bninception": ("pytorchcv", "bninception"),
    "inception_v3": ("torchvision", "inception_v3"),
    "inception_v4": ("pytorchcv", "inceptionv4"),
    "inception_resnet_v2": ("pytorchcv", "inceptionresnetv2"),
    "resnet18": ("torchvision", "resnet18"),
    "resnet50": ("torchvision", "resnet50"),
    "preact_resnet50": ("pytorchcv", "preresnet50"),
    "resnext50_32x4d": ("torchvision", "resnext50_32x4d"),
    "densenet121": ("torchvision", "densenet121"),
    "densenet40_k12": ("pytorchcv", "densenet40_k12_cifar10"),
    "resnet20": ("pytorchcv", "resnet20_cifar10"),
    "se_resnet50": ("pytorchcv", "seresnet50"),
    "squeezenet1_1": ("torchvision", "squeezenet1_1"),
    "mobilenet_v1": ("pytorchcv", "mobilenet_w1"),
    "mobilenet_v2": ("torchvision", "mobilenet_v2"),
    "shufflenet_v1_g3": ("pytorchcv", "shufflenet_g3_w1"),
    "shufflenet_v2_x1_0": ("torchvision", "shufflenet_v2_x1_0"),
}
# What ours have to be built with to be the same.
OPTIONS = {"densenet40_k12": {"compression": 0.5}}


def declare_operators() -> bool:
    """Declare torchvision's operators where its wheel is for another build of torch and lacks them.

    Returns:
        Whether they were lacking.
    """
    import torch

    lacking = not hasattr(torch.ops.torchvision, "nms")
    for operator in ("nms", "qnms") if lacking else ():
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        torch.library.define(f"torchvision::{operator}", schema)
    return lacking


def peer(name: str, **options) -> "torch.nn.Module":
    """Return the network of another library that our variant `name` is held against."""
    declare_operators()
    library, theirs = PEERS[name]
    if library == "torchvision":
        import torchvision

        if theirs in ("googlenet", "inception_v3"):
            options = {"aux_logits": False, "init_weights": False} | options
        return getattr(torchvision.models, theirs)(weights=None, **options)
    from pytorchcv.model_provider import get_model

    return get_model(theirs, **options)
