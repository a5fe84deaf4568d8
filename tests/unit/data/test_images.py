"""Whatever an image file can be becomes upright RGB, or one error with the reason."""

import numpy as np
import pytest
from PIL import Image

from realad_verl.data.images import load_image
from realad_verl.errors import UserError

GREY16 = np.array([[0, 1000, 4000]], dtype=np.uint16)


def saved(tmp_path, image, name="x.png", **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_modes_of_png(tmp_path, mode):
    image = load_image(saved(tmp_path, Image.new("RGB", (5, 3), "white").convert(mode)))
    assert image.mode == "RGB" and image.size == (5, 3)
    assert np.asarray(image).min() == 255


def test_alpha_is_dropped(tmp_path):
    assert load_image(saved(tmp_path, Image.new("RGBA", (1, 1), (10, 20, 30, 0)))).getpixel((0, 0)) == (10, 20, 30)


def test_cmyk_jpeg(tmp_path):
    image = load_image(saved(tmp_path, Image.new("CMYK", (8, 8)), "x.jpg", quality=100))
    assert image.mode == "RGB" and np.asarray(image).min() > 250


@pytest.mark.parametrize(
    "values, expected",
    [
        (GREY16, [0, 62, 249]),  # at most 4000: 12 bits, so 1000 / 4095 * 255 = 62.3 and 4000 / 4095 * 255 = 249.1
        (np.array([[0, 128, 255]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 32768, 65535]], dtype=np.uint16), [0, 128, 255]),
        (np.array([[0, 0, 0]], dtype=np.uint16), [0, 0, 0]),
    ],
)
@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_16_bit_grey_is_scaled_by_its_depth(tmp_path, values, expected, name):
    image = load_image(saved(tmp_path, Image.fromarray(values), name))
    assert image.mode == "RGB"
    assert np.asarray(image)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("values, expected", [([0.0, 0.5, 1.0], [0, 128, 255]), ([-1.0, 0.0, 1.0], [0, 128, 255])])
def test_floating_point_grey(tmp_path, values, expected):
    path = saved(tmp_path, Image.fromarray(np.array([values], dtype=np.float32)), "x.tif")
    assert np.asarray(load_image(path))[0, :, 0].tolist() == expected


def test_floating_point_that_is_not_finite(tmp_path):
    path = saved(tmp_path, Image.fromarray(np.array([[np.nan, 1]], dtype=np.float32)), "x.tif")
    with pytest.raises(UserError, match="not finite"):
        load_image(path)


def test_exif_rotation(tmp_path):
    image = Image.new("RGB", (4, 2), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise: top left becomes top right
    upright = load_image(saved(tmp_path, image, exif=exif))
    assert upright.size == (2, 4) and upright.getpixel((1, 0)) == (255, 255, 255)


def test_first_frame_of_an_animation(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    path = saved(tmp_path, frames[0], "x.gif", save_all=True, append_images=frames[1:])
    assert load_image(path).getpixel((0, 0)) == (255, 0, 0)


def test_one_by_n(tmp_path):
    assert load_image(saved(tmp_path, Image.new("RGB", (1, 5000)))).size == (1, 5000)


def test_too_many_pixels(tmp_path):
    path = saved(tmp_path, Image.new("L", (100, 50)))
    assert load_image(path, max_pixels=5000).size == (100, 50)
    with pytest.raises(UserError, match=r"100 x 50 pixels, more than max_pixels = 4999"):
        load_image(path, max_pixels=4999)


def test_decompression_bomb(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("L", (100, 50)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow refuses more than twice as many
    with pytest.raises(UserError, match="x.png: .*decompression bomb"):
        load_image(path)


@pytest.mark.parametrize("name", ["x.png", "x.jpg", "x.bmp", "x.gif", "x.tif", "x.webp"])
def test_truncated_file(tmp_path, name):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    path = saved(tmp_path, noise, name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(UserError, match=f"cannot read .*{name}: ."):
        load_image(path)


def test_what_is_no_image(tmp_path):
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("no pixels")
    with pytest.raises(UserError, match="empty.png: the file is empty"):
        load_image(tmp_path / "empty.png")
    with pytest.raises(UserError, match="not an image of a known format"):
        load_image(tmp_path / "text.png")
    with pytest.raises(UserError, match="no such file"):
        load_image(tmp_path / "absent.png")
    with pytest.raises(UserError, match="cannot read"):
        load_image(tmp_path)
