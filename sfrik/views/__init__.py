"""Augmentations: the views of an image that an objective compares."""

from sfrik.views.base import Views, build_views, digit_views, probe_views, resize_for_test

__all__ = ["Views", "build_views", "digit_views", "probe_views", "resize_for_test"]
