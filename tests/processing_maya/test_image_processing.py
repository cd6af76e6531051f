"""Pictures of every kind to pixels."""

import io
import subprocess
import sys

import numpy as np
import PIL
import pytest
import torch
from PIL import Image

from processing_maya import MayaImageProcessor
from processing_maya import image_processing_maya as module
from processing_maya.image_loading_maya import MAX_PADDED_SIDE

GREY = 127
OLD_PILLOW = int(PIL.__version__.split(".")[0]) < 13


def processor(size=8, **kwargs):
    return MayaImageProcessor(size={"height": size, "width": size}, **kwargs)


def pixels(image, **kwargs):
    """Pixel values brought back to 0..255, [3, height, width]."""
    values = processor(**kwargs)(image, return_tensors="np")["pixel_values"]
    assert values.dtype == np.float32
    assert values.shape[0] == 1
    return np.rint((values[0] * 0.5 + 0.5) * 255).astype(int)


def noise(width, height, seed=0):
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def reference(image, size, aspect):
    """The rule written out with PIL and float64, independently of the image processor."""
    image = image.convert("RGB")
    width, height = image.size
    if aspect == "pad":
        side = max(width, height)
        square = Image.new("RGB", (side, side), (GREY, GREY, GREY))
        square.paste(image, ((side - width) // 2, (side - height) // 2))
        image = square
    elif aspect == "crop":
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        image = image.crop((left, top, left + side, top + side))
    image = image.resize((size, size), resample=Image.Resampling.BICUBIC)
    return (np.asarray(image).transpose(2, 0, 1) / 255.0 - 0.5) / 0.5


class TestAspect:
    @pytest.mark.parametrize("aspect", ["pad", "square", "crop"])
    @pytest.mark.parametrize("size", [(21, 10), (10, 21), (13, 13), (8, 8), (1, 30), (5, 2)])
    def test_against_the_rule_written_out(self, aspect, size):
        if aspect == "square" and OLD_PILLOW:
            pytest.skip("older releases of Pillow resize tall pictures in another order of axes")
        image = noise(*size)
        found = processor(image_aspect=aspect)(image, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(found, reference(image, 8, aspect), atol=1e-6)

    def test_the_three_differ(self):
        image = noise(20, 10)
        found = [pixels(image, image_aspect=aspect) for aspect in ("pad", "square", "crop")]
        assert (found[0] != found[1]).any()
        assert (found[0] != found[2]).any()
        assert (found[1] != found[2]).any()

    def test_padding_is_grey_and_the_odd_row_goes_below(self):
        # 4 wide, 1 high: 3 rows are missing, floor(3 / 2) = 1 of them above.
        image = Image.new("RGB", (4, 1), (255, 0, 0))
        found = pixels(image, size=4)
        assert (found[0, 1] == 255).all()
        assert (found[1:, 1] == 0).all()
        assert (found[:, [0, 2, 3]] == GREY).all()

    def test_another_pad_color(self):
        found = pixels(Image.new("RGB", (1, 4), (0, 0, 0)), size=4, pad_color=[10, 20, 30])
        assert found[:, 0, 0].tolist() == [10, 20, 30]

    def test_padding_of_floating_point_arrays_without_rescaling(self):
        image = np.zeros((3, 1, 4), dtype=np.float32)
        out = processor(size=4, do_rescale=False, do_normalize=False)(image, return_tensors="np")
        assert out["pixel_values"][0, 0, 0, 0] == pytest.approx(127 / 255, abs=1e-3)

    def test_unknown_aspect_and_colors_are_refused(self):
        with pytest.raises(
            ValueError, match="image_aspect: expected one of pad, square, crop, found 'anyres'"
        ):
            processor(image_aspect="anyres")
        with pytest.raises(ValueError, match=r"image_aspect: .*found 'none'"):
            processor()(noise(4, 4), image_aspect="none")
        for color in ([1, 2], [0, 0, 256], [-1, 0, 0]):
            with pytest.raises(ValueError, match="pad_color: expected three numbers"):
                processor(pad_color=color)

    def test_padding_that_would_fill_the_memory_is_refused(self):
        image = Image.new("RGB", (MAX_PADDED_SIDE + 1, 1))
        with pytest.raises(ValueError, match="16385x1 pixels"):
            processor()(image)
        assert processor(image_aspect="crop")(image, return_tensors="np")["pixel_values"].shape == (
            1,
            3,
            8,
            8,
        )

    @pytest.mark.parametrize("size", [(301, 40), (40, 301), (300, 7), (7, 300), (150, 149)])
    @pytest.mark.parametrize("kind", [np.uint8, np.float32])
    def test_a_large_square_in_strips_is_the_same(self, monkeypatch, size, kind):
        """Strips of a few rows, some of padding alone; the picture is resized to less and to more."""
        image = np.asarray(noise(*size))
        settings = {}
        if kind is np.float32:
            image, settings = image.astype(np.float32) / 255, {"do_rescale": False}
        for target in (8, 200):
            whole = processor(target, **settings)(image, return_tensors="np")["pixel_values"]
            with monkeypatch.context() as patch:
                patch.setattr(module, "STRIP_PIXELS", 4000)
                strips = processor(target, **settings)(image, return_tensors="np")["pixel_values"]
            np.testing.assert_array_equal(whole, strips)

    def test_the_widest_picture_that_may_be_padded_takes_little_memory(self):
        code = (
            "import resource\nfrom PIL import Image\nfrom processing_maya import MayaImageProcessor\n"
            "from processing_maya.image_loading_maya import MAX_PADDED_SIDE\n"
            "process = MayaImageProcessor()\nprocess(Image.new('RGB', (9, 1)))\n"
            "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
            "process(Image.new('RGB', (MAX_PADDED_SIDE, 1)))\n"
            "process(Image.new('RGB', (1, MAX_PADDED_SIDE)))\n"
            "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert int(done.stdout) < 300, done.stderr

    def test_nothing_is_no_picture(self):
        for nothing in ([], np.zeros((0, 4, 3), np.uint8), np.zeros((0, 4, 4, 3), np.uint8)):
            with pytest.raises(ValueError, match="found"):
                processor()(nothing)
        with pytest.raises(ValueError, match="at least one pixel, found 5x0"):
            processor()(Image.new("RGB", (5, 0)))
        with pytest.raises(ValueError, match="real numbers, found complex64"):
            processor()(np.zeros((4, 4, 3), np.complex64))
        with pytest.raises(ValueError, match="expected numbers, found object"):
            processor()(np.full((4, 4, 3), None))


class TestResizing:
    @pytest.mark.skipif(OLD_PILLOW, reason="Pillow 13 is the reference")
    @pytest.mark.parametrize("target", [8, 16, 32])
    def test_the_order_of_the_axes_is_that_of_pillow_13(self, target):
        """Whatever the release of Pillow does itself, see `_resize`."""
        for width in (5, 16, 20, 40):
            for height in range(3, 90, 4):
                image = noise(width, height, seed=height)
                expected = np.asarray(image.resize((target, target), Image.Resampling.BICUBIC))
                found = module._resize(np.asarray(image), (target, target), 3)
                np.testing.assert_array_equal(found, expected)

    def test_a_tall_picture_is_resized_vertically_first(self):
        image = noise(8, 30)
        first = image.resize((8, 16), Image.Resampling.BICUBIC)
        expected = np.asarray(first.resize((16, 16), Image.Resampling.BICUBIC))
        np.testing.assert_array_equal(module._resize(np.asarray(image), (16, 16), 3), expected)


class TestModes:
    def test_alpha_is_dropped_not_blended(self):
        for mode, value in (("RGBA", (200, 100, 50, 0)), ("LA", (90, 0))):
            found = pixels(Image.new(mode, (8, 8), value))
            expected = list(value[:3]) if mode == "RGBA" else [90] * 3
            assert found[:, 0, 0].tolist() == expected

    def test_transparent_color_is_laid_under(self):
        image = Image.new("RGBA", (8, 8), (200, 100, 50, 0))
        image.paste((200, 100, 50, 255), (0, 0, 4, 8))
        found = pixels(image, transparent_color=[255, 255, 255])
        assert found[:, 0, 0].tolist() == [200, 100, 50]
        assert found[:, 0, 7].tolist() == [255, 255, 255]

    def test_palette_with_transparency(self):
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 10, 200, 30])
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", transparency=1)
        image = Image.open(buffer)
        assert image.mode == "P"
        assert "transparency" in image.info
        assert pixels(image)[:, 0, 0].tolist() == [10, 200, 30]
        assert pixels(image, transparent_color=[1, 2, 3])[:, 0, 0].tolist() == [1, 2, 3]

    def test_greyscale_one_bit_and_cmyk(self):
        assert pixels(Image.new("L", (8, 8), 77))[:, 3, 3].tolist() == [77] * 3
        assert pixels(Image.new("1", (8, 8), 1))[:, 3, 3].tolist() == [255] * 3
        cmyk = Image.new("CMYK", (8, 8), (0, 255, 255, 0))
        assert pixels(cmyk)[:, 3, 3].tolist() == list(cmyk.convert("RGB").getpixel((0, 0)))
        assert pixels(cmyk)[0, 3, 3] > 200
        assert pixels(cmyk)[1, 3, 3] < 50

    @pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
    def test_sixteen_bits_are_scaled_not_clipped(self, mode):
        for value, expected in ((0, 0), (257 * 100, 100), (32768, 128), (65535, 255)):
            image = Image.new("I", (8, 8), value)
            if mode != "I":
                values = np.full((8, 8), value, dtype=">u2" if mode.endswith("B") else "<u2")
                image = Image.frombytes(mode, (8, 8), values.tobytes())
            assert image.mode == mode
            assert pixels(image)[:, 0, 0].tolist() == [expected] * 3

    def test_sixteen_bit_png_file(self):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8), 257 * 40, dtype=np.uint16)).save(buffer, format="PNG")
        assert pixels(Image.open(buffer))[:, 0, 0].tolist() == [40] * 3

    def test_floating_point_is_refused(self):
        with pytest.raises(ValueError, match="mode 'F'"):
            processor()(Image.new("F", (8, 8), 0.5))

    def test_arrays_and_tensors(self):
        image = noise(8, 8)
        expected = pixels(image)
        array = np.asarray(image)
        channels_first = array.transpose(2, 0, 1).copy()
        for other in (array, channels_first, torch.tensor(channels_first)):
            np.testing.assert_array_equal(pixels(other), expected)
        grey = np.asarray(image.convert("L"))
        np.testing.assert_array_equal(pixels(grey), pixels(image.convert("L")))
        rgba = np.concatenate([array, np.zeros((8, 8, 1), np.uint8)], axis=2)
        np.testing.assert_array_equal(pixels(rgba), expected)


