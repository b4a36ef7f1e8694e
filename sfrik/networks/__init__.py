"""Backbones, projectors, the encoder that combines them, and weights files."""

from sfrik.networks.backbones import Backbone, build_backbone, build_pixels, build_projector
from sfrik.networks.encoder import Encoder, build_encoder
from sfrik.networks.libraries import check_network
from sfrik.networks.weights import load_backbone, network_metadata, pretrained, save_weights

__all__ = [
    "Backbone",
    "Encoder",
    "build_backbone",
    "build_encoder",
    "build_pixels",
    "build_projector",
    "check_network",
    "load_backbone",
    "network_metadata",
    "pretrained",
    "save_weights",
]
