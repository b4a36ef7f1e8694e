"""Construction of the objective that the settings of a pretraining describe."""

from __future__ import annotations

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel
from sfrik.objectives.auh import AUH
from sfrik.objectives.base import Objective
from sfrik.objectives.sfrik import SFRIK
from sfrik.objectives.sigreg import SIGReg
from sfrik.objectives.simclr import SimCLR
from sfrik.objectives.vicreg import VICReg
from sfrik.settings import PretrainSettings

__all__ = ["build_objective"]


def build_objective(settings: PretrainSettings) -> Objective:
    """The objective for these settings, on batches that are divided equally among the processes.

    Raises:
        SfrikError: an objective or a kernel refuses a combination of settings.
    """
    try:
        return _objective(settings)
    except ValueError as error:
        raise SfrikError(f"ssl_method {settings.ssl_method}: {error}") from None


def _objective(s: PretrainSettings) -> Objective:
    if s.ssl_method == "sfrik":
        return SFRIK(
            s.dim,
            s.kernel_weights,
            s.sfrik_sim_coeff,
            s.sfrik_mmd_coeff,
            kernel=_other_kernel(s),
            slices=s.sfrik_slices,
            seed=s.seed,
            equal_rows=True,
        )
    if s.ssl_method == "auh":
        return AUH(s.auh_sim_coeff, s.auh_unif_coeff, s.auh_scale, equal_rows=True)
    if s.ssl_method == "simclr":
        return SimCLR(s.simclr_temp, equal_rows=True)
    if s.ssl_method == "sigreg":
        return SIGReg(s.sigreg_weight, s.sigreg_slices, seed=s.seed, equal_rows=True)
    return VICReg(s.vicreg_sim_coeff, s.vicreg_std_coeff, s.vicreg_cov_coeff, equal_rows=True)


def _other_kernel(s: PretrainSettings) -> RotationInvariantKernel | None:
    """The kernel of the settings unless it is the truncated one."""
    scale, degree = s.sfrik_kernel_scale, s.sfrik_kernel_degree
    if s.sfrik_kernel == "rbf":
        return RotationInvariantKernel.rbf(scale, s.dim, degree)
    if s.sfrik_kernel == "heat":
        return RotationInvariantKernel.heat(scale / (s.dim - 1), s.dim, degree)
    if s.sfrik_kernel == "power":  # C - |u - v|^scale, where |u - v|^2 = 2 (1 - t); C only changes degree 0, which is omitted
        return RotationInvariantKernel.from_function(lambda t: -((2 * (1 - t)) ** (scale / 2)), s.dim, degree)
    return None
