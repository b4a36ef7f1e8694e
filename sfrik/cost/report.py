"""The predictions of `sfrik.cost.memory` as text, for dry runs and `sfrik memory`, and as a widget for notebooks."""

from __future__ import annotations

from html import escape
from typing import Any

from sfrik.cost.memory import expected_memory
from sfrik.errors import SfrikError
from sfrik.evaluate.feature_files import count_features
from sfrik.pretrain.accumulate import micro_batches
from sfrik.settings import ARCHITECTURES, PretrainSettings, Settings
from sfrik.system.terminal import align, terminal_width, wrap

__all__ = ["format_memory", "memory_by_processes", "memory_table", "memory_widget"]

PROCESSES = (1, 2, 4, 8)  # the numbers of processes shown by default
METHODS = ("sfrik", "auh", "simclr", "vicreg", "sigreg")
# Okabe and Ito's palette, distinguishable with colour blindness
COLOURS = {"parameters": "#0072B2", "activations": "#E69F00", "images": "#999999", "embeddings": "#56B4E9", "loss": "#D55E00"}
WORTHWHILE = 0.95  # advice is given only if it lowers the total to this fraction


def memory_by_processes(settings: Settings, processes: int | None = None) -> dict[int, dict[str, float]]:
    """GiB per process by part, for each number of processes: the given one, or each of `PROCESSES` that divides the batch.

    Empty where features are to be read that are not there yet.
    """
    if settings.features_dir and count_features(settings.features_dir) is None:
        return {}
    counts = [processes] if processes else [count for count in PROCESSES if settings.batch_size % count == 0]
    return {count: expected_memory(settings, count) for count in counts}


def format_memory(settings: PretrainSettings, found: dict[int, dict[str, float]]) -> list[str]:
    """A table of `memory_by_processes`, then the largest part with the fewest processes, and settings that would lower it."""
    advice = _advice(settings, *next(iter(found.items())), _unit(found))
    return [*memory_table(found), *(line for text in advice for line in wrap(text))]


def memory_table(found: dict[int, dict[str, float]]) -> list[str]:
    """A row for each number of processes, or a column where the terminal is too narrow for the rows."""
    names, unit = list(dict.fromkeys(name for parts in found.values() for name in parts)), _unit(found)
    rows = [[f"{unit} per process", *names, "total"]]
    for count, parts in found.items():
        sizes = [*(parts.get(name, 0.0) for name in names), sum(parts.values())]
        rows.append([_processes(count), *(_number(size, unit) for size in sizes)])
    lines = align(rows, right=range(1, len(rows[0])))
    if max(map(len, lines)) <= terminal_width() - 2:  # a dry run indents them
        return lines
    columns = zip(rows[0], *([str(count), *row[1:]] for count, row in zip(found, rows[1:], strict=True)), strict=True)
    return align(list(columns), right=range(1, len(rows)))


def _unit(found: dict[int, dict[str, float]]) -> str:
    """The unit of a table: MiB if no total reaches 1 GiB."""
    return "GiB" if max(sum(parts.values()) for parts in found.values()) >= 1 else "MiB"


def _number(size: float, unit: str) -> str:
    return f"{size:.2f}" if unit == "GiB" else f"{1024 * size:.0f}"


