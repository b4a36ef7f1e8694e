"""The paper's tables: definitions, scores, rendering, and the paper's claims against the measurements."""

from sfrik.tables.claims import claims, claims_as_markdown, write_claims
from sfrik.tables.collect import Measured, Table, build_table, has_scores, read_score, tables_with_scores
from sfrik.tables.definitions import EXPERIMENTS, Experiment, experiment, grids, read_choice, rows_of
from sfrik.tables.render import as_csv, as_latex, as_markdown, write_table
from sfrik.tables.rows import Column, Row, paper_figures
from sfrik.tables.run_pages import write_run_pages

__all__ = [
    "EXPERIMENTS",
    "Column",
    "Experiment",
    "Measured",
    "Row",
    "Table",
    "as_csv",
    "as_latex",
    "as_markdown",
    "build_table",
    "claims",
    "claims_as_markdown",
    "experiment",
    "grids",
    "has_scores",
    "paper_figures",
    "read_choice",
    "read_score",
    "rows_of",
    "tables_with_scores",
    "write_claims",
    "write_run_pages",
    "write_table",
]
