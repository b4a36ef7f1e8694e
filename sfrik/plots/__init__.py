"""Figures of tables, runs, images, the sphere and the kernel explorer."""
