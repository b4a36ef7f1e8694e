"""Pretraining: the training loop, gradient accumulation, distributed training, checkpoints and logs."""

from sfrik.pretrain.loop import pretrain

__all__ = ["pretrain"]
