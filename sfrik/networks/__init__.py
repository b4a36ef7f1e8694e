"""Backbones, projectors, the encoder that combines them, and weights files."""

from sfrik.networks.backbones import Backbone, build_backbone, build_pixels, build_projector
from sfrik.networks.encoder import Encoder, build_encoder
from sfrik.networks.weights import load_backbone, pretrained, save_weights

__all__ = [
    "Backbone",
    "Encoder",
    "build_backbone",
    "build_encoder",
    "build_pixels",
    "build_projector",
    "load_backbone",
    "pretrained",
    "save_weights",
]
