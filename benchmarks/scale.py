"""What a loss costs each of N processes in a step, by formula: bytes exchanged, products, memory, and time on assumed hardware.

`communication.py` counts the same on processes of this machine, and prints `calculated_tables` with --calculate; they stand
in docs/scale.md. "original" is SFRIK in the way of the authors' code: every process gathers all rows, computes the full Gram
matrix by autograd, and sums the gathered gradient over all processes.

Legend: n rows over all processes, q dimension of the embeddings, N processes, V views.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

FLOAT = 4  # bytes
BLOCK = 2048  # rows of the Gram matrix at a time, as sfrik.mmd has it
METHODS = ("SFRIK", "VICReg", "original")
CASES = ((8, 256), (8, 2048), (64, 2048), (512, 2048), (512, 16384))  # N, n
DIMS = (8192, 32768)

# Assumed hardware: peaks of NVIDIA's data sheet of the H100 SXM, in FLOP/s (without sparsity) and bytes/s.
FLOAT32, TF32, HALF = 67e12, 495e12, 989e12
NVLINK = 450e9  # 900 GB/s there, the sum of both directions
PORT = 50e9  # of 400 Gb/s
PER_NODE = 8  # GPUs, a process each; a node has one port, or one for each GPU
NETWORK = 0.1 * HALF  # what ResNet-50 is taken to reach, an assumption of ours


def sent(method: str, n: int, q: int, processes: int, views: int = 2) -> float:
    """Bytes that a process sends in a step, and receives, in a ring. Rows are in float32; `views` are those regularised."""
    rows = views * n * q * FLOAT
    # beside the rows: how many each process has (int64), the alignment and its rows, and for the MMD a value of each view
    numbers = 8 * processes + 2 * FLOAT * (2 + (views if method == "SFRIK" else 0))
    # as the original the rows are gathered in the forward pass, and their gradient is summed in the backward pass
    whole = 3 * rows if method == "original" else rows + numbers
    return whole * (processes - 1) / processes


def flops(method: str, n: int, q: int, processes: int, views: int = 2) -> float:
    """Of the matrix products of a process, two for each multiply-add, forward and backward."""
    return views * {"SFRIK": 4 * n * n * q / processes, "VICReg": 4 * n * q * q, "original": 6 * n * n * q}[method]


def memory(method: str, n: int, q: int, processes: int) -> float:
    """Bytes at the peak of a step of two views on N > 1 processes, in the forward or the backward pass."""
    block = min(BLOCK, n / processes)
    return (
        FLOAT
        * {
            "SFRIK": 2 * n * q * (1 + 2 / processes) + max(2 * n * q / processes + 3 * block * n, 7 * block * n),
            "VICReg": max(6 * n * q + q * q, 8 * n * q),
            "original": max((2 + 3 / processes) * n * q + 8 * n * n, (4 + 2 / processes) * n * q + 2 * n * n),
        }[method]
    )


@lru_cache
def network(q: int) -> tuple[int, float]:
    """Parameters, and FLOP of a forward and backward pass of one view of 224 pixels: ResNet-50 and projector 8192-8192-q."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from sfrik.networks import build_backbone, build_projector

    with torch.device("meta"):
        backbone = build_backbone("resnet50")
        encoder = torch.nn.Sequential(backbone, build_projector(backbone.num_features, f"8192-8192-{q}"))
        with FlopCounterMode(display=False) as counter:
            encoder(torch.empty(2, 3, 224, 224)).sum().backward()
    return sum(p.numel() for p in encoder.parameters()), counter.get_total_flops() / 2


def averaged(q: int, processes: int) -> float:
    """Bytes that a process sends for DDP's average of the network's gradients, in float32."""
    return 2 * FLOAT * network(q)[0] * (processes - 1) / processes


def seconds(size: float, processes: int, ports: int) -> float:
    """Of an exchange in which a process sends so many bytes, by bandwidth alone.

    Within a node it runs over NVLink. In a ring over several nodes each node sends what one process sends, and rings side by
    side share its ports.
    """
    return size / (NVLINK if processes <= PER_NODE else min(NVLINK, ports * PORT))


def calculated_tables() -> list[str]:
    """Counts; seconds of the exchange; seconds of the products; the loss in the step; from where on the gather outweighs."""
    counts, exchange, products, steps = [], [], [], []
    for processes, n in CASES:
        for q in DIMS:
            case = [str(processes), str(n), str(q)]
            size = {method: sent(method, n, q, processes) for method in METHODS}
            work = {method: flops(method, n, q, processes) for method in METHODS}
            inside, ddp = 2 * n / processes * network(q)[1], averaged(q, processes)
            row = [x / 1e9 for x in (size["SFRIK"], size["original"], ddp)] + [x / 1e12 for x in (*work.values(), inside)]
            row += [memory(method, n, q, processes) / 1e9 for method in METHODS]
            counts.append([*case, *map(number, row)])

            over = {ports: [seconds(x, processes, ports) for x in (size["SFRIK"], size["original"], ddp)] for ports in (1, 8)}
            exchange.append([*case, *(number(1000 * over[ports][k]) for k in range(3) for ports in (1, 8))])

            rates = [("SFRIK", FLOAT32), ("SFRIK", TF32), ("VICReg", FLOAT32), ("VICReg", TF32), ("original", HALF)]
            times = [work[method] / rate for method, rate in rates] + [inside / NETWORK]
            products.append([*case, *(number(1000 * x) for x in times)])

            row = []
            for k, gather in ((0, 0), (2, 0), (4, 1)):  # SFRIK and VICReg in float32, the original in half precision
                for ports in (1, 8):
                    loss = times[k] + over[ports][gather]
                    # DDP's exchange runs beside the backward pass, two thirds of the network's work
                    rest = times[-1] + max(0.0, over[ports][2] - 2 / 3 * times[-1])
                    share = 100 * loss / (loss + rest)
                    row.append(f"{number(1000 * loss)} ({share:.{int(share < 10)}f} %)")
            steps.append([*case, *row])
    limits = []
    for q in DIMS:
        parameters = network(q)[0]
        # in floats the gather of two views sends 2 n q, three times that as the original, and DDP 2 P; the peak is 4 n q
        rows = (parameters / q, parameters / (3 * q), 20e9 / (2 * q * FLOAT))
        limits.append([str(q), number(parameters / 1e6), *(f"{x:.0f}" for x in rows)])
    case = ["N", "n", "q"]
    ports = [f"{what}, {port}" for what in ("here", "original", "DDP") for port in ("one port", "eight")]
    losses = [f"{what}, {port}" for what in ("SFRIK", "VICReg", "original") for port in ("one port", "eight")]
    head = ["GB sent: here", "original", "DDP", "TFLOP: SFRIK", "VICReg", "original", "network"]
    return [
        table([*case, *head, "GB at the peak: SFRIK", "VICReg", "original"], counts),
        table([*case, *ports], exchange),
        table([*case, "SFRIK", "SFRIK, TF32", "VICReg", "VICReg, TF32", "original, half", "network, half"], products),
        table([*case, *losses], steps),
        table(["q", "parameters, millions", "gather sends as much", "original sends as much", "rows need 20 GB"], limits),
    ]


def number(x: float) -> str:
    """Three digits."""
    return f"{x:.0f}" if x >= 100 or x == 0 else f"{x:#.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
