"""Images of every depth and orientation, as numbers."""

import cv2
import numpy as np
import pytest
import tifffile
from PIL import Image

from lsseg.data.pixels import holds_colors, image_size, read_image, read_mask, turned
from lsseg.errors import InputError

GREY = np.arange(12 * 16, dtype=np.uint8).reshape(12, 16)
COLOR = np.stack([GREY, 255 - GREY, GREY // 2], 2)


def save(path, pixels):
    """By OpenCV, which knows what Pillow does not: 16-bit colours, floating point TIFF."""
    assert cv2.imwrite(str(path), pixels[..., ::-1] if pixels.ndim == 3 else pixels)
    return path


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("pixels", [GREY, COLOR], ids=["grey", "colour"])
def test_16_bit_images_have_65536_steps_whatever_they_hold(tmp_path, pixels, suffix):
    wide = read_image(save(tmp_path / f"a{suffix}", pixels.astype(np.uint16) * 257))
    assert np.array_equal(wide, pixels if pixels.ndim == 3 else np.stack([pixels] * 3, 2))
    dark = pixels.astype(np.uint16)
    for brightest in (255, 256):  # two frames of one camera
        dark.flat[-1] = brightest
        assert read_image(save(tmp_path / f"c{suffix}", dark)).max() == 1


@pytest.mark.parametrize("suffix", [".png", ".tiff"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_12_bit_camera_is_said_to_be_one(tmp_path, channels, suffix):
    ramp = np.linspace(0, 4095, 48).round().astype(np.uint16).reshape(6, 8)
    path = save(tmp_path / f"a{suffix}", ramp if channels == 1 else np.stack([ramp] * 3, 2))
    found = read_image(path, (0, 4095))
    assert np.array_equal(found[..., 2], np.rint(ramp * (255 / 4095)).astype(np.uint8))
    with pytest.raises(
        InputError, match=r"a\.\w+ holds values 0\.\.4095; expected 0\.\.1000; for other values, set value_range"
    ):
        read_image(path, (0, 1000))


def test_floating_point_images_are_0_to_1_unless_said_otherwise(tmp_path):
    ramp = np.linspace(0, 1, 20, dtype=np.float32).reshape(4, 5)
    expected = np.rint(ramp * 255).astype(np.uint8)
    Image.fromarray(ramp).save(tmp_path / "a.tif")
    assert np.array_equal(read_image(tmp_path / "a.tif")[..., 0], expected)
    Image.fromarray(ramp * 300 - 100).save(tmp_path / "b.tif")
    assert np.array_equal(read_image(tmp_path / "b.tif", (-100, 200))[..., 0], expected)
    with pytest.raises(
        InputError, match=r"b\.tif holds values -100\.\.200; expected 0\.\.1; for other values, set value_range"
    ):
        read_image(tmp_path / "b.tif")
    ramp[1, 1] = np.nan
    Image.fromarray(ramp).save(tmp_path / "c.tif")
    with pytest.raises(InputError, match=r"c\.tif holds values that are not numbers"):
        read_image(tmp_path / "c.tif")


def test_32_bit_integers_need_a_range(tmp_path):
    values = np.array([[-50, 0], [50_000, 100_000]], np.int32)
    Image.fromarray(values).save(tmp_path / "a.tif")
    with pytest.raises(
        InputError, match=r"a\.tif holds int32 numbers, .* set value_range to the values of black and white"
    ):
        read_image(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", (-50, 100_000))[..., 0].tolist() == [[0, 0], [128, 255]]


SEEN = {2: np.fliplr, 3: lambda x: np.rot90(x, 2), 4: np.flipud, 5: lambda x: x.swapaxes(0, 1)}
SEEN |= {6: lambda x: np.rot90(x, -1), 7: lambda x: np.rot90(x, 2).swapaxes(0, 1), 8: np.rot90}


@pytest.mark.parametrize("orientation", [*range(1, 9), 0, 99])
@pytest.mark.parametrize("suffix", [".png", ".tif", ".webp"])
def test_images_and_masks_are_read_as_they_are_seen(tmp_path, orientation, suffix):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if suffix == ".webp" else {}
    Image.fromarray(COLOR).save(tmp_path / f"a{suffix}", exif=exif, **options)
    seen = SEEN.get(orientation, lambda x: x)(COLOR)
    assert np.array_equal(read_image(tmp_path / f"a{suffix}"), seen)
    assert image_size(tmp_path / f"a{suffix}") == seen.shape[:2]
    if suffix != ".webp":
        Image.fromarray(GREY).save(tmp_path / f"b{suffix}", exif=exif)
        assert np.array_equal(read_mask(tmp_path / f"b{suffix}"), SEEN.get(orientation, lambda x: x)(GREY))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P", "1", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_that_may_be_written_to(tmp_path, mode):
    image = Image.fromarray(GREY.astype(np.uint16)) if mode == "I;16" else Image.fromarray(COLOR).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    found = read_image(path)
    assert (found.shape, found.dtype, found.flags.writeable) == ((12, 16, 3), np.uint8, True)


@pytest.mark.parametrize("suffix", [".ppm", ".jp2", ".webp", ".bmp", ".pgm", ".jfif", ".PNG", ".gif"])
def test_formats_that_people_have(tmp_path, suffix):
    Image.fromarray(GREY if suffix == ".pgm" else COLOR).save(tmp_path / f"a{suffix}")
    assert read_image(tmp_path / f"a{suffix}").shape == (12, 16, 3)


def test_palettes_with_transparency_keep_their_colours(tmp_path):
    image = Image.fromarray(COLOR).quantize(16)
    for name, transparency in (("a", bytes(range(16))), ("b", 3)):
        image.save(tmp_path / f"{name}.png", transparency=transparency)
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), np.array(image.convert("RGB")))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "does not exist"),
        (b"", "cannot decode"),
        (b"<html>", "cannot decode"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n", "`git lfs pull`"),
        (b"\x89PNG\r\n\x1a\n", "cannot decode"),
    ],
)
def test_what_is_no_image_is_named(tmp_path, content, match):
    if content is not None:
        (tmp_path / "a.png").write_bytes(content)
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=rf"a\.png.*{match}|{match}.*a\.png"):
            read(tmp_path / "a.png")


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.9, 0.5])
def test_a_file_that_broke_off_is_named(tmp_path, suffix, kept):
    path = tmp_path / f"a{suffix}"
    Image.fromarray(np.kron(COLOR, np.ones((9, 9, 1), np.uint8))).save(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole))])
    with pytest.raises(InputError, match=rf"cannot decode .*a\{suffix}"):
        read_image(path)


