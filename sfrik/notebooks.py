"""Running the project's notebooks headless, by papermill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sfrik.errors import SfrikError, nearest

__all__ = ["execute", "notebook_path"]

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def notebook_path(name: str) -> Path:
    """The source of a notebook, `02_pretraining` for instance."""
    path = NOTEBOOKS / f"{name}.ipynb"
    if not NOTEBOOKS.is_dir():
        raise SfrikError("the notebooks are not part of the installed package: run this from a clone of the repository")
    if not path.is_file():
        known = [p.stem for p in NOTEBOOKS.glob("*.ipynb")]
        raise SfrikError(f"there is no notebook {name}{nearest(name, known)}")
    return path


def execute(name: str, parameters: dict[str, Any], output: Path) -> None:
    """Execute a notebook with parameters; the executed copy is at `output`, complete or not at all.

    papermill lets a misspelt parameter pass, so the names are checked first. A failed copy stays beside `output` with
    the suffix .partial.ipynb: its last cell holds the traceback.

    Raises:
        SfrikError: an unknown parameter, or a cell that failed.
    """
    import papermill
    from papermill.exceptions import PapermillExecutionError

    source = notebook_path(name)
    known = papermill.inspect_notebook(str(source))
    for parameter in parameters:
        if parameter not in known:
            raise SfrikError(f"notebook {name} has no parameter {parameter}{nearest(parameter, known)}")
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_suffix(".partial.ipynb")
    try:
        papermill.execute_notebook(
            str(source),
            str(partial),
            parameters,
            progress_bar=False,
            cwd=str(Path.cwd()),
            kernel_name="python3",
            extra_arguments=["--log-level=CRITICAL"],  # such as that it was interrupted when it is shut down
        )
    except PapermillExecutionError as error:
        raise SfrikError(f"notebook {name} failed with {error.ename}: {error.evalue} (see {partial})") from None
    _without_places(partial)
    partial.replace(output)


def _without_places(path: Path) -> None:
    """Drop papermill's record of where the files lay: the copy is published."""
    content = json.loads(path.read_text())
    record = content["metadata"].get("papermill", {})
    for key in ("input_path", "output_path", "environment_variables"):
        record.pop(key, None)
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
