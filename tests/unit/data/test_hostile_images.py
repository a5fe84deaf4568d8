"""Images made to hurt: refused before their pixels are unpacked, and named."""

import struct
import zlib
from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from realad_verl.data.decode import Decoded, Unusable, decode
from realad_verl.data.images import load_image
from realad_verl.errors import UserError


def black_png(path: Path, side: int) -> Path:
    """A 1-bit PNG of ``side`` x ``side`` pixels (a multiple of 8), a few dozen KB, whole and valid."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))
    return path


def peak_megabytes() -> float:
    """Peak memory of this process since it was last reset."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def test_20000_x_20000_is_refused_unopened(tmp_path):
    """400 million pixels: 1.2 GB as RGB. Nothing of it is unpacked."""
    path = black_png(tmp_path / "huge.png", 20_000)
    reset_peak()
    before = peak_megabytes()
    found = decode(path, 168)
    assert isinstance(found, Unusable) and found.kind == "unreadable" and "decompression bomb" in found.detail
    assert peak_megabytes() - before < 50


def test_the_largest_that_is_taken(tmp_path):
    """What the test above would see of an image that is unpacked: 100 million pixels are below the limit."""
    path = black_png(tmp_path / "large.png", 10_000)
    reset_peak()
    before = peak_megabytes()
    assert isinstance(decode(path, 168), Decoded)
    assert peak_megabytes() - before > 50


def test_text_bomb(tmp_path):
    """A comment that unpacks to 100 MB."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "x" * 100_000_000, zip=True)
    path = tmp_path / "text.png"
    Image.new("RGB", (4, 4)).save(path, pnginfo=info)
    assert path.stat().st_size < 200_000
    with pytest.raises(UserError, match="text.png: Decompressed data too large"):
        load_image(path)


def test_1_x_1_becomes_a_training_image(tmp_path):
    path = tmp_path / "one.png"
    Image.new("RGB", (1, 1), (200, 10, 10)).save(path)
    found = decode(path, 168)
    assert isinstance(found, Decoded)
    (tmp_path / "row.png").write_bytes(found.png)
    row = load_image(tmp_path / "row.png")
    assert row.size == (168, 168) and row.getextrema() == ((200, 200), (10, 10), (10, 10))
