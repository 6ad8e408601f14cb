"""Any image file to raw RGB pixels: the one decoder for training, calibration and prediction."""

import contextlib
import dataclasses
import os
import warnings
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm"}
)
# Theirs alone, whatever the name says: PIL would hand PostScript over to Ghostscript.
_FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM")

# Grey level around a picture that does not fill a network's input, of Darknet's successors.
FRAME = 114


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
        InputError: the file is missing, truncated, no image, or larger than 89 megapixels.
    """
    from PIL import Image, ImageOps

    with _opened(Path(path)) as file:
        file.load()
        image = ImageOps.exif_transpose(file)
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


def image_size(path: str | os.PathLike) -> tuple[int, int]:
    """Return `(height, width)` of an image file as `load_image` gives it; its pixels are not read.

    Raises:
        InputError: as from `load_image`, for what can be told without decoding.
    """
    with _opened(Path(path)) as image:
        width, height = image.size
        # EXIF's orientations from 5 to 8 lie on their side; others are none.
        return (width, height) if image.getexif().get(0x0112) in range(5, 9) else (height, width)


@contextlib.contextmanager
def _opened(path: Path):
    """Open an image file; whatever goes wrong with it inside the block is an InputError."""
    from PIL import Image, UnidentifiedImageError

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                yield image
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


@dataclasses.dataclass(frozen=True)
class Frame:
    """Where a picture lies in the input of a network that sees it whole, its sides in proportion.

    Attributes:
        size: `(height, width)` of the input.
        scale: pixels of the input for one of the picture.
        top, left: where the picture begins in the input.
        original: `(height, width)` of the picture.
    """

    size: tuple[int, int]
    scale: float
    top: int
    left: int
    original: tuple[int, int]

    @classmethod
    def around(cls, original: tuple[int, int], size: tuple[int, int]) -> "Frame":
        """Return the frame of a picture of this size in the middle of an input of that."""
        scale = min(size[0] / original[0], size[1] / original[1])
        height, width = cls(size, scale, 0, 0, original).inner
        return cls(size, scale, (size[0] - height) // 2, (size[1] - width) // 2, original)

    @property
    def inner(self) -> tuple[int, int]:
        """Height and width of the picture in the input."""
        return tuple(max(1, round(n * self.scale)) for n in self.original)

    def place(self, boxes: np.ndarray) -> np.ndarray:
        """Turn boxes `[..., 4]` in pixels of the picture into pixels of the input."""
        return np.asarray(boxes) * self.scale + np.tile([self.top, self.left], 2)

    def back(self, boxes: np.ndarray) -> np.ndarray:
        """Turn boxes `[..., 4]` in pixels of the input into pixels of the picture, inside it."""
        found = (np.asarray(boxes) - np.tile([self.top, self.left], 2)) / self.scale
        return found.clip(0, np.tile(self.original, 2))


def framed(image, size: tuple[int, int]) -> tuple[np.ndarray, Frame]:
    """Lay a picture into an input of some size, its sides in proportion, grey around it.

    Args:
        image: a PIL image, RGB.
        size: `(height, width)` of the input.

    Returns:
        (uint8 `[height, width, 3]`, where the picture lies in it).
    """
    from PIL import Image

    frame = Frame.around((image.height, image.width), size)
    height, width = frame.inner
    result = np.full((*size, 3), FRAME, np.uint8)
    result[frame.top : frame.top + height, frame.left : frame.left + width] = np.asarray(
        image.resize((width, height), Image.Resampling.BILINEAR)
    )
    return result, frame


def load_framed(path: str | os.PathLike, size: tuple[int, int]) -> tuple[np.ndarray, Frame]:
    """Read an image file into an input of some size: `framed` of `load_image`.

    Raises:
        InputError: as from `load_image`.
    """
    from PIL import Image

    return framed(Image.fromarray(load_image(path)), size)
