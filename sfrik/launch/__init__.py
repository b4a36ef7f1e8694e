"""Functions on several processes, from a notebook, a shell or a SLURM job."""

from sfrik.launch.launcher import launch
from sfrik.launch.slurm import Layout, Site, read_site

__all__ = ["Layout", "Site", "launch", "read_site"]
