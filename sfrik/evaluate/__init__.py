"""Evaluations of a backbone: kNN, linear probe, fine-tuning, logistic regression, transfer, collapse."""
