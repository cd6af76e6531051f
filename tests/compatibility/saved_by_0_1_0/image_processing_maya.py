"""Image processor of Maya: any picture to normalised square pixels, with PIL alone."""

from typing import Any

import numpy as np
from PIL import Image, ImageOps
from transformers.image_processing_backends import PilBackend
from transformers.image_processing_base import BatchFeature
from transformers.image_utils import (
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    infer_channel_dimension_format,
)
from transformers.processing_utils import ImagesKwargs, Unpack
from transformers.utils import TensorType

ASPECTS = ("pad", "square", "crop")

# Padding makes a square of the long side; beyond this side it would take gigabytes of memory.
MAX_PADDED_SIDE = 16384


class MayaImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """Arguments of `MayaImageProcessor` beside those that every image processor has.

    image_aspect (`str`): what happens to a picture that is not square, see `MayaImageProcessor`.
    pad_color (`list[int]`): RGB, 0 to 255, of the border added by `image_aspect="pad"`.
    apply_exif_rotation (`bool`): turn the picture upright by its EXIF orientation first.
    transparent_color (`list[int]`): RGB laid under transparent pixels; None drops transparency.
    """

    image_aspect: str | None
    pad_color: list[int] | tuple[int, ...] | None
    apply_exif_rotation: bool | None
    transparent_color: list[int] | tuple[int, ...] | None


def to_rgb(image: Image.Image, transparent_color: tuple[int, ...] | None = None) -> Image.Image:
    """Return `image` in mode RGB with 8 bits a channel.

    Transparency is dropped, not blended, as the original does, unless `transparent_color` is
    given. 16-bit greyscale is scaled from 0..65535 to 0..255 (PIL would clip it to white).
    Raises ValueError for floating-point pictures, whose range is unknown.
    """
    if image.mode == "RGB":
        return image
    if image.mode == "F":
        raise ValueError(
            "Cannot read a floating-point picture (PIL mode 'F'), its range of values is unknown: "
            "convert it to 8 bits first, for example with image.point(...).convert('L')."
        )
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        # Mode I holds both 16-bit files and small integers that someone put there.
        if image.mode != "I" or values.max(initial=0) > 255:
            values = (values + 128) // 257
        return Image.fromarray(values.clip(0, 255).astype(np.uint8), mode="L").convert("RGB")
    if transparent_color is not None and image.has_transparency_data:
        image = image.convert("RGBA")
        ground = Image.new("RGBA", image.size, (*transparent_color, 255))
        image = Image.alpha_composite(ground, image)
    return image.convert("RGB")


def make_square(image: np.ndarray, aspect: str, pad_color: tuple[float, ...]) -> np.ndarray:
    """Pad or crop `image` [height, width, channels] to a square, or leave it for `"square"`."""
    height, width, channels = image.shape
    if height == width or aspect == "square":
        return image
    if aspect == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]
    side = max(height, width)
    if side > MAX_PADDED_SIDE:
        raise ValueError(
            f"Cannot pad a picture of {width}x{height} pixels to a square: the longer side may have "
            f"at most {MAX_PADDED_SIDE}. Make it smaller, or use image_aspect='square' or 'crop'."
        )
    top, left = (side - height) // 2, (side - width) // 2
    square = np.empty((side, side, channels), dtype=image.dtype)
    square[:] = np.asarray(pad_color[:channels], dtype=image.dtype)
    square[top : top + height, left : left + width] = image
    return square


