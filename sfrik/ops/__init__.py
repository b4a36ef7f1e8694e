"""What the losses compute with: pairwise tiles, analytic gradients, collective communication."""