def _advice(settings: PretrainSettings, processes: int, parts: dict[str, float], unit: str) -> list[str]:
    total, largest = sum(parts.values()), max(parts, key=lambda name: parts[name])
    share = f"{100 * parts[largest] / total:.0f} % of {_number(total, unit)} {unit}"
    lines = [f"largest, with {_processes(processes)}: {largest}, {share}"]
    if settings.ssl_method == "none":
        return lines
    local = settings.batch_size // processes
    micro_batch = local // micro_batches(local, settings.micro_batch)
    options = []
    if micro_batch >= 8:
        smaller = settings.model_copy(update={"micro_batch": micro_batch // 4})
        options.append((f"--micro-batch {micro_batch // 4}", "", sum(expected_memory(smaller, processes).values())))
    if local % 2 == 0 and local > 2:
        options.append((_processes(2 * processes), " each", sum(expected_memory(settings, 2 * processes).values())))
    helpful = [f"{option} ({_number(size, unit)} {unit}{each})" for option, each, size in options if size < WORTHWHILE * total]
    return [*lines, f"to lower it: {', '.join(helpful) or 'a smaller network or projector (--arch, --mlp)'}"]


def memory_widget() -> None:
    """Show a calculator in a notebook: inputs, and a bar of the parts that is updated with them.

    The bar is a separate output, so a saved notebook keeps its last state.
    """
    import ipywidgets
    from IPython.display import display

    def choice(name: str, options, value) -> ipywidgets.ValueWidget:
        return ipywidgets.Dropdown(options=options, value=value, description=name)

    def number(name: str, value: int) -> ipywidgets.ValueWidget:
        return ipywidgets.BoundedIntText(value=value, min=0, max=10**7, description=name, continuous_update=False)

    inputs = {
        "arch": choice("arch", ARCHITECTURES, "resnet50"),
        "ssl_method": choice("objective", METHODS, "sfrik"),
        "augmentations": choice("views", [("two", "vicreg"), ("OBoW's 8", "obow"), ("SwAV's 8", "swav")], "vicreg"),
        "precision": choice("precision", ("bf16", "fp32"), "bf16"),
        "q": number("q", 8192),
        "batch_size": number("batch", 2048),
        "processes": number("processes", 8),
        "micro_batch": number("micro-batch", 0),
    }

    def bundle() -> dict[str, str]:
        return _render(**{name: widget.value for name, widget in inputs.items()})

    display(ipywidgets.GridBox(list(inputs.values()), layout={"grid_template_columns": "repeat(auto-fill, 310px)"}))
    handle = display(bundle(), raw=True, display_id=True)
    assert handle is not None  # display returns one for a display_id
    for widget in inputs.values():
        widget.observe(lambda change: handle.update(bundle(), raw=True), names="value")


def _render(q: int, processes: int, micro_batch: int, **values: Any) -> dict[str, str]:
    """The memory of pretraining on ImageNet at 224 pixels, as HTML and as text."""
    try:
        given = PretrainSettings.parse({**values, "mlp": f"8192-8192-{q}", "micro_batch": micro_batch or None})
        if processes < 1 or given.batch_size % processes or given.batch_size == processes:
            raise SfrikError(
                f"{processes} processes cannot share a batch of {given.batch_size} equally with two images or more each"
            )
    except SfrikError as error:
        return {"text/html": f"<p>{escape(str(error))}</p>", "text/plain": str(error)}
    parts = expected_memory(given, processes)
    total = sum(parts.values())
    bar = "".join(
        f'<div style="width:{100 * size / total:.2f}%;background:{COLOURS[name]}" title="{name} {size:.2f} GiB"></div>'
        for name, size in parts.items()
    )
    legend = " &nbsp; ".join(f'<span style="color:{COLOURS[name]}">■</span> {name} {x:.2f}' for name, x in parts.items())
    head = f"<b>{total:.2f} GiB</b> on each of {processes} processes" if processes > 1 else f"<b>{total:.2f} GiB</b>"
    what = f"{given.arch}, projector {given.mlp}, {given.ssl_method}, batch {given.batch_size}, {given.precision}"
    what += f", micro-batches of at most {given.micro_batch}" if given.micro_batch else ""
    html = f'<p>{head}: {what}</p><div style="display:flex;height:24px;max-width:720px">{bar}</div><p>{legend}</p>'
    return {"text/html": html, "text/plain": "\n".join(format_memory(given, {processes: parts}))}


def _processes(count: int) -> str:
    return "1 process" if count == 1 else f"{count} processes"
