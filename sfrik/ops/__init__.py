"""Building blocks of the losses: sums over pairs by tiles, precomputed gradients, collective communication."""
