"""The paper's tables: what they consist of, the scores, rendering, claims."""

from sfrik.tables.collect import Table, build_table, tables_with_scores, write_table

__all__ = ["Table", "build_table", "tables_with_scores", "write_table"]
