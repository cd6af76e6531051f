"""The guarded reader of pictures, see common/images.py."""

from .common.images import MAX_BYTES, load_image

__all__ = ["MAX_BYTES", "load_image"]
