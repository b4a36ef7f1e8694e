"""The fixtures of the tests of SLURM."""

from slurm_jobs import cluster, root

__all__ = ["cluster", "root"]