@pytest.mark.parametrize("subsampling", [0, 2])
def test_photographs_are_decoded_as_pillow_decodes_them(tmp_path, subsampling):
    Image.fromarray(np.kron(COLOR, np.ones((3, 3, 1), np.uint8))).save(tmp_path / "a.jpg", subsampling=subsampling)
    assert np.array_equal(read_image(tmp_path / "a.jpg"), np.asarray(Image.open(tmp_path / "a.jpg")))


def test_masks_of_grey_with_transparency_and_of_whole_floating_point_numbers_are_read(tmp_path):
    values = np.array([[0, 1], [255, 7]], np.uint8)
    Image.fromarray(values).convert("LA").save(tmp_path / "a.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "b.tif")
    for name in ("a.png", "b.tif"):
        assert np.array_equal(read_mask(tmp_path / name), values)
    Image.fromarray(values / np.float32(2)).save(tmp_path / "c.tif")
    with pytest.raises(InputError, match=r"c\.tif holds values that are not whole numbers, such as 0\.5"):
        read_mask(tmp_path / "c.tif")


def test_a_tiff_of_several_pictures_is_refused_and_one_with_a_small_copy_is_read(tmp_path):
    pages = [Image.new("L", (8, 6), value) for value in (10, 20, 30)]
    pages[0].save(tmp_path / "stack.tif", save_all=True, append_images=pages[1:])
    for read in (read_image, read_mask, image_size):
        with pytest.raises(InputError, match=r"stack\.tif holds 3 pictures \(pages\), but must hold one"):
            read(tmp_path / "stack.tif")
    for name in ("moving.gif", "moving.png", "moving.webp"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
        with pytest.raises(InputError, match=r"holds 3 pictures \(pages\)"):
            read_image(tmp_path / name)
    small = Image.new("L", (4, 3), 99)
    small.encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(tmp_path / "copy.tif", save_all=True, append_images=[small])
    assert (read_image(tmp_path / "copy.tif") == 10).all()


PLANES = {"photometric": "rgb", "planarconfig": "separate"}
CHANNELS = {"photometric": "minisblack", "planarconfig": "contig"}


@pytest.mark.parametrize(
    ("pixels", "options"),
    [
        (COLOR, {"photometric": "rgb", "bigtiff": True}),
        (COLOR.astype(np.uint16) * 257, {"photometric": "rgb"}),
        (COLOR / 255, {"photometric": "rgb"}),
        ((COLOR / 255).astype(np.float32), {"photometric": "rgb"}),
        ((GREY / 255).astype(np.float16), {}),
        (GREY / 255, {"compression": "zlib"}),
        (COLOR.transpose(2, 0, 1), PLANES),
        (COLOR.transpose(2, 0, 1).astype(np.uint16) * 257, PLANES),
        (COLOR.transpose(2, 0, 1) / 255, PLANES),
        (255 - GREY, {"photometric": "miniswhite"}),
        ((255 - GREY).astype(np.uint16) * 257, {"photometric": "miniswhite"}),
        (1 - GREY / 255, {"photometric": "miniswhite"}),
    ],
)
@pytest.mark.parametrize("orientation", [None, 2, 5, 6])
def test_tiffs_of_scientists_hold_what_was_written(tmp_path, pixels, options, orientation):
    turn = [(274, "H", 1, orientation, True)] if orientation else []
    tifffile.imwrite(tmp_path / "a.tif", pixels, extratags=turn, **options)
    seen = SEEN.get(orientation, lambda x: x)(COLOR if 3 in pixels.shape else np.stack([GREY] * 3, 2))
    assert np.array_equal(read_image(tmp_path / "a.tif"), seen)
    assert image_size(tmp_path / "a.tif") == seen.shape[:2]
    assert holds_colors(tmp_path / "a.tif") == (3 in pixels.shape)
    assert (f"orientation, {orientation}," in turned(tmp_path / "a.tif")) == bool(orientation)


def test_a_range_is_that_of_the_stored_values_whichever_is_white(tmp_path):
    for name, kind in (("a.tif", np.uint8), ("b.tif", np.uint16)):
        tifffile.imwrite(tmp_path / name, np.array([[0, 40, 100]], kind), photometric="miniswhite")
        assert read_image(tmp_path / name, (0, 100))[0, :, 0].tolist() == [255, 153, 0]


@pytest.mark.parametrize("kind", [bool, np.int8, np.int16, np.int64, np.uint32, np.float16, np.float64])
def test_masks_of_every_number_are_read_as_they_were_written(tmp_path, kind):
    labels = np.array([[0, 1, 0], [1, 1, 0]]) * (1 if kind in (bool, np.uint32) else -1)
    for orientation in (1, 3, 8):
        turn = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(tmp_path / "a.tif", labels.astype(kind), extratags=turn)
        assert read_mask(tmp_path / "a.tif").tolist() == SEEN.get(orientation, lambda x: x)(labels).tolist()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("channels", [2, 5])
def test_channels_that_are_no_colours_are_not_dropped_in_silence(tmp_path, channels, kind):
    tifffile.imwrite(tmp_path / "a.tif", np.zeros((6, 8, channels), kind), **CHANNELS)
    for read in (read_image, read_mask):
        with pytest.raises(InputError, match=rf"a\.tif holds {channels} channels; expected grey or red"):
            read(tmp_path / "a.tif")


def test_a_tiff_that_broke_off_is_named(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", COLOR / 255, photometric="rgb")
    content = (tmp_path / "a.tif").read_bytes()
    for kept in (4, len(content) // 2):
        (tmp_path / "a.tif").write_bytes(content[:kept])
        with pytest.raises(InputError, match=r"cannot decode .*a\.tif"):
            read_image(tmp_path / "a.tif")


def test_bytes_with_a_sign_need_a_range(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", np.array([[-100, 0, 100]], np.int8))
    with pytest.raises(InputError, match=r"a\.tif holds int8 numbers"):
        read_image(tmp_path / "a.tif")
    assert read_image(tmp_path / "a.tif", (-100, 155))[0, :, 0].tolist() == [0, 100, 200]
