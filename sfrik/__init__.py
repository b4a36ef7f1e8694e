"""Self-supervised learning with rotation-invariant kernels."""

__all__ = ["__version__"]

__version__ = "0.1.0"
