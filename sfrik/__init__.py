"""Self-supervised learning with rotation-invariant kernels."""

from sfrik.system.home import provide_home as provide_home
from sfrik.system.names import explain_missing_name as explain_missing_name

__all__ = ["AUH", "SFRIK", "SIGReg", "SimCLR", "VICReg", "__version__"]

__version__ = "0.1.0"


def __getattr__(name):
    if name not in __all__:
        explain_missing_name(name)
    from sfrik import objectives  # here, since it imports torch: `import sfrik` and the command line stay fast

    return getattr(objectives, name)


def __dir__():
    return sorted({*globals(), *__all__})
