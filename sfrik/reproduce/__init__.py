"""`make tableN`: the missing runs, their notebooks, local and SLURM execution, status."""

from sfrik.reproduce.chapters import execute_chapters
from sfrik.reproduce.run import run_recipe
from sfrik.reproduce.stages import DEFAULT_STAGES, STAGES, missing_stages
from sfrik.reproduce.status import RunStatus, run_status, tables_status
from sfrik.reproduce.submit import submit_table
from sfrik.reproduce.table import make_table, render_all

__all__ = [
    "DEFAULT_STAGES",
    "STAGES",
    "RunStatus",
    "execute_chapters",
    "make_table",
    "missing_stages",
    "render_all",
    "run_recipe",
    "run_status",
    "submit_table",
    "tables_status",
]
