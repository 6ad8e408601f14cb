"""Any image file to raw RGB pixels: the one decoder for training, calibration and prediction."""

import os
import warnings
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
)


def load_image(path: str | os.PathLike, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image file as raw RGB pixels.

    Grey, palette, CMYK and 16-bit images are converted, transparency is laid over white, and the
    camera's EXIF rotation is applied, so that what a model sees is what a viewer shows.

    Args:
        path: an image file.
        size: `(height, width)` to resize to (bilinear, antialiased, aspect ratio not kept); None
            keeps the file's own size.

    Returns:
        uint8 array `[height, width, 3]`, values 0-255.

    Raises:
        InputError: the file is missing, truncated, no image, or larger than 179 megapixels.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    path = Path(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
            image.load()
        image = ImageOps.exif_transpose(image)
    except FileNotFoundError as error:
        raise InputError(f"There is no image at {path}.") from error
    except IsADirectoryError as error:
        raise InputError(
            f"{path} is a folder, not an image: name the image files in it."
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise InputError(f"{path} is too large to decode safely ({error}).") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"{path} is no image in any known format: replace it, or remove it."
        ) from error
    except Exception as error:
        # PIL's decoders raise OSError, SyntaxError, ValueError, struct.error, ... on broken bytes.
        raise InputError(
            f"{path} is a damaged image ({error}): replace it, or remove it."
        ) from error
    if image.mode.startswith("I") or image.mode == "F":
        pixels = np.asarray(image, np.float32)
        # 16-bit files use the whole range; "I" also carries 8-bit values in some formats.
        scale = 257.0 if pixels.max(initial=0) > 255 else 1.0
        image = Image.fromarray((pixels / scale).clip(0, 255).round().astype(np.uint8))
    if "A" in image.mode or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    if size is not None and image.size != (size[1], size[0]):
        image = image.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.asarray(image)
