"""Videos, frame by frame: read from any common file, written as MPEG-4."""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from tiffin.export.errors import InputError, optional
from tiffin.export.files import make_folder, replacing

SUFFIXES = frozenset({".mp4", ".avi", ".mov", ".mkv", ".webm"})


class Video:
    """A video file, opened; its frames can be iterated once, uint8 `[height, width, 3]` in RGB.

    Attributes:
        size: `(height, width)` in pixels, a camera's rotation applied.
        rate: frames a second.
        count: of frames, as the file says, which may be wrong; 0 where it says nothing.

    Raises:
        InputError: there is no such file, it has no frame, or is in no known format.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise InputError(f"There is no video at {path}.")
        cv2 = _cv2()
        # By name, as OpenCV would take a percent sign for a numbered sequence of pictures.
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        there, self._first = self._capture.read()
        if not there:
            raise InputError(
                f"{path} is an empty or damaged video, or one whose codec OpenCV lacks: replace "
                "it, or convert it to H.264 in an .mp4."
            )
        self.size = self._first.shape[:2]
        self.rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.count = max(0, int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)))
        if not 0 < self.rate < np.inf:
            raise InputError(f"{path} does not say how many frames a second has: convert it.")

    def __iter__(self) -> Iterator[np.ndarray]:
        there, frame = True, self._first
        while there:
            yield np.ascontiguousarray(frame[..., ::-1])
            there, frame = self._capture.read()
        self._capture.release()


@contextlib.contextmanager
def writing_video(
    path: Path, size: tuple[int, int], rate: float
) -> Iterator[Callable[[np.ndarray], None]]:
    """Yield a function that appends a frame; the file gets its name once it is whole and checked.

    Args:
        path: an .mp4 file to write.
        size: `(height, width)` of the frames; of an odd side the codec leaves out the last pixel.
        rate: frames a second.

    Raises:
        InputError: OpenCV lacks the codec, or cannot write such frames; the disk is full, the
            folder read-only, or the like.
    """
    cv2 = _cv2()
    make_folder(path.parent)
    with replacing(path) as temporary:
        codec = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, codec, rate, size[::-1])
        if not writer.isOpened():
            raise InputError(
                f"OpenCV cannot write {path} with {size[1]} x {size[0]} pixels at {rate:g} frames "
                "a second: it lacks the codec mp4v (the package opencv-contrib-python-headless "
                "brings it), or the video is too large or too small for it."
            )
        written = 0

        def write(frame: np.ndarray) -> None:
            nonlocal written
            writer.write(np.ascontiguousarray(frame[..., ::-1]))
            written += 1

        try:
            yield write
        finally:
            writer.release()
        # OpenCV says nothing of frames that it could not write.
        reader = cv2.VideoCapture(str(temporary), cv2.CAP_FFMPEG)
        kept = max(0, int(reader.get(cv2.CAP_PROP_FRAME_COUNT)))
        reader.release()
        if kept != written:
            raise InputError(
                f"Cannot write {path}: {kept} of {written} frames arrived. Is the disk full?"
            )


def _cv2():
    # FFmpeg and OpenCV write their own complaints to standard error; ours say what to do.
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    cv2 = optional("cv2", "A video")
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
