"""How good the estimate of the MMD by M random directions is: spread of the value, angle of the gradient, products.

    python benchmarks/sliced.py

For embeddings near the uniform law, and for some that lie around a common centre. "spread" is the standard deviation of the value
over draws of the directions in % of the value; "cosine" that between the estimated and the true gradient along the sphere, the
mean over draws; "products" counts the multiply-adds in those of the Gram matrix's road, 1.5 n x n x q.

Legend: n rows, q their dimension, M directions.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from sfrik.kernels import RotationInvariantKernel
from sfrik.mmd import MMD
from sfrik.sliced import SlicedMMD

WEIGHTS = (1.0, 40.0, 40.0)
SIZES = [(512, 512), (2048, 512), (512, 8192)]
SLICES = (64, 256, 1024, 4096)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--divide", type=int, default=1, help="all sizes divided by this, to test the script")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    rows = []
    for n, q in SIZES:
        for law in ("uniform", "around a centre"):
            for slices in SLICES:
                sizes = (n // options.divide, q // options.divide, slices // options.divide)
                rows.append({"n": sizes[0], "q": sizes[1], "law": law, "M": sizes[2], **quality(*sizes, law, options.draws)})
                print(rows[-1], flush=True)
    if options.json:
        options.json.write_text(json.dumps({"weights": WEIGHTS, "draws": options.draws, "rows": rows}, indent=1))


def quality(n: int, q: int, slices: int, law: str, draws: int) -> dict[str, float]:
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, q, generator=generator)
    if law != "uniform":
        z += torch.randn(q, generator=generator)
    z = torch.nn.functional.normalize(z, dim=1)
    kernel = RotationInvariantKernel(WEIGHTS, q)
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
    values = estimate.parts([z], rest[0], [gradient], 1.0, *rest[1:])
    return values, gradient - (gradient * z).sum(dim=1, keepdim=True) * z


if __name__ == "__main__":
    main()
