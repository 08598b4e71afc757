"""Is anybody faster? float32 attention beside every library that is installed.

    python benchmarks/bench_peers.py [NAME …]

Writes benchmarks/results/peers.json, and docs/peers.svg from it. A peer that is absent, or cannot
compute a case, is said so.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from chart import bars
from harness import alternate, record, save
from peers import BLHD, PEERS, Unsupported

CASES = [
    ("32 × 64 tokens", (32, 8, 64, 64), False),
    ("8 × 197 patches", (8, 12, 197, 64), False),
    ("512 tokens", (1, 8, 512, 64), False),
    ("2048 tokens", (1, 8, 2048, 64), False),
    ("2048 causal", (1, 8, 2048, 64), True),
]
CHART = Path(__file__).parents[1] / "docs" / "peers.svg"


def main() -> None:
    chosen = sys.argv[1:] or list(PEERS)
    rng = np.random.default_rng(0)
    rows = []
    for label, shape, causal in CASES:
        q, k, v = (rng.standard_normal(shape, dtype=np.float32) for _ in range(3))
        calls = {}
        for name in dict.fromkeys(["regard", *chosen]):
            try:
                calls[name] = PEERS[name](q, k, v, causal)
                output = _result(calls[name](), name)
                np.testing.assert_allclose(output, PEERS["numpy"](q, k, v, causal)(), 1e-3, 1e-4)
            except (ImportError, Unsupported, AssertionError) as error:
                print(f"{label}: {name} left out: {str(error).strip().splitlines()[0]}")
                calls.pop(name, None)
        rows.append(record(label, "float32", alternate(calls, seconds=4)))
    print(save("peers", rows))
    CHART.write_text(bars(rows, "float32, 2 threads: time beside Regard's (shorter is faster)"))
    print(CHART)


def _result(output: object, name: str) -> np.ndarray:
    """What a peer gave, as (B, H, L, D)."""
    if isinstance(output, list):
        output = output[0]
    if hasattr(output, "values") and not hasattr(output, "shape"):
        output = next(iter(output.values()))
    array = np.asarray(output)
    return array.swapaxes(1, 2) if name in BLHD else array


if __name__ == "__main__":
    main()
