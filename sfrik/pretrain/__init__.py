"""Pretraining."""

from sfrik.pretrain.loop import pretrain

__all__ = ["pretrain"]
