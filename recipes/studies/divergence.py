"""Entropy, cross-entropy and KL divergence: why the logarithm, and which way round.

Shannon 1948; Kullback and Leibler 1951; Bishop: Pattern Recognition and Machine Learning, 2006,
section 10.1.2, for the two fits of a mixture.

    python recipes/studies/divergence.py
"""

import dataclasses

import numpy as np
from keras import ops

from tiffin.layers import cross_entropy, entropy
from tiffin.recipes.engine.study import Outcome, Study, main

CLAIM = "KL is never negative, not symmetric; forward it covers all modes, reversed it picks one"
LEAST, EQUAL = "least KL of random pairs", "largest KL(p, p)"
BOTH_WAYS, IDENTITY = "KL(p, q) against KL(q, p), mean", "KL against H(p, q) - H(p), largest"
ADDED, LINEAR = "H(pq) against H(p) + H(q), largest", "the same of 1 - p, mean"
GRID = np.linspace(-12, 12, 1201)


def gaussian(mean: float, log_std: float) -> np.ndarray:
    """Return a Gaussian's share of each place of `GRID`."""
    p = np.exp(-0.5 * ((GRID - mean) / np.exp(log_std)) ** 2)
    return p / p.sum()


def direct(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Return KL(p || q) of the last axis, in nats, from its definition, in float64."""
    p, q = p.astype("float64"), q.astype("float64")
    return (p * np.log(p / q)).sum(-1)


def fit(target: np.ndarray, forward: bool) -> tuple[float, float]:
    """Return (mean, log std) of the Gaussian that is nearest to a distribution."""
    from scipy.optimize import minimize

    def cost(parameters):
        pair = target + 1e-300, gaussian(*parameters) + 1e-300
        return float(direct(*(pair if forward else pair[::-1])))

    starts = [(mean, 0.0) for mean in (-3.0, -0.1, 3.0)]
    found = [minimize(cost, start, method="Nelder-Mead") for start in starts]
    return tuple(min(found, key=lambda one: one.fun).x)


@dataclasses.dataclass
class Config(Study):
    """Measure what KL divergence is, on random distributions and on a mixture of two Gaussians."""

    pairs: int = 10_000
    """Random pairs of distributions."""
    classes: int = 10
    """Of each."""

    def measure(self, seed):
        random = np.random.default_rng(seed)
        p, q = random.dirichlet(np.full(self.classes, 0.5), (2, self.pairs)).astype("float32")
        p, q = (x.clip(1e-6) / x.clip(1e-6).sum(-1, keepdims=True) for x in (p, q))
        q[::2] = 0.99 * p[::2] + 0.01 * q[::2]  # half of them are almost equal
        p, q = (x / x.sum(-1, keepdims=True, dtype="float64") for x in (p, q))
        there, back = direct(p, q), direct(q, p)
        h, both = (ops.convert_to_numpy(x) for x in (entropy(p), cross_entropy(p, q)))
        joint = ops.convert_to_numpy(entropy((p[:, :, None] * q[:, None]).reshape(len(p), -1)))
        added = h + ops.convert_to_numpy(entropy(q))
        # Another measure of surprise, 1 - p: of two independent events it is no sum.
        p2, q2 = (np.square(x).sum(-1) for x in (p, q))
        nats = {
            LEAST: there.min(),
            EQUAL: np.abs(direct(p, p)).max(),
            BOTH_WAYS: np.abs(there - back).mean(),
            IDENTITY: np.abs(both - h - there).max(),
            ADDED: np.abs(joint - added).max(),
            LINEAR: np.abs(1 - p2 * q2 - (1 - p2) - (1 - q2)).mean(),
        }
        table = {name: {"nats": value} for name, value in nats.items()}
        apart, share = random.uniform(2.5, 4), random.uniform(0.4, 0.6)
        mixture = share * gaussian(-apart, 0) + (1 - share) * gaussian(apart, 0)
        fits = {name: fit(mixture, name == "forward") for name in ("forward", "reverse")}
        for name, (mean, log_std) in fits.items():
            low = mixture < 0.1 * mixture.max()
            table[f"{name} fit"] = {
                "from the next mode": abs(abs(mean) - apart),
                "standard deviation": np.exp(log_std),
                "mass where there is little": gaussian(mean, log_std)[low].sum(),
            }
        return table, (mixture, fits)

    def draw(self, figure, rows, drawn):
        mixture, fits = drawn[0]
        left, right = figure.subplots(1, 2)
        left.fill_between(GRID, mixture, color="lightgrey", label="mixture p")
        for (name, found), line in zip(fits.items(), ("-", "--"), strict=True):
            how = "KL(p || q)" if name == "forward" else "KL(q || p)"
            left.plot(GRID, gaussian(*found), line, color="black", label=f"{name}: least {how}")
        left.set(xlabel="x", ylabel="probability of a grid place", title="One Gaussian for two")
        left.legend()
        share = np.linspace(0.001, 0.999, 400)
        p = np.stack([share, 1 - share], -1)
        for other, line in ((0.5, "-"), (0.2, "--"), (0.05, ":")):
            q = np.broadcast_to([other, 1 - other], p.shape)
            right.plot(share, direct(p, q), line, color="black", label=f"KL(p || q), q = {other}")
        right.set(xlabel="p of two classes", ylabel="nats", title="Never negative, 0 only at p = q")
        right.legend()

    def judge(self, rows, spread):
        nats = {name: cells["nats"] for name, cells in rows.items() if "nats" in cells}
        forward, reverse = (rows[f"{name} fit"] for name in ("forward", "reverse"))
        far, near = (fit["from the next mode"] for fit in (forward, reverse))
        return [
            Outcome(
                "KL divergence is never negative, and 0 for equal distributions.",
                f"The least of {self.pairs:,} pairs is {nats[LEAST]:.2g} nats; KL(p, p) is at "
                f"most {nats[EQUAL]:.1g}.",
                nats[LEAST] >= 0 and nats[EQUAL] < 1e-9,
            ),
            Outcome(
                "It is not symmetric: no distance.",
                f"Both ways differ by {nats[BOTH_WAYS]:.2f} nats on average.",
                nats[BOTH_WAYS] > 0.1,
            ),
            Outcome(
                "The logarithm, as what independent events tell adds up.",
                f"H of a product differs from the sum by {nats[ADDED]:.1g} nats; measured by 1 - p "
                f"instead of -log p, by {nats[LINEAR]:.2f}.",
                nats[ADDED] < 1e-4 < nats[LINEAR],
            ),
            Outcome(
                "Cross-entropy is entropy plus KL: with fixed targets both have the same gradient.",
                f"They differ by at most {nats[IDENTITY]:.1g} nats.",
                nats[IDENTITY] < 1e-4,
            ),
            Outcome(
                "Forward KL covers all modes, reverse KL picks one.",
                f"The forward fit's mean lies {far:.2f} from the next mode, with a standard "
                f"deviation of {forward['standard deviation']:.2f}; the reverse fit's {near:.2f}, "
                f"with {reverse['standard deviation']:.2f} (each mode's is 1).",
                far > 1 > 3 * near and forward["standard deviation"] > 2,
            ),
        ]


if __name__ == "__main__":
    main(Config)
