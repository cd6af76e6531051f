"""Image processor of Maya: any image to normalized square pixels, with only PIL and numpy."""

from typing import Any

import numpy as np
from PIL import Image
from transformers import BaseImageProcessor, BatchFeature

from .image_loading_maya import check_padded_side, load_image, to_rgb, upright

ASPECTS = ("pad", "square", "crop")

# Most pixels of a padded square that are in memory at once.
STRIP_PIXELS = 1 << 24


class MayaImageProcessorKwargs(dict):
    """Names and types of `MayaImageProcessor`'s arguments; serving engines read them to sort arguments."""

    do_resize: bool
    size: dict[str, int]
    resample: int
    do_rescale: bool
    rescale_factor: float
    do_normalize: bool
    image_mean: list[float]
    image_std: list[float]
    do_convert_rgb: bool
    image_aspect: str
    pad_color: list[int]
    apply_exif_rotation: bool
    transparent_color: list[int] | None


def make_square(image: np.ndarray, aspect: str, pad_color: tuple[float, ...]) -> np.ndarray:
    """Pad or crop `image` [height, width, channels] to a square; `"square"` returns it unchanged."""
    height, width, _ = image.shape
    if height == width or aspect == "square":
        return image
    if aspect == "crop":
        side = min(height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return image[top : top + side, left : left + side]
    return _padded_rows(image, pad_color, 0, max(height, width))


def _padded_rows(
    image: np.ndarray, pad_color: tuple[float, ...], start: int, stop: int
) -> np.ndarray:
    """Return rows `start` to `stop` of the square that `image` is padded to."""
    height, width, channels = image.shape
    side = max(height, width)
    check_padded_side(width, height)
    top, left = (side - height) // 2, (side - width) // 2
    rows = np.empty((stop - start, side, channels), dtype=image.dtype)
    rows[:] = np.asarray(pad_color[:channels], dtype=image.dtype)
    first, last = max(start, top), min(stop, top + height)
    if first < last:
        rows[first - start : last - start, left : left + width] = image[first - top : last - top]
    return rows


class MayaImageProcessor(BaseImageProcessor):
    r"""Turns images into `pixel_values`, float32 [images, 3, height, width].

    An image is converted to RGB, made square, resized to `size` (bicubic, by PIL), and normalized to
    `(value / 255 - image_mean) / image_std`, which is -1 to 1 with the defaults. An image gives the same
    pixels in every form: path, URL, bytes, PIL image or array.

    Args:
        image_aspect (`str`, defaults to `"pad"`): how an image becomes a square.
            `"pad"`: a border of `pad_color`, with the image centered (offsets rounded down); the
            original was finetuned with it.
            `"square"`: squeezed; the original was pretrained with it.
            `"crop"`: the central square is cut out.
        pad_color (`list[int]`): RGB of the border, 0 to 255.
        apply_exif_rotation (`bool`, defaults to `False`): rotate the image by its EXIF orientation.
            The original did not.
        transparent_color (`list[int]`, *optional*): RGB behind transparent pixels; None drops
            transparency, as in the original.
        size, resample, do_resize, do_rescale, rescale_factor, do_normalize, image_mean, image_std,
            do_convert_rgb: as in every image processor of transformers.

    A server that passes on URLs from others can restrict what is read. These three are attributes
    of the object in memory and are never saved:

        allow_files (`True`): read paths of this machine.
        allow_urls (`True`): fetch http and https URLs.
        allow_private_urls (`False`): also fetch URLs of private and local networks.

    Raises:
        ValueError: for an unknown `image_aspect`, an invalid color, and images that cannot be read or
            padded.
    """

    valid_kwargs = MayaImageProcessorKwargs
    model_input_names = ["pixel_values"]
    # transformers' Auto classes read these: this processor does not need torchvision.
    backend = "pil"
    is_fast = False

    allow_files = True
    allow_urls = True
    allow_private_urls = False

    def __init__(
        self,
        do_resize: bool = True,
        size: dict[str, int] | None = None,
        resample: int = Image.Resampling.BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: list[float] | None = None,
        image_std: list[float] | None = None,
        do_convert_rgb: bool = True,
        image_aspect: str = "pad",
        pad_color: list[int] | tuple[int, ...] = (127, 127, 127),
        apply_exif_rotation: bool = False,
        transparent_color: list[int] | tuple[int, ...] | None = None,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        self.do_resize = do_resize
        self.size = _side_lengths(size if size is not None else {"height": 256, "width": 256})
        self.resample = int(resample)
        self.do_rescale = do_rescale
        self.rescale_factor = rescale_factor
        self.do_normalize = do_normalize
        self.image_mean = list(image_mean) if image_mean is not None else [0.5, 0.5, 0.5]
        self.image_std = list(image_std) if image_std is not None else [0.5, 0.5, 0.5]
        self.do_convert_rgb = do_convert_rgb
        self.image_aspect = image_aspect
        self.pad_color = list(pad_color) if pad_color is not None else None
        self.apply_exif_rotation = apply_exif_rotation
        self.transparent_color = list(transparent_color) if transparent_color is not None else None
        _check_aspect(self.image_aspect, self.pad_color, self.transparent_color)

    # Saving and loading

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """Build the processor from saved values, as in transformers; `kwargs` override saved arguments."""
        return_unused = kwargs.pop("return_unused_kwargs", False)
        fields = MayaImageProcessorKwargs.__annotations__
        changes = {name: kwargs.pop(name) for name in list(kwargs) if name in fields}
        image_processor = cls(**{**image_processor_dict, **changes})
        return (image_processor, kwargs) if return_unused else image_processor

    def to_dict(self) -> dict[str, Any]:
        """Return the content that `save_pretrained` writes: every argument, and where the code is."""
        fields = MayaImageProcessorKwargs.__annotations__
        saved = {name: getattr(self, name) for name in fields}
        if getattr(self, "auto_map", None):
            saved["auto_map"] = self.auto_map
        return {**saved, "image_processor_type": type(self).__name__}

    # Reading images

    def fetch_images(self, image_url_or_urls: Any) -> Any:
        """Load images given by path, URL, `data:` URI or bytes; lists keep their shape.

        PIL images, arrays and tensors are returned unchanged.

        Raises:
            ValueError, OSError: one line that names the image, see `load_image`.
        """
        if isinstance(image_url_or_urls, (list, tuple)):
            return [self.fetch_images(one) for one in image_url_or_urls]
        if isinstance(image_url_or_urls, Image.Image) or hasattr(image_url_or_urls, "ndim"):
            return image_url_or_urls
        return load_image(
            image_url_or_urls,
            allow_files=self.allow_files,
            allow_urls=self.allow_urls,
            allow_private=self.allow_private_urls,
        )

    def flatten_images(self, images: Any) -> list[Any]:
        """Return a flat list of images (PIL images, arrays [height, width] or with channels, tensors).

        Accepts one image, lists of images, nested or not, and batches with four dimensions.
        """
        images = self.fetch_images(images)
        if isinstance(images, (list, tuple)):
            return [image for part in images for image in self.flatten_images(part)]
        return list(images) if getattr(images, "ndim", 0) == 4 else [images]

    # Pixels

    def __call__(self, images: Any, *args: Any, **kwargs: Any) -> BatchFeature:
        """See `preprocess`."""
        return self.preprocess(images, *args, **kwargs)

    def preprocess(
        self, images: Any, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Turn images into `pixel_values`.

        Args:
            images: anything that `flatten_images` accepts.
            return_tensors: `"pt"` or `"np"`; without it `pixel_values` is a list of arrays.
            kwargs: arguments of the class, for this call only; also `input_data_format`
                ("channels_first" or "channels_last") for arrays of ambiguous shape. Other names are
                ignored, because processors pass every argument to all their parts.
        """
        fields = MayaImageProcessorKwargs.__annotations__
        settings = {
            name: kwargs[name] if kwargs.get(name) is not None else getattr(self, name)
            for name in fields
        }
        settings["size"] = _side_lengths(settings["size"])
        _check_aspect(
            settings["image_aspect"], settings["pad_color"], settings["transparent_color"]
        )
        input_data_format = kwargs.get("input_data_format")
        pictures = self.flatten_images(images)
        if not pictures:
            raise ValueError("images: expected at least one picture, found none")
        pixel_values = [
            _to_pixels(_to_array(image, settings, input_data_format), settings)
            for image in pictures
        ]
        return BatchFeature({"pixel_values": pixel_values}, tensor_type=return_tensors)


def _side_lengths(size: Any) -> dict[str, int]:
    """Return `size` as {"height", "width"}; a number means both. Raises ValueError for other values."""
    if isinstance(size, int):
        size = {"height": size, "width": size}
    try:
        found = {name: size[name] for name in ("height", "width")}
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"size: expected a height and a width in pixels, found {size!r}") from None
    if not all(isinstance(side, int) and side > 0 for side in found.values()):
        raise ValueError(f"size: expected two positive whole numbers, found {size!r}")
    return found


def _check_aspect(image_aspect: Any, pad_color: Any, transparent_color: Any) -> None:
    if image_aspect not in ASPECTS:
        raise ValueError(
            f"image_aspect: expected one of {', '.join(ASPECTS)}, found {image_aspect!r}"
        )
    for name, color in (("pad_color", pad_color), ("transparent_color", transparent_color)):
        if color is None and name == "transparent_color":
            continue
        if color is None or len(color) != 3 or not all(0 <= value <= 255 for value in color):
            raise ValueError(
                f"{name}: expected three numbers from 0 to 255 (red, green, blue), found {color!r}"
            )


def _to_array(image: Any, settings: dict[str, Any], input_data_format: str | None) -> np.ndarray:
    """Convert a PIL image, array or tensor to an array [height, width, channels].

    Arrays may be [height, width], channels first or channels last. With `do_convert_rgb` the result has
    three channels.
    """
    if isinstance(image, Image.Image):
        if not image.width or not image.height:
            raise ValueError(
                f"a picture: expected at least one pixel, found {image.width}x{image.height}"
            )
        if settings["apply_exif_rotation"]:
            image = upright(image)
        if settings["do_convert_rgb"]:
            color = settings["transparent_color"]
            image = to_rgb(image, tuple(color) if color is not None else None)
        array = np.asarray(image)
        return array[..., None] if array.ndim == 2 else array
    array = np.asarray(image.detach().cpu() if hasattr(image, "detach") else image)
    if not array.size or not (array.dtype == np.bool_ or np.issubdtype(array.dtype, np.number)):
        raise ValueError(
            f"an image array: expected numbers, found {array.dtype} of the shape {array.shape}"
        )
    if np.issubdtype(array.dtype, np.complexfloating):
        raise ValueError(f"an image array: expected real numbers, found {array.dtype}")
    if array.ndim == 2:
        array = array[..., None]
    elif array.ndim != 3:
        raise ValueError(
            f"an image array: expected two or three dimensions, found the shape {array.shape}"
        )
    elif _channels_first(array.shape, input_data_format):
        array = array.transpose(1, 2, 0)
    if settings["do_rescale"]:
        array = _to_bytes(array)
    if settings["do_convert_rgb"] and array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    elif settings["do_convert_rgb"] and array.shape[2] == 4:
        array = array[..., :3]
    return array


def _channels_first(shape: tuple[int, ...], input_data_format: Any) -> bool:
    """Return whether an array of three dimensions is [channels, height, width]."""
    if input_data_format is not None:
        return str(getattr(input_data_format, "value", input_data_format)) == "channels_first"
    first, last = shape[0] in (1, 3, 4), shape[2] in (1, 3, 4)
    if not first and not last:
        raise ValueError(
            f"an image array: expected 1, 3 or 4 channels first or last, found the shape {shape}"
        )
    return first


def _to_bytes(array: np.ndarray) -> np.ndarray:
    """Scale any array to 0..255, the values that a file of the same image would give.

    Input ranges: floating point 0 to 1 or 0 to 255, 16-bit 0 to 65535, booleans 0 or 1.

    Raises:
        ValueError: for values outside of these ranges.
    """
    if array.dtype == np.uint8 or not array.size:
        return array.astype(np.uint8)
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * 255
    if np.issubdtype(array.dtype, np.floating):
        low, high = float(array.min()), float(array.max())
        if not (low >= 0 and high <= 255):
            raise ValueError(
                f"an image array of {array.dtype}: expected values from 0 to 1 or from 0 to 255, found "
                f"{low:g} to {high:g}: scale them, or pass do_rescale=False for values that need none"
            )
        scale = 255.0 if high <= 1 else 1.0
        return np.rint(array.astype(np.float64) * scale).astype(np.uint8)
    low, high = int(array.min()), int(array.max())
    if low < 0 or high > 65535:
        raise ValueError(
            f"an image array of {array.dtype}: expected values from 0 to 255 or from 0 to 65535, found "
            f"{low} to {high}"
        )
    if array.dtype == np.uint16 or high > 255:
        array = (array.astype(np.int64) + 128) // 257
    return array.astype(np.uint8)


def _to_pixels(image: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Map [height, width, channels] to normalized [channels, size height, size width], float32."""
    height, width = settings["size"]["height"], settings["size"]["width"]
    as_bytes = image.dtype == np.uint8
    # Without rescaling a floating-point image is already in 0..1.
    scale = 1.0 if as_bytes else settings["rescale_factor"]
    color = tuple(value * scale for value in settings["pad_color"])
    image = np.ascontiguousarray(image)
    side = max(image.shape[:2])
    large = side * side > STRIP_PIXELS and not _vertical_first(side, side, (width, height))
    if settings["image_aspect"] == "pad" and settings["do_resize"] and large:
        image = _narrow_square(image, color, width, settings["resample"])
    else:
        image = make_square(image, settings["image_aspect"], color)
    if settings["do_resize"] and image.shape[:2] != (height, width):
        image = _resize(image, (width, height), settings["resample"])
    channels = image.shape[2]
    if as_bytes:
        # Only 256 values can occur, so look the results up in a table.
        values = np.broadcast_to(np.arange(256, dtype=np.uint8)[:, None], (256, channels))
        table = _normalize(values, settings)
        return np.stack([table[:, channel][image[..., channel]] for channel in range(channels)])
    return _normalize(image, settings).transpose(2, 0, 1)


def _narrow_square(
    image: np.ndarray, color: tuple[float, ...], width: int, resample: int
) -> np.ndarray:
    """Return the square that `image` is padded to, resized to `width`: [side, width, channels].

    A row is resized independently of its neighbors, so processing the square in strips gives the same
    values.
    """
    side = max(image.shape[:2])
    count = max(1, STRIP_PIXELS // side)
    strips = []
    for start in range(0, side, count):
        strip = _padded_rows(image, color, start, min(start + count, side))
        strips.append(_resize(strip, (width, len(strip)), resample))
    return np.concatenate(strips)


def _vertical_first(width: int, height: int, size: tuple[int, int]) -> bool:
    """Return whether Pillow 13 resizes the vertical axis first."""
    target_width, target_height = size
    return (
        height > target_height
        and target_width * (height + target_height) > 2 * width * target_height
    )


def _resize(image: np.ndarray, size: tuple[int, int], resample: int) -> np.ndarray:
    """Resize [height, width, channels] to `size`, (width, height), by PIL, one axis after the other.

    PIL rounds after each axis, and the first axis depends on the release: up to 12 it is always the
    horizontal one. This function follows Pillow 13, where it is the vertical one for tall images.
    """
    (width, height), (target_width, target_height) = image.shape[1::-1], size
    vertical_first = _vertical_first(width, height, size)
    between = (width, target_height) if vertical_first else (target_width, height)
    if image.dtype == np.uint8 and image.shape[2] in (3, 4):
        parts = [Image.fromarray(image)]
    else:
        # PIL resizes other kinds of images one channel at a time.
        kind = np.uint8 if image.dtype == np.uint8 else np.float32
        channels = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=kind)
        parts = [Image.fromarray(channel) for channel in channels]
    resized = [np.asarray(part.resize(between, resample).resize(size, resample)) for part in parts]
    return resized[0] if resized[0].ndim == 3 else np.stack(resized, axis=2)


def _normalize(values: np.ndarray, settings: dict[str, Any]) -> np.ndarray:
    """Rescale and normalize an array with channels last, to float32; bytes stay bytes if neither is on."""
    if settings["do_rescale"]:
        values = (values.astype(np.float64) * settings["rescale_factor"]).astype(np.float32)
    if settings["do_normalize"]:
        if not np.issubdtype(values.dtype, np.floating):
            values = values.astype(np.float32)
        mean = np.asarray(settings["image_mean"], dtype=values.dtype)
        std = np.asarray(settings["image_std"], dtype=values.dtype)
        values = (values - mean) / std
    return values


__all__ = ["MayaImageProcessor"]
