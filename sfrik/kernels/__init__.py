r"""Rotation-invariant kernels on the sphere and their spectra (section 3 of the paper).

A kernel :math:`\phi(\langle u, v \rangle)` on the unit sphere of :math:`\mathbb{R}^q` that is invariant to rotations is positive
definite if and only if it has a Legendre series with non-negative coefficients (Schoenberg 1942):

.. math::

    \phi(t) = \sum_{l \ge 0} b_l P_l(q; t), \qquad b_l \ge 0, \qquad \sum_l b_l < \infty

:math:`P_l(q; \cdot)` is the Legendre polynomial of degree :math:`l` in dimension :math:`q`, normalised to
:math:`P_l(q; 1) = 1` (C. Müller, *Analysis of Spherical Symmetries in Euclidean Spaces*, 1998).

Legend: :math:`q` `dim`, the dimension of the space that contains the sphere; :math:`l` `degree`; :math:`t` the inner product of
two unit vectors, in [-1, 1]; :math:`N(q, l)` `harmonics`, the number of linearly independent spherical harmonics of degree l.
"""

from sfrik.kernels.closed_forms import ClosedForm, ExponentialForm, PowerForm
from sfrik.kernels.collapse import collapse_cost, null_deviations, predicted_rank, predicted_spectrum
from sfrik.kernels.polynomials import harmonics, legendre
from sfrik.kernels.rotation_invariant import RotationInvariantKernel, TruncationWarning, format_share

__all__ = [
    "ClosedForm",
    "ExponentialForm",
    "PowerForm",
    "RotationInvariantKernel",
    "TruncationWarning",
    "collapse_cost",
    "format_share",
    "harmonics",
    "legendre",
    "null_deviations",
    "predicted_rank",
    "predicted_spectrum",
]
