"""The tables of the paper's experiments: definitions, scores, rendering, and the paper's claims against the measurements."""

from sfrik.tables.claim_pages import claims_as_markdown, write_claims
from sfrik.tables.claims import claims
from sfrik.tables.collect import Table, build_table, has_scores, read_score, tables_with_scores
from sfrik.tables.compare import Cell, Comparison, compare_tables
from sfrik.tables.definitions import EXPERIMENTS, Experiment, experiment, grids, read_choice, rows_of
from sfrik.tables.measured import Measured
from sfrik.tables.render import as_csv, as_latex, as_markdown, write_table
from sfrik.tables.rows import Column, Row, paper_figures
from sfrik.tables.run_pages import write_run_pages
from sfrik.tables.text import agreement, as_text

__all__ = [
    "EXPERIMENTS",
    "Cell",
    "Column",
    "Comparison",
    "Experiment",
    "Measured",
    "Row",
    "Table",
    "agreement",
    "as_csv",
    "as_latex",
    "as_markdown",
    "as_text",
    "build_table",
    "claims",
    "claims_as_markdown",
    "compare_tables",
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
