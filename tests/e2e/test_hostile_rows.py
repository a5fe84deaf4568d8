"""A parquet file from elsewhere, in which most rows are wrong: the run goes on, and what was wrong is counted."""

import io
import struct
import time
import zlib

import jobs
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from realad_verl.data.prompts import prompt_text
from realad_verl.data.rows import SCHEMA

pytestmark = [pytest.mark.e2e, pytest.mark.slow, pytest.mark.timeout(1800)]

N = 4
SETTINGS = (
    "data.train_batch_size=8",
    f"actor_rollout_ref.rollout.n={N}",
    "realad.log.every=1",
    "trainer.total_training_steps=4",
    "realad.watchdog.phase_s=300",
)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def huge_png(side: int) -> bytes:
    """A black 1-bit PNG of ``side`` x ``side`` pixels, a few KB, made row by row."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + side // 8)) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def hostile(good: dict) -> dict[str, dict]:
    """Rows made from a good one, each wrong in one way."""
    png = good["images"][0]["bytes"]
    image = Image.open(io.BytesIO(png)).convert("RGB")
    frames = [image, image.rotate(90)]

    def with_image(*images: bytes) -> dict:
        return good | {"images": [{"bytes": i} for i in images]}

    def asking(text: str, row: dict = good) -> dict:
        return row | {"prompt": [{"role": "user", "content": text}]}

    question = f"<image>{prompt_text()}"
    return {
        # Replaced by the next row that can be used.
        "truncated": with_image(png[: len(png) // 2]),
        "no image file": with_image(b"no pixels"),
        "20000 x 20000": with_image(huge_png(20_000)),
        "fewer images than places": asking("<image>" + question),
        "no image": asking(prompt_text(), with_image()),
        "image missing": with_image(),
        "good": good,
        # Dropped, as are the next one and the one with two images: too long.
        "long prompt": asking(question + " again" * 600),
        # Trained on, perhaps without evidence.
        "over the limit, fits": asking(question + " again" * 40),
        "1 x 1": with_image(encoded(Image.new("RGB", (1, 1)), "PNG")),
        "CMYK": with_image(encoded(image.convert("CMYK"), "JPEG")),
        "animated": with_image(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])),
        "no words": asking("<image>Is it all right?"),
        "two images": asking("<image>" + question, with_image(png, png)),
        "label": good | {"reward_model": {"style": "rule", "ground_truth": "maybe"}},
    }


SECRET = "sk-3f9c0d7e5a"


def test_the_run_goes_on_and_counts(tmp_path, prepared):
    """Two passes over 16 rows, most of them wrong. The same job shows where it listens and where a secret goes."""
    (good,) = pq.read_table(prepared / "train.parquet").slice(0, 1).to_pylist()
    rows = [good, *hostile(good).values()]  # the first is checked before the start
    assert len(rows) == 16
    data = tmp_path / "data"
    data.mkdir()
    for name in ("train", "val"):
        pq.write_table(pa.Table.from_pylist(rows, SCHEMA), data / f"{name}.parquet")
    folder = tmp_path / "run"
    job = jobs.start(folder, data, *SETTINGS, env={"WANDB_API_KEY": SECRET, "MY_PASSWORD": SECRET})
    listening = set()
    while job.poll() is None and not (folder / "metrics.jsonl").exists():
        listening = listening_addresses(folder) or listening
        time.sleep(2)
    run = jobs.finish(job, folder, 900)
    assert run.returncode == 0, run.stderr[-3000:]
    assert not run.left_over
    steps = run.steps()
    assert sorted(steps) == [1, 2, 3, 4]

    def counted(name: str, *which: int) -> float:
        return sum(steps[step].get(name, 0) for step in which)

    for epoch in ((1, 2), (3, 4)):
        assert counted("rollout/replaced", *epoch) == 6 * N
        assert counted("rollout/dropped", *epoch) == 3 * N
        assert counted("rollout/cut", *epoch) == 0
        assert counted("evidence/unlabelled", *epoch) == N

    assert listening == {"127.0.0.1"}
    written = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 2**20]
    assert SECRET not in run.stderr and len(written) > 10
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]


def listening_addresses(folder) -> set[str]:
    """Where the processes of a job accept connections."""
    found = set()
    for process in jobs.descendants(str(folder)):
        try:
            found |= {c.laddr.ip for c in process.net_connections("inet") if c.status == "LISTEN"}
        except psutil.NoSuchProcess:
            continue
    return {ip.removeprefix("::ffff:") for ip in found}
