"""The guarded reader of pictures, the one that every saved Maya carries as its own code.

The file is taken out of its package, `processing_maya`, because importing the package imports torch
and transformers: seconds and memory that building a dataset does not need.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from processing_maya.image_loading_maya import MAX_BYTES, load_image, read_picture
else:
    _package = importlib.util.find_spec("processing_maya")
    _spec = importlib.util.spec_from_file_location(
        "processing_maya_image_loading", Path(_package.origin).with_name("image_loading_maya.py")
    )
    _module = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_module)
    MAX_BYTES = _module.MAX_BYTES
    load_image, read_picture = _module.load_image, _module.read_picture

__all__ = ["MAX_BYTES", "load_image", "read_picture"]
