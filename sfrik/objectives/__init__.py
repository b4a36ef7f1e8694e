r"""The objectives of the paper's comparison, SFRIK, AUH, SimCLR and VICReg, and a later one, SIGReg.

Each is called on two or more views, the raw outputs of the projector, and returns named loss terms:

>>> import torch
>>> views = [torch.eye(4).requires_grad_(), torch.eye(4)]
>>> for objective in SFRIK(dim=4), AUH(), SimCLR(), VICReg(), SIGReg(slices=16):
...     print(type(objective).__name__, *objective(views).parts)
SFRIK alignment mmd
AUH alignment uniformity
SimCLR nt_xent alignment
VICReg alignment std cov
SIGReg alignment sigreg

`anchors` are the indices of the views that the others are aligned to:

.. math::

    \text{alignment} = \operatorname{mean}_{a \in \text{anchors}} \operatorname{mean}_{v \ne a} \operatorname{mse}(z_a, z_v)

where mse is the mean over rows and coordinates. `regularise` chooses whether the regulariser is averaged over "all" views or over
the "anchors". Two views with anchors (0, 1) give the usual formulas. All statistics are over the rows of the whole batch, on all
processes.

Where the paper and the authors' code differ, the code is followed, since the published figures came from it.
"""

from sfrik.objectives.auh import AUH
from sfrik.objectives.base import NotFinite, Objective
from sfrik.objectives.loss_terms import LossTerms
from sfrik.objectives.sfrik import SFRIK
from sfrik.objectives.sigreg import SIGReg
from sfrik.objectives.simclr import SimCLR
from sfrik.objectives.vicreg import VICReg

__all__ = ["AUH", "SFRIK", "LossTerms", "NotFinite", "Objective", "SIGReg", "SimCLR", "VICReg"]
