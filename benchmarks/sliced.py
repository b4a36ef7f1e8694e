"""How good the estimate of the MMD by M random directions is: spread of the value, angle of the gradient, products.

    python benchmarks/sliced.py

For embeddings close to the uniform distribution, and for embeddings around a common centre. "spread" is the standard deviation
of the value over draws of the directions in % of the value; "cosine" that between the estimated and the true gradient along the
sphere, the mean over draws; "products" counts the multiply-adds in those of the method by the Gram matrix, 1.5 n x n x q.

Legend: n rows, q their dimension, M directions.
"""

from __future__ import annotations

import argparse
import itertools
import json
from pathlib import Path

import torch
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import MMD
from sfrik.objectives.sliced import SlicedMMD

WEIGHTS = {"L=2": (1.0, 40.0), "L=3": (1.0, 40.0, 40.0)}
SIZES = [(512, 512), (2048, 512), (512, 8192)]
SLICES = (256, 1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--divide", type=int, default=1, help="all sizes divided by this, to test the script")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rows = []
    cases = itertools.product(SIZES, ("uniform", "around a centre"), WEIGHTS, SLICES)
    for (n, q), law, kernel, slices in cases:
        sizes = {"n": n // options.divide, "q": q // options.divide, "M": slices // options.divide}
        row = {"law": law, "kernel": kernel, **sizes, **quality(*sizes.values(), law, WEIGHTS[kernel], options.draws)}
        rows.append(row)
        print(
            "; ".join(f"{key} {value:.3g}" if isinstance(value, float) else f"{key} {value}" for key, value in row.items()),
            flush=True,
        )
    if options.json:
        options.json.write_text(json.dumps({"draws": options.draws, "rows": rows}, indent=1), encoding="utf-8")


def quality(n: int, q: int, slices: int, law: str, weights: tuple[float, ...], draws: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, q, generator=generator)
    if law != "uniform":
        z += torch.randn(q, generator=generator)
    z = torch.nn.functional.normalize(z, dim=1)
    kernel = RotationInvariantKernel(weights, q)
    (value,), gradient = value_and_gradient(MMD(kernel), z, [n])
    estimate = SlicedMMD(kernel, slices)
    values, cosines = [], []
    for draw in range(draws):
        (one,), estimated = value_and_gradient(estimate, z, n, (0, draw))
        values.append(one)
        cosines.append(torch.nn.functional.cosine_similarity(estimated.flatten(), gradient.flatten(), dim=0))
    spread = 100 * torch.stack(values).std() / value
    return {"spread, %": spread.item(), "cosine": torch.stack(cosines).mean().item(), "products": 2 * slices / (1.5 * n)}


def value_and_gradient(estimate: MMD | SlicedMMD, z: Tensor, *rest) -> tuple[list[Tensor], Tensor]:
    """The value, and the gradient along the sphere."""
    gradient = torch.zeros_like(z)
    values = estimate.partial_values([z], rest[0], [gradient], 1.0, *rest[1:])
    return values, gradient - (gradient * z).sum(dim=1, keepdim=True) * z


if __name__ == "__main__":
    main()
