"""Diagnostics of embeddings: measures of collapse, and a test of uniformity on the sphere."""

from sfrik.diagnostics.hypothesis import DegreeTest, NullDistribution, UniformityTest, uniformity_test
from sfrik.diagnostics.measures import (
    Measures,
    alignment,
    covariance_spectrum,
    effective_rank,
    energy_per_degree,
    measure,
    rankme,
    summary,
    uniformity,
)

__all__ = [
    "DegreeTest",
    "Measures",
    "NullDistribution",
    "UniformityTest",
    "alignment",
    "covariance_spectrum",
    "effective_rank",
    "energy_per_degree",
    "measure",
    "rankme",
    "summary",
    "uniformity",
    "uniformity_test",
]
