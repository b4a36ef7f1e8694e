"""`sfrik publish`: copy finished runs of tables to the published results."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from sfrik.cli.checks import check_folder
from sfrik.cli.flags import add_command, add_profile, add_root
from sfrik.cli.output import CommandOutput, add_json
from sfrik.errors import SfrikError
from sfrik.launch.allocation import check_one_task
from sfrik.system.files import check_text

__all__ = ["add_publish"]

PUBLISH = "Copy the finished runs of tables to results/. They must fit together: one commit, one kind of hardware, one precision."


def add_publish(commands) -> None:
    publish = add_command(commands, "publish", PUBLISH)
    publish.add_argument(
        "names", nargs="+", metavar="TABLE", help="table1 to table9, or all: every table that has a score in each cell"
    )
    add_profile(publish)
    add_root(publish)
    add_json(publish)
    publish.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> CommandOutput:
    from sfrik.reproduce.publish import publish
    from sfrik.tables.definitions import tables_of

    check_text(options.results or "")
    check_folder(options.results)
    check_one_task()
    tables_of(options.profile)  # an unknown profile is an error
    # several in one text, as make gives them; "Table 1" is one name, which is refused with the right one
    names = re.findall(r"(?:tab(?:le|\.)?\s+(?=[0-9]))?[^\s,]+", " ".join(options.names), re.IGNORECASE)
    if not names:
        raise SfrikError("name a table, or all: make publish TABLE=table1")
    found = publish(names, options.profile, options.results)
    return CommandOutput({"profile": options.profile, **found}, _lines(found))


def _lines(found: dict[str, Any]) -> Sequence[str]:
    files = found["files"]
    counts = ", ".join(f"{files[kind]} {kind}" for kind in ("new", "changed", "removed"))
    removed = [f"removed {line}" for line in found["removed"]]
    cells = found["cells"] or ["no cell of a table changed"]
    return [*found["notes"], *removed, *cells, f"published {', '.join(found['tables'])}: files in results/: {counts}"]
