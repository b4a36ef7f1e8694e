"""The paper's tables: what they consist of, the scores, rendering, claims."""

from sfrik.tables.collect import as_csv, as_latex, as_markdown, build_table, has_scores, tables_with_scores, write_table

__all__ = ["as_csv", "as_latex", "as_markdown", "build_table", "has_scores", "tables_with_scores", "write_table"]
