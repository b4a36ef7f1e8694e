"""Augmentations: the views of an image that an objective compares."""

from sfrik.views.base import Views, build_views, probe_views, resize_for_test
from sfrik.views.digits import digit_views
from sfrik.views.photos import STATISTICS, normalise

__all__ = ["STATISTICS", "Views", "build_views", "digit_views", "normalise", "probe_views", "resize_for_test"]
