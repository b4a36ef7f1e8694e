"""What a command will do, and the memory that a pretraining needs, told: as lines, and as a widget in a notebook.

The numbers are those of `sfrik.cost.memory`.
"""

from __future__ import annotations

from html import escape
from typing import Any

from sfrik.cost.memory import expected_images, expected_memory, expected_steps
from sfrik.errors import SfrikError
from sfrik.pretrain.accumulate import micro_batches
from sfrik.settings import PretrainSettings, Settings
from sfrik.settings.fields import ARCHITECTURES

__all__ = ["format_memory", "format_plan", "memory_by_processes", "memory_widget"]

USUAL = (1, 2, 4, 8)  # processes
METHODS = ("sfrik", "auh", "simclr", "vicreg", "sigreg")
# Okabe and Ito's, told apart by those who are colour-blind
COLOURS = {"parameters": "#0072B2", "activations": "#E69F00", "images": "#999999", "embeddings": "#56B4E9", "loss": "#D55E00"}
LEAST = 0.95  # of the total: what saves less is not worth a word


def format_plan(settings: Settings, processes: int | None, several: bool) -> list[str]:
    """The settings, the steps, the images and the memory to expect of a command: of `processes`, else of one, or where it can
    share its work (`several`) of usual numbers.
    """
    width = max(len(name) for name in type(settings).model_fields)
    lines = [f"{name:<{width}}  {value}" for name, value in settings.model_dump().items()]
    counts, images = expected_steps(settings), expected_images(settings)
    if counts is not None and images is not None:
        steps, epochs = counts
        seen = steps * settings.batch_size if isinstance(settings, PretrainSettings) else images * min(1, epochs)
        lines.append(f"steps: {steps} an epoch, {steps * epochs} in all")
        lines.append(f"images: {seen} an epoch{f' (of {images})' if seen < images else ''}, {seen * epochs} in all")
    elif images is not None:
        lines.append(f"images: {images}")
    else:
        lines.append(f"steps: as many as the images in {settings.data_dir} fill batches of {settings.batch_size}, an epoch")
    for count, parts in memory_by_processes(settings, processes or (None if several else 1)).items():
        detail = ", ".join(f"{name} {size:.2f}" for name, size in parts.items())
        each = "1 process" if count == 1 else f"each of {count} processes"
        lines.append(f"memory of {each}, about: {sum(parts.values()):.2f} GiB ({detail or 'nothing large'})")
    return lines


def memory_by_processes(settings: Settings, processes: int | None = None) -> dict[int, dict[str, float]]:
    """GiB of each process by part, for so many processes; for those of 1, 2, 4, 8 that share the batch equally when None."""
    counts = [processes] if processes else [count for count in USUAL if settings.batch_size % count == 0]
    return {count: expected_memory(settings, count) for count in counts}


def format_memory(settings: PretrainSettings, found: dict[int, dict[str, float]]) -> list[str]:
    """A table of `memory_by_processes`; under it what takes most with the fewest processes, and what would lower it."""
    names = list(dict.fromkeys(name for parts in found.values() for name in parts))
    lines = ["  ".join([f"{'GiB of each process':<19}", *names, "      total"])]
    for count, parts in found.items():
        cells = [f"{parts.get(name, 0.0):{len(name)}.2f}" for name in names]
        lines.append("  ".join([f"{_processes(count):<19}", *cells, f"{sum(parts.values()):11.2f}"]))
    return [*lines, *_advice(settings, *next(iter(found.items())))]


def _advice(settings: PretrainSettings, processes: int, parts: dict[str, float]) -> list[str]:
    total, largest = sum(parts.values()), max(parts, key=lambda name: parts[name])
    lines = [f"largest, with {_processes(processes)}: {largest}, {100 * parts[largest] / total:.0f} % of {total:.2f} GiB"]
    if settings.ssl_method == "none":
        return lines
    local = settings.batch_size // processes
    passing = local // micro_batches(local, settings.micro_batch)
    ways = []
    if passing >= 8:
        fewer = settings.model_copy(update={"micro_batch": passing // 4})
        ways.append((f"--micro-batch {passing // 4}", "", expected_memory(fewer, processes)))
    if local % 2 == 0 and local > 2:
        ways.append((_processes(2 * processes), " each", expected_memory(settings, 2 * processes)))
    helpful = [f"{way} ({sum(then.values()):.2f} GiB{each})" for way, each, then in ways if sum(then.values()) < LEAST * total]
    return [*lines, f"to lower it: {', '.join(helpful) or 'a smaller network or projector (--arch, --mlp)'}"]


def memory_widget() -> None:
    """Show a calculator in a notebook: inputs, and a bar of the parts that follows them.

    The bar is an output of its own, which stays in a saved notebook as it was at last.
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
        return _shown(**{name: widget.value for name, widget in inputs.items()})

    display(ipywidgets.GridBox(list(inputs.values()), layout={"grid_template_columns": "repeat(auto-fill, 310px)"}))
    shown = display(bundle(), raw=True, display_id=True)
    assert shown is not None  # with a display_id there is a handle
    for widget in inputs.values():
        widget.observe(lambda change: shown.update(bundle(), raw=True), names="value")


def _shown(q: int, processes: int, micro_batch: int, **values: Any) -> dict[str, str]:
    """The memory of ImageNet's training at 224 pixels, as HTML and as text."""
    try:
        given = PretrainSettings.parse({**values, "mlp": f"8192-8192-{q}", "micro_batch": micro_batch or None})
        if processes < 1 or given.batch_size % processes or given.batch_size == processes:
            raise SfrikError(f"a batch of {given.batch_size} cannot be shared equally, two images each at least, by {processes}")
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
