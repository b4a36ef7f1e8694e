"""The objective that the settings of a pretraining describe."""

from __future__ import annotations

from sfrik.kernels import RotationInvariantKernel
from sfrik.objectives.base import Objective
from sfrik.objectives.methods import AUH, SFRIK, SIGReg, SimCLR, VICReg
from sfrik.settings import PretrainSettings

__all__ = ["build_objective"]


def build_objective(settings: PretrainSettings) -> Objective:
    """The objective that the settings describe, for batches that are shared equally among the processes."""
    objective = _objective(settings)
    objective.equal_rows, objective.seed = True, settings.seed
    return objective


def _objective(s: PretrainSettings) -> Objective:
    if s.ssl_method == "sfrik":
        return SFRIK(s.dim, s.kernel_weights, s.sfrik_sim_coeff, s.sfrik_mmd_coeff, _other_kernel(s), slices=s.sfrik_slices)
    if s.ssl_method == "auh":
        return AUH(s.auh_sim_coeff, s.auh_unif_coeff, s.auh_scale)
    if s.ssl_method == "simclr":
        return SimCLR(s.simclr_temp)
    if s.ssl_method == "sigreg":
        return SIGReg(s.sigreg_weight, s.sigreg_slices)
    return VICReg(s.vicreg_sim_coeff, s.vicreg_std_coeff, s.vicreg_cov_coeff)


def _other_kernel(s: PretrainSettings) -> RotationInvariantKernel | None:
    """The kernel of the settings where it is not the truncated one."""
    scale, degree = s.sfrik_kernel_scale, s.sfrik_kernel_degree
    if s.sfrik_kernel == "rbf":
        return RotationInvariantKernel.rbf(scale, s.dim, degree)
    if s.sfrik_kernel == "heat":
        return RotationInvariantKernel.heat(scale / (s.dim - 1), s.dim, degree)
    if s.sfrik_kernel == "power":  # |u - v|^2 = 2 (1 - t); the constant C is the degree 0, which is left out
        return RotationInvariantKernel.from_function(lambda t: -((2 * (1 - t)) ** (scale / 2)), s.dim, degree)
    return None
