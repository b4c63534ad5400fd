"""Masks of SparseGPT and Wanda, and values fitted on one of them, by numpy in float64: the oracle of attar's sparse weights.

Written from the papers (Frantar & Alistarh 2023, algorithm 1; Sun et al. 2023, equation 1), with exact counts in place of thresholds and
the lower index first among equals. Writes `sparse.json`: the weights that stay, as hexadecimal digits row by row, and the first fitted row.

    python sparse.py    # made with numpy 2.4.6
"""

import json
from pathlib import Path

import numpy as np

ROWS, COLUMNS, TOKENS, BLOCK = 12, 160, 256, 128


def noise(count, state):
    """The numbers of a linear congruential generator, -128 to 127."""
    found = []
    for _ in range(count):
        state = (state * 1664525 + 1013904223) % 2**32
        found.append((state >> 24) - 128)
    return np.array(found, dtype=np.float64)


def inputs():
    x = noise(TOKENS * COLUMNS, 1).reshape(TOKENS, COLUMNS) / 32
    x[:, 1::2] += x[:, ::2]  # neighbours depend on each other
    x[:, ::7] *= 4
    return x


def cheapest(cost, count):
    """The `count` least, of equals the first, as a mask."""
    gone = np.zeros(cost.size, dtype=bool)
    gone[np.argsort(cost.ravel(), kind="stable")[:count]] = True
    return gone.reshape(cost.shape)


def sparsegpt(w, x, share=None, pattern=None):
    w = w.copy()
    h = x.T @ x / len(x)
    h += 0.01 * np.mean(np.diag(h)) * np.eye(COLUMNS)
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    gone = np.zeros(w.shape, dtype=bool)
    for start in range(0, COLUMNS, BLOCK):
        end = min(start + BLOCK, COLUMNS)
        if share is not None:
            cost = (w[:, start:end] / np.diag(u)[start:end]) ** 2
            gone[:, start:end] = cheapest(cost, round(share * cost.size))
        for j in range(start, end):
            if pattern is not None and j % pattern[1] == 0:
                group = slice(j, j + pattern[1])
                for row in range(len(w)):
                    cost = (w[row, group] / np.diag(u)[group]) ** 2
                    gone[row, group] = cheapest(cost, pattern[1] - pattern[0])
            error = np.where(gone[:, j], w[:, j] / u[j, j], 0.0)
            w[:, j:] -= np.outer(error, u[j, j:])
    return ~gone


def wanda(w, x, share=None, pattern=None):
    score = np.abs(w) * np.sqrt(np.mean(x * x, axis=0))
    gone = np.zeros(w.shape, dtype=bool)
    for row in range(len(w)):
        if share is not None:
            gone[row] = cheapest(score[row], round(share * COLUMNS))
        else:
            for j in range(0, COLUMNS, pattern[1]):
                gone[row, j : j + pattern[1]] = cheapest(score[row, j : j + pattern[1]], pattern[1] - pattern[0])
    return ~gone


def fitted(w, x, stays):
    """The first row: least squares against its own outputs, damped towards itself."""
    c = x.T @ x / len(x)
    damping = 0.1 * np.mean(np.diag(c))
    kept = np.flatnonzero(stays[0])
    row = np.zeros(COLUMNS)
    right = (c @ w[0])[kept] + damping * w[0, kept]
    row[kept] = np.linalg.solve(c[np.ix_(kept, kept)] + damping * np.eye(len(kept)), right)
    return row


def main():
    w, x = noise(ROWS * COLUMNS, 2).reshape(ROWS, COLUMNS) / 128 + 1 / 512, inputs()
    masks = {}
    for name, method in [("obs", sparsegpt), ("wanda", wanda)]:
        for sparsity, how in [("0.5", {"share": 0.5}), ("2:4", {"pattern": (2, 4)})]:
            masks[f"{name} {sparsity}"] = method(w, x, **how)
    found = {name: np.packbits(mask).tobytes().hex() for name, mask in masks.items()}
    row = [float(v) for v in fitted(w, x, masks["obs 0.5"])]
    text = json.dumps({"masks": found, "fitted": row}, indent=1)
    (Path(__file__).parent / "sparse.json").write_text(text + "\n")


main()
