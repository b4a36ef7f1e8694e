"""`make tableN`: the missing runs, their notebooks, local and SLURM execution, status."""
