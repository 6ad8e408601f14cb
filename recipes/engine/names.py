"""How other libraries name layers and files, for the recipes' tables `WEIGHTS`."""

import re
from collections.abc import Iterable, Mapping, Sequence

Rules = tuple[tuple[str, str], ...]

KERAS_URL = "https://storage.googleapis.com/tensorflow/keras-applications/"

# Of networks made of residual units: torchvision's, with timm's, and pytorchcv's.
TORCHVISION_UNITS = (
    (r"layer(\d+)\.(\d+)\.(conv|bn)(\d)", "conv{1+1}_block{2+1}_{4}_{3}"),
    (r"layer(\d+)\.(\d+)\.downsample\.0", "conv{1+1}_block{2+1}_0_conv"),
    (r"layer(\d+)\.(\d+)\.downsample\.1", "conv{1+1}_block{2+1}_0_bn"),
)
TORCHVISION_RESNET = ((r"(conv|bn)1", "conv1_{1}"), *TORCHVISION_UNITS, (r"fc", "logits"))
PYTORCHCV_UNIT = r"features\.stage(\d+)\.unit(\d+)\."
PYTORCHCV_RESNET = (
    (r"features\.init_block\.(?:conv1?\.)?(conv|bn)", "conv1_{1}"),
    (PYTORCHCV_UNIT + r"body\.conv(\d)\.(conv|bn)", "conv{1+1}_block{2}_{3}_{4}"),
    (PYTORCHCV_UNIT + r"identity_conv\.(conv|bn)", "conv{1+1}_block{2}_0_{3}"),
    (r"output(?:\.fc)?", "logits"),
)
# How pytorchcv names the convolutions of one branch of an Inception module, and timm those of a
# module whose branches are called branch1, branch2, ... with us. A path ends in `conv` or `bn`.
PYTORCHCV_BRANCH = (
    (r"conv\.(\w+)", "{1}"),
    (r"conv_list\.conv(\d)\.(\w+)", "{1}_{2}"),
    (r"conv(1x3|3x1)\.(\w+)", "{1}_{2}"),
)
TIMM_BRANCHES = (
    (r"branch3\.1\.(\w+)", "branch4_{1}"),  # the only one behind a pooling
    (r"branch(\d)\.([a-z]+)", "branch{1+1}_{2}"),
    (r"branch(\d)[._](\d)\.(\w+)", "branch{1+1}_{2+1}_{3}"),
    (r"branch(\d)_\da\.(\w+)", "branch{1+1}_1x3_{2}"),
    (r"branch(\d)_\db\.(\w+)", "branch{1+1}_3x1_{2}"),
)


def within(outer: Iterable[tuple[str, str]], inner: Iterable[tuple[str, str]]) -> Rules:
    r"""Combine rules for modules with rules for what stands in each of them.

    Args:
        outer: rules as in `Collection.names`, for a module's path, such as `layer(\d)`, and our
            prefix, such as `stage{1}`.
        inner: the same for paths within a module. Groups are counted from 1 in either.

    Returns:
        Every pair, joined by a dot on their side and by `_` on ours.
    """

    def shifted(name: str, count: int) -> str:
        return re.sub(r"{(\d+)", lambda match: f"{{{int(match[1]) + count}", name)

    inner = tuple(inner)
    return tuple(
        (rf"{theirs}\.{path}", f"{ours}_{shifted(name, re.compile(theirs).groups)}")
        for theirs, ours in outer
        for path, name in inner
    )


def pytorchcv_inception(stem: Iterable[str], first: str) -> Rules:
    """Return rules for what an Inception of pytorchcv has beside the branches of its modules.

    Args:
        stem: our convolutions in front of the modules, without `_conv`.
        first: our first branch of the first reduction. Theirs is a list of convolutions like all
            others, but of a single one, which bears no number with us.
    """
    reduction = r"features\.stage2\.unit1\.branches\.branch1\.conv_list\.conv1"
    return (
        *((rf"features\.init_block\.conv{i}\.(\w+)", f"{x}_{{1}}") for i, x in enumerate(stem, 1)),
        (rf"{reduction}\.(\w+)", f"{first}_{{1}}"),
        (r"output\.fc", "logits"),
    )


def keras_files(files: Mapping[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Return `Collection.files` for keras.applications.

    Args:
        files: by variant, how the published file's name begins, and its MD5.
    """
    ending = "_weights_tf_dim_ordering_tf_kernels.h5"
    return {variant: (f"{name}{ending}", md5) for variant, (name, md5) in files.items()}


def counted(paths: Sequence[str], layers: Sequence[str]) -> dict[str, str]:
    """Name the layers that keras.applications leaves to a counter: `conv2d_17` and the like.

    Args:
        paths: of a file.
        layers: our convolutions in the order in which theirs were made, without `_conv`; the batch
            normalisation after each is `_bn`.

    Returns:
        Our layer of each, and `logits` for the head.

    Raises:
        ValueError: the file has another number of them.
    """
    names = {"predictions": "logits"}
    for kind, end in (("conv2d", "conv"), ("batch_normalization", "bn")):
        theirs = [path for path in paths if re.fullmatch(rf"{kind}(_\d+)?", path)]
        theirs.sort(key=lambda path: int(path[len(kind) + 1 :] or 0))
        names |= zip(theirs, [f"{layer}_{end}" for layer in layers], strict=True)
    return names
