"""Functions on several processes, from a notebook, a shell or a SLURM job."""

from sfrik.launch.launcher import launch

__all__ = ["launch"]
