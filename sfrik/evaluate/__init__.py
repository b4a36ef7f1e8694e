"""The evaluation protocols: features, weighted kNN, linear probe, logistic regression."""
