"""The objectives: SFRIK, AUH, SimCLR, VICReg and SIGReg."""

from sfrik.objectives.methods import AUH, SFRIK, SIGReg, SimCLR, VICReg

__all__ = ["AUH", "SFRIK", "SIGReg", "SimCLR", "VICReg"]
