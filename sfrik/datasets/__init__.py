"""Images: reading, decoding, listing, subsets and batches."""

from sfrik.datasets.decoding import decode_image, read_image
from sfrik.datasets.fingerprint import describe_data, print_images
from sfrik.datasets.images import Images, image_files, images_of_folder, load_images
from sfrik.datasets.label_fraction import labelled_share, simclr_list
from sfrik.datasets.listing import cache_folder, list_images
from sfrik.datasets.loader import batches, explain_worker_death, keep_on_device
from sfrik.datasets.sizes import class_members, class_subset
from sfrik.datasets.transfer import VOC_CLASSES, load_target

__all__ = [
    "VOC_CLASSES",
    "Images",
    "batches",
    "cache_folder",
    "class_members",
    "class_subset",
    "decode_image",
    "describe_data",
    "explain_worker_death",
    "image_files",
    "images_of_folder",
    "keep_on_device",
    "labelled_share",
    "list_images",
    "load_images",
    "load_target",
    "print_images",
    "read_image",
    "simclr_list",
]
