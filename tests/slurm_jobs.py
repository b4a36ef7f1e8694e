"""Runs as SLURM jobs, without a table."""

from sfrik.reproduce.submit import _submitting


def submit_runs(runs, layout, site, root, data_dir=""):
    """Submit the jobs of runs, as `submit_table` does for those of a table; returns the ids."""
    with _submitting(layout, site, root, data_dir) as submission:
        return submission.submit_runs(submission.missing(runs))
