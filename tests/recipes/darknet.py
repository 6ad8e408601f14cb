"""Darknet's reorg as in its C code, for tests."""

import numpy as np


def reorg_by_loops(x: np.ndarray) -> np.ndarray:
    """What reorg_cpu does to one picture, channels first, as its loops do it."""
    c, h, w = x.shape
    flat, out = x.ravel(), np.zeros(x.size, x.dtype)
    for k in range(c):
        for j in range(h):
            for i in range(w):
                c2, offset = k % (c // 4), k // (c // 4)
                w2, h2 = i * 2 + offset % 2, j * 2 + offset // 2
                out[i + w * (j + h * k)] = flat[w2 + w * 2 * (h2 + h * 2 * c2)]
    return out.reshape(c * 4, h // 2, w // 2)