class TestExif:
    @pytest.fixture
    def turned(self):
        """Left half red, to be turned by 90 degrees to the right by its EXIF orientation."""
        image = Image.new("RGB", (8, 8), (0, 0, 255))
        image.paste((255, 0, 0), (0, 0, 4, 8))
        exif = Image.Exif()
        exif[0x0112] = 6
        buffer = io.BytesIO()
        image.save(buffer, format="PNG", exif=exif)
        return buffer

    def test_off_by_default_like_the_original(self, turned):
        found = pixels(Image.open(turned))
        assert found[:, 7, 0].tolist() == [255, 0, 0]

    def test_on(self, turned):
        found = pixels(Image.open(turned), apply_exif_rotation=True)
        assert found[:, 0, 7].tolist() == [255, 0, 0]
        assert found[:, 7, 0].tolist() == [0, 0, 255]
        at_the_call = processor()(Image.open(turned), apply_exif_rotation=True, return_tensors="np")
        np.testing.assert_array_equal(
            np.rint((at_the_call["pixel_values"][0] * 0.5 + 0.5) * 255), found
        )


class TestArithmetic:
    def test_table_equals_the_long_way(self):
        """Bytes are looked up in a table; the generic path must give the same bits."""
        image = np.arange(256, dtype=np.uint8).reshape(16, 16)
        image = np.stack([image, image[::-1], image.T], axis=2)
        for mean, std in (([0.5] * 3, [0.5] * 3), ([0.48, 0.45, 0.4], [0.26, 0.27, 0.28])):
            fast = processor(size=16, image_mean=mean, image_std=std)
            found = fast(Image.fromarray(image), return_tensors="np")["pixel_values"][0]
            rescaled = (image.astype(np.float64) / 255).astype(np.float32)
            slow = (rescaled - np.float32(mean)) / np.float32(std)
            slow = slow.transpose(2, 0, 1)
            assert slow.dtype == found.dtype
            np.testing.assert_array_equal(found, slow)

    def test_batch_equals_single(self):
        images = [noise(9, 20), noise(30, 4).convert("L"), noise(8, 8)]
        batch = processor()(images, return_tensors="pt")["pixel_values"]
        assert batch.shape == (3, 3, 8, 8)
        for index, image in enumerate(images):
            torch.testing.assert_close(
                batch[index], processor()(image, return_tensors="pt")["pixel_values"][0]
            )

    def test_save_and_load(self, tmp_path):
        first = processor(
            image_aspect="crop",
            pad_color=[1, 2, 3],
            apply_exif_rotation=True,
            transparent_color=[9] * 3,
        )
        first.save_pretrained(tmp_path)
        second = MayaImageProcessor.from_pretrained(tmp_path)
        assert second.to_dict() == first.to_dict()
        assert second.image_aspect == "crop"
        assert second.apply_exif_rotation is True
        assert second.size == {"height": 8, "width": 8}
        assert second.backend == "pil"


def test_a_damaged_exif_is_no_reason_to_refuse_a_whole_picture():
    """Its orientation is then unknown; nothing is printed or raised."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a text of some length"
    file = io.BytesIO()
    noise(12, 8).save(file, "PNG")
    process = processor(apply_exif_rotation=True)
    whole = exif.tobytes()
    for start in range(6, len(whole)):
        with Image.open(file) as image:
            image.load()
        image.info["exif"] = whole[:start] + b"\xff" * 3 + whole[start + 3 :]
        assert process(image, return_tensors="np")["pixel_values"].shape == (1, 3, 8, 8)
