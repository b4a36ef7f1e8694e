"""Construction of the objective that the settings of a pretraining describe."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch

from sfrik.errors import SfrikError
from sfrik.kernels import RotationInvariantKernel, TruncationWarning
from sfrik.mmd import check_range
from sfrik.objectives.auh import AUH
from sfrik.objectives.base import Objective
from sfrik.objectives.sfrik import SFRIK
from sfrik.objectives.sigreg import SIGReg
from sfrik.objectives.simclr import SimCLR
from sfrik.objectives.vicreg import VICReg
from sfrik.settings import PretrainSettings

__all__ = ["build_objective", "kernel_notes", "left_out"]


def build_objective(settings: PretrainSettings, report: Callable[[str], None] | None = None) -> Objective:
    """The objective for these settings, on batches that are divided equally among the processes.

    Args:
        settings: of a pretraining.
        report: called with each warning about the kernel, in place of Python's warnings.

    Raises:
        SfrikError: an objective or a kernel refuses a combination of settings.
    """
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        try:
            objective = _objective(settings)
        except ValueError as error:
            raise SfrikError(f"ssl_method {settings.ssl_method}: {error}") from None
    objective.allow_zero_rows = True
    for warning in found:
        if report is None:
            warnings.warn(warning.message, stacklevel=2)
        else:
            report(str(warning.message))
    return objective


def kernel_notes(settings: PretrainSettings) -> list[str]:
    """The warnings about the kernel of these settings."""
    notes: list[str] = []
    if settings.ssl_method == "sfrik":
        build_objective(settings, notes.append)
    return notes


def left_out(settings: PretrainSettings) -> float:
    """The fraction of its kernel that SFRIK's loss leaves out, since the series is cut; 0 for another objective."""
    objective = build_objective(settings, lambda note: None)
    if not isinstance(objective, SFRIK):
        return 0.0
    return objective.kernel.beyond if objective.sliced else objective.kernel.left_out


def _objective(s: PretrainSettings) -> Objective:
    if s.ssl_method == "sfrik":
        return SFRIK(
            s.dim,
            sim_coeff=s.sfrik_sim_coeff,
            mmd_coeff=s.sfrik_mmd_coeff,
            kernel=_kernel(s),
            slices=s.sfrik_slices,
            seed=s.seed,
            equal_rows=True,
        )
    if s.ssl_method == "auh":
        return AUH(s.auh_sim_coeff, s.auh_unif_coeff, s.auh_scale, entropy=s.auh_entropy, equal_rows=True)
    if s.ssl_method == "simclr":
        return SimCLR(s.simclr_temp, equal_rows=True)
    if s.ssl_method == "sigreg":
        return SIGReg(s.sigreg_weight, s.sigreg_slices, seed=s.seed, equal_rows=True)
    return VICReg(s.vicreg_sim_coeff, s.vicreg_std_coeff, s.vicreg_cov_coeff, equal_rows=True)


def _kernel(s: PretrainSettings) -> RotationInvariantKernel:
    """The kernel of the settings."""
    with warnings.catch_warnings():
        if s.sfrik_stein:  # what counts is what the Stein kernel leaves out
            warnings.simplefilter("ignore", TruncationWarning)
        kernel = _base_kernel(s)
    kernel = kernel.stein(s.sfrik_stein) if s.sfrik_stein else kernel
    check_range(kernel, torch.float32)  # of the losses in a training
    return kernel


def _base_kernel(s: PretrainSettings) -> RotationInvariantKernel:
    scale, degree = s.kernel_scale, s.sfrik_kernel_degree
    if s.sfrik_kernel == "truncated":
        return RotationInvariantKernel.truncated(s.kernel_weights, s.dim)
    if s.sfrik_kernel == "rbf":
        return RotationInvariantKernel.rbf(scale, s.dim, degree)
    if s.sfrik_kernel == "heat":
        return RotationInvariantKernel.heat(scale / (s.dim - 1), s.dim, degree)
    return RotationInvariantKernel.power(scale, s.dim, degree)
