"""Images: reading, decoding, listing, subsets and batches."""

from sfrik.datasets.images import Images, batches, class_members, class_subset, load_images

__all__ = ["Images", "batches", "class_members", "class_subset", "load_images"]