class MayaImageProcessor(PilBackend):
    r"""Pictures in, `pixel_values` float32 [pictures, 3, height, width] out.

    A picture becomes RGB, then a square, then `size` (bicubic, by PIL), then
    `(value / 255 - image_mean) / image_std`, which is -1 to 1 with the defaults.

    `image_aspect` says how it becomes a square:
      - `"pad"`: a border of `pad_color` around it, the picture at half the difference (rounded
        down); what the original was finetuned with;
      - `"square"`: squeezed; what the original was pretrained with;
      - `"crop"`: the central square is cut out.

    Raises ValueError for an unknown `image_aspect` or `pad_color` and for pictures that cannot
    be read or padded.
    """

    valid_kwargs = MayaImageProcessorKwargs
    model_input_names = ["pixel_values"]

    resample = PILImageResampling.BICUBIC
    image_mean = [0.5, 0.5, 0.5]
    image_std = [0.5, 0.5, 0.5]
    size = {"height": 256, "width": 256}
    default_to_square = True
    do_resize = True
    do_rescale = True
    do_normalize = True
    do_convert_rgb = True
    image_aspect = "pad"
    pad_color = [127, 127, 127]
    apply_exif_rotation = False
    transparent_color = None

    def __init__(self, **kwargs: Unpack[MayaImageProcessorKwargs]):
        super().__init__(**kwargs)
        self._check_maya_kwargs(self.image_aspect, self.pad_color, self.transparent_color)

    @staticmethod
    def _check_maya_kwargs(image_aspect, pad_color, transparent_color) -> None:
        if image_aspect not in ASPECTS:
            raise ValueError(
                f"Unknown image_aspect {image_aspect!r}, expected one of {', '.join(ASPECTS)}."
            )
        for name, color in (("pad_color", pad_color), ("transparent_color", transparent_color)):
            if color is None and name == "transparent_color":
                continue
            if color is None or len(color) != 3 or not all(0 <= value <= 255 for value in color):
                raise ValueError(
                    f"{name} must be three numbers from 0 to 255 (red, green, blue), found {color!r}."
                )

    def _prepare_images_structure(self, images: Any, expected_ndims: int = 3) -> list[Any]:
        """Flatten nested lists and batches; unlike the base class, grey arrays are pictures too."""
        images = self.fetch_images(images)
        if isinstance(images, (list, tuple)):
            return [image for part in images for image in self._prepare_images_structure(part)]
        return list(images) if getattr(images, "ndim", 0) == 4 else [images]

    def process_image(
        self,
        image: Any,
        do_convert_rgb: bool | None = True,
        input_data_format: str | ChannelDimension | None = None,
        apply_exif_rotation: bool | None = None,
        transparent_color: list[int] | tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Turn a PIL image, array or tensor into an array [channels, height, width].

        Arrays may be [height, width], channels first or channels last. With `do_convert_rgb` the
        result has three channels.
        """
        if isinstance(image, Image.Image):
            if apply_exif_rotation:
                image = ImageOps.exif_transpose(image)
            if do_convert_rgb:
                color = tuple(transparent_color) if transparent_color is not None else None
                image = to_rgb(image, color)
            array = np.asarray(image)
            input_data_format = ChannelDimension.LAST
        else:
            array = np.asarray(image.cpu() if hasattr(image, "cpu") else image)
        if array.ndim == 2:
            array = array[None]
        elif array.ndim == 3:
            if input_data_format is None:
                input_data_format = infer_channel_dimension_format(array, num_channels=(1, 3, 4))
            if input_data_format == ChannelDimension.LAST:
                array = array.transpose(2, 0, 1)
        else:
            raise ValueError(
                f"An image array needs two or three dimensions, found the shape {array.shape}."
            )
        if do_convert_rgb and len(array) == 1:
            array = np.repeat(array, 3, axis=0)
        elif do_convert_rgb and len(array) == 4:
            array = array[:3]
        return array

    def _preprocess(
        self,
        images: list[np.ndarray],
        do_resize: bool,
        size: SizeDict,
        resample: Any,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean: Any,
        image_std: Any,
        return_tensors: str | TensorType | None,
        image_aspect: str = "pad",
        pad_color: Any = (127, 127, 127),
        transparent_color: Any = None,
        **kwargs: Any,
    ) -> BatchFeature:
        self._check_maya_kwargs(image_aspect, pad_color, transparent_color)
        tables: dict[int, np.ndarray] = {}
        pixel_values = []
        for channels_first in images:
            image = np.ascontiguousarray(channels_first.transpose(1, 2, 0))
            # Without rescaling a floating-point image is already in 0..1.
            scale = 1.0 if do_rescale or image.dtype == np.uint8 else rescale_factor
            image = make_square(image, image_aspect, tuple(value * scale for value in pad_color))
            channels = image.shape[2]
            if do_resize and image.shape[:2] != (size.height, size.width):
                if image.dtype == np.uint8 and channels == 3:
                    # What self.resize does, without its conversions of the full-size picture.
                    picture = Image.fromarray(image).resize((size.width, size.height), resample)
                    image = np.asarray(picture)
                else:
                    image = self.resize(image.transpose(2, 0, 1), size=size, resample=resample)
                    image = image.transpose(1, 2, 0)
            if image.dtype == np.uint8 and do_rescale and do_normalize:
                # Only 256 values can occur: look their results up.
                if channels not in tables:
                    values = np.broadcast_to(np.arange(256, dtype=np.uint8), (channels, 1, 256))
                    table = self.normalize(
                        self.rescale(values, rescale_factor), image_mean, image_std
                    )
                    tables[channels] = table.reshape(channels, 256)
                table = tables[channels]
                image = np.stack(
                    [table[channel][image[..., channel]] for channel in range(channels)]
                )
            else:
                image = image.transpose(2, 0, 1)
                if do_rescale:
                    image = self.rescale(image, rescale_factor)
                if do_normalize:
                    image = self.normalize(image, image_mean, image_std)
            pixel_values.append(image)
        return BatchFeature(data={"pixel_values": pixel_values}, tensor_type=return_tensors)
