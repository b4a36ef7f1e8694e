"""What a loss costs each of N processes in a step, by formula: bytes exchanged, products, memory, and time on assumed hardware.

`communication.py` counts the same on processes of this machine, and prints `calculated_tables` with --calculate; they stand
in docs/scale.md. "original" is SFRIK in the way of the authors' code: every process gathers all rows, computes the full Gram
matrix by autograd, and sums the gathered gradient over all processes. All processes have the same number of rows, and the
objectives are built with `equal_rows=True`, as in pretraining.

Legend: n rows over all processes, q dimension of the embeddings, N processes, V views, M random directions, L degree.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import torch

from sfrik.ops import pairwise as pairs

FLOAT, HALF_FLOAT = 4, 2  # bytes
METHODS = ("SFRIK", "VICReg", "original")
OTHERS = ("SFRIK, L = 2", "AUH", "SimCLR", "SFRIK, sliced", "SIGReg")
DEGREE, SLICES = 3, 1024  # of the sliced ways
CASES = ((8, 256), (8, 2048), (64, 2048), (512, 2048), (512, 16384))  # N, n
DIMS = (8192, 32768)

# Assumed hardware: peaks of NVIDIA's data sheet of the H100 SXM, in FLOP/s (without sparsity) and bytes/s.
FLOAT32, TF32, HALF = 67e12, 495e12, 989e12
NVLINK = 450e9  # 900 GB/s there, the sum of both directions
PORT = 50e9  # of 400 Gb/s
PER_NODE = 8  # GPUs, a process each; a node has one port, or one for each GPU
NETWORK = 0.1 * HALF  # what ResNet-50 is taken to reach, an assumption of ours


def by_rows(method: str, n: int, q: int) -> bool:
    """Whether rows are gathered and meet each other, rather than a matrix [q, q] or sums over directions be summed."""
    return method not in ("SFRIK, sliced", "SIGReg") and (q > n if method == "VICReg" else q >= n or method != "SFRIK, L = 2")


def sent(method: str, n: int, q: int, processes: int, views: int = 2, half: bool = False) -> float:
    """Bytes that a process sends in a step, and receives, in a ring.

    `views` are those regularised. Rows are exchanged in float32; with `half`, the embeddings coming in bfloat16 or float16 to a
    GPU, SFRIK's are in that.
    """
    pairs_of_views = 2 * views - 3  # of the anchors 0 and 1
    terms = {"VICReg": 3, "AUH": 1, "original": 0}.get(method, 2)
    if method == "original":  # gathered in the forward pass; in the backward pass the gradient of all rows is summed
        gathered, summed = views * n * q * FLOAT, views * n * q
    elif by_rows(method, n, q):
        gathered = views * n * q * (HALF_FLOAT if half and method.startswith("SFRIK") else FLOAT)
        gathered += 2 * n * pairs_of_views * FLOAT if method == "SimCLR" else 0  # a normaliser for each row
        summed = views if method == "AUH" else 0
    else:
        gathered = 0
        summed = views * {"SFRIK, sliced": SLICES * DEGREE, "SIGReg": SLICES * 8 * 2}.get(method, q * (q + 1))
    return (gathered + 2 * FLOAT * (summed + terms)) * (processes - 1) / processes


def flops(method: str, n: int, q: int, processes: int, views: int = 2, device: str = "cpu") -> float:
    """Of the matrix products of a process, two for each multiply-add, forward and backward."""
    own = n // processes
    if method == "original":
        return 6 * views * n * n * q
    if method == "SimCLR":  # both views of a pair are one batch; the inner products are kept where they fit, else taken twice
        gram = _upper(2 * own, device) + 2 * own * 2 * (n - own)
        return 2 * (2 * views - 3) * q * (gram * (1 if 2 * n - own <= 2 * q else 2) + 2 * own * 2 * n)
    if by_rows(method, n, q):
        return 2 * views * q * (_upper(own, device) + own * (n - own) + own * n)
    if method in ("SFRIK, sliced", "SIGReg"):
        return 4 * views * own * q * SLICES
    return 2 * views * own * (_upper(q, device) + q * q)


def _upper(rows: int, device: str) -> int:
    """Entries of the upper triangle of tiles of a matrix [rows, rows]: rows (rows + height) / 2 where the height divides rows."""
    height, _ = pairs.tile_shape(torch.device(device))
    return sum(min(height, rows - lo) * (rows - lo) for lo in range(0, rows, height))


def memory(method: str, n: int, q: int, processes: int, half: bool = False, device: str = "cpu") -> float:
    """Bytes at the peak of a step of two views on the first of N > 1 processes, in the forward or the backward pass.

    With `half` the embeddings of "SFRIK" and "VICReg" come in bfloat16 or float16, and SFRIK multiplies in it.
    """
    own = n // processes
    rows, everything = 2 * own * q, 2 * n * q  # of both views
    if method == "original":
        return FLOAT * max((2 + 3 / processes) * n * q + 8 * n * n, (4 + 2 / processes) * n * q + 2 * n * n)
    in_full = rows * FLOAT if half else 0  # the embeddings in float32
    size = HALF_FLOAT if half and method == "SFRIK" else FLOAT
    if method == "VICReg" and not by_rows(method, n, q):
        # gradient, centred rows, and: those of the view before; or two copies of the matrix
        forward = FLOAT * (rows + own * q + max(own * q, 2 * q * q))
    elif method == "VICReg":
        # gradient, gathered rows, and: what is sent; or the centred rows, slopes and tiles
        beside = own * q + _tiles(own, n, q, 2, device) / FLOAT
        forward = FLOAT * (rows + everything + max(rows, beside))
    elif not by_rows(method, n, q):  # normalised rows, gradient, two copies of the matrix of each view
        forward = FLOAT * (2 * rows + 4 * q * (q + 1))
    elif method == "AUH":  # normalised rows, gradient, gathered rows, slopes and tiles; before the gradient what is sent
        forward = FLOAT * (2 * rows + everything) + _tiles(own, n, q, 1, device)
    else:  # normalised rows, gradient, gathered rows, and: what is sent, or slopes and tiles
        forward = FLOAT * 2 * rows + size * everything + (size * rows if half else 0)
        forward += max(size * rows, _tiles(own, n, q, 3, device, half))
    return max(in_full + forward, FLOAT * 2 * rows)  # the backward pass multiplies the gradient into a copy


def _tiles(own: int, n: int, q: int, made: int, device: str, half: bool = False) -> float:
    """Bytes at the peak of `sfrik.ops.pairwise.pair_sum` beside rows and gradient.

    It makes so many tiles at a time; the slopes of own rows are kept whole where they take no more memory than the rows.
    """
    height, width = pairs.tile_shape(torch.device(device))
    whole = own <= q
    # of half precision the slopes are rounded, and their product with rows is a copy of it, on a CPU two, before it is added
    product = q * (FLOAT + (HALF_FLOAT if device == "cpu" else 0)) if half else 0
    peak = last = 0
    for lo in range(0, own, height):
        high = min(height, own - lo)
        met = [(high, 0 if whole else high)]  # columns of the tile, and rows of the gradient that it is added to
        met += [(columns, 0 if whole else max(high, columns)) for columns in _split(own - lo - high, width)]
        for columns, added in met + [(columns, high) for columns in _split(n - own, width)]:
            tile = high * columns
            rounded = (2 * FLOAT + HALF_FLOAT) * tile + added * product if half and added else 0  # values and slopes are there
            peak = max(peak, FLOAT * made * tile, rounded)
            last = tile
    if not whole:
        return peak
    return (HALF_FLOAT if half else FLOAT) * own * own + max(peak, 2 * FLOAT * last + own * product if half else 0)


def _split(count: int, size: int) -> list[int]:
    return [min(size, count - at) for at in range(0, count, size)]


@lru_cache
def network(q: int) -> tuple[int, float]:
    """Parameters, and FLOP of a forward and backward pass of one view of 224 pixels: ResNet-50 and projector 8192-8192-q."""
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
    """Counts; seconds of the exchange; seconds of the products; the loss in the step; from where on the exchange outweighs.

    Of training on GPUs under autocast: SFRIK's rows are in half precision.
    """
    counts, exchange, products, steps = [], [], [], []
    for processes, n in CASES:
        for q in DIMS:
            case = [str(processes), str(n), str(q)]
            size = [sent(method, n, q, processes, half=True) for method in METHODS] + [averaged(q, processes)]
            work = {method: flops(method, n, q, processes, device="cuda") for method in METHODS}
            inside = 2 * n / processes * network(q)[1]
            row = [x / 1e9 for x in size] + [x / 1e12 for x in (*work.values(), inside)]
            row += [memory(method, n, q, processes, half=True, device="cuda") / 1e9 for method in METHODS]
            counts.append([*case, *map(number, row)])

            over = {ports: [seconds(x, processes, ports) for x in size] for ports in (1, 8)}
            exchange.append([*case, *(number(1000 * over[ports][k]) for k in range(4) for ports in (1, 8))])

            rates = [("SFRIK", HALF), ("SFRIK", FLOAT32), ("VICReg", FLOAT32), ("VICReg", TF32), ("original", HALF)]
            times = [work[method] / rate for method, rate in rates] + [inside / NETWORK]
            products.append([*case, *(number(1000 * x) for x in times)])

            row = []
            for k, of_size in ((0, 0), (2, 1), (4, 2)):  # VICReg in float32, the others in half precision
                for ports in (1, 8):
                    loss = times[k] + over[ports][of_size]
                    # DDP's exchange runs beside the backward pass, two thirds of the network's work
                    rest = times[-1] + max(0.0, over[ports][3] - 2 / 3 * times[-1])
                    share = 100 * loss / (loss + rest)
                    row.append(f"{number(1000 * loss)} ({share:.{int(share < 10)}f} %)")
            steps.append([*case, *row])
    limits = []
    for q in DIMS:
        rows = [outweighs(method, q) for method in METHODS]
        rows.append(20e9 / (2 * q * HALF_FLOAT))  # the gathered rows are what does not shrink with N
        limits.append([str(q), number(network(q)[0] / 1e6), *(f"{x:.0f}" if x < float("inf") else "never" for x in rows)])
    case = ["N", "n", "q"]
    ports = [f"{what}, {port}" for what in (*METHODS, "DDP") for port in ("one port", "eight")]
    losses = [f"{what}, {port}" for what in METHODS for port in ("one port", "eight")]
    head = ["GB sent: SFRIK", "VICReg", "original", "DDP", "TFLOP: SFRIK", "VICReg", "original", "network"]
    times = ["SFRIK, half", "SFRIK, float32", "VICReg, float32", "VICReg, TF32", "original, half", "network, half"]
    most = [f"{method} sends as much" for method in METHODS]
    return [
        table([*case, *head, "GB at the peak: SFRIK", "VICReg", "original"], counts),
        table([*case, *ports], exchange),
        table([*case, *times], products),
        table([*case, *losses], steps),
        table(["q", "parameters, millions", *most, "SFRIK's rows need 20 GB"], limits),
    ]


def outweighs(method: str, q: int) -> float:
    """Rows of the batch from which on the loss of two views sends at least as much as DDP's average."""
    parameters = network(q)[0]
    # in bytes DDP sends 8 P, SFRIK's gather in half precision 4 n q, VICReg's 8 n q, the original 24 n q
    rows = parameters / q * {"SFRIK": 2, "VICReg": 1, "original": 1 / 3}[method]
    if method != "VICReg" or rows < q:
        return rows
    return q if 2 * q * q >= parameters else float("inf")  # from n = q on VICReg sums 2 q^2 numbers, whatever n


def number(x: float) -> str:
    """Three digits."""
    return f"{x:.0f}" if x >= 100 or x == 0 else f"{x:#.3g}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])
