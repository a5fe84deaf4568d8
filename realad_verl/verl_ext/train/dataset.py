"""verl's dataset, in which a row that cannot be used costs that row and not the run.

`realad prepare` writes no such row; a parquet file from elsewhere may hold one, and verl's own dataset then ends the
run when it comes to it, perhaps days later.
"""

# verl's dataset is untyped for pyright; the tests run it for real.
# pyright: reportAttributeAccessIssue=false, reportIndexIssue=false

import logging

from PIL import Image
from verl.utils.dataset.rl_dataset import RLHFDataset

from realad_verl.backbones.inputs import stretched
from realad_verl.data.depth import Depth
from realad_verl.data.images import load_image
from realad_verl.data.rows import image_source
from realad_verl.errors import UserError
from realad_verl.verl_ext.names import REPLACED

# More than 8 bits are scaled by their whole range: a depth for each image would give the label away (`realad check`).
ANY_DEPTH = Depth(0.0, 65535.0, "the whole range of 16 bits")

logger = logging.getLogger(__name__)

# What verl's dataset raises for a row of wrong content.
BAD_ROW = (UserError, OSError, ValueError, TypeError, KeyError, AssertionError, Image.DecompressionBombError)


# Keys by which a row asks qwen_vl_utils for a size.
SIZE_KEYS = {"min_pixels", "max_pixels", "resized_height", "resized_width"}


class TolerantDataset(RLHFDataset):
    """Rows as verl reads them, images decoded as `realad prepare` decodes them.

    A row without an image, or whose image cannot be decoded, or whose prompt and images do not fit, is replaced by the
    next one that can be used, and says so under ``REPLACED``. (verl 0.9.1 has no forward for a micro-batch without any
    image: AttributeError ``mean``.) UserError when no row can be used.
    """

    @classmethod
    def _process_multi_modal_info(cls, messages, image_patch_size, config):
        """(images, videos, audios) of a prompt, images as they are: each family's processor resizes by its own rules.

        verl resizes them first, to multiples of Qwen's patches, and fails where a patch has two sides (Pixtral). Rows
        that ask for a size, or hold more than still images, keep verl's way.
        """
        contents = (message["content"] for message in messages if isinstance(message["content"], list))
        parts = [part for content in contents for part in content if part.get("type") != "text"]
        if not all(isinstance(part.get("image"), Image.Image) and not SIZE_KEYS & part.keys() for part in parts):
            return super()._process_multi_modal_info(messages, image_patch_size, config)
        return [stretched(part["image"].convert("RGB")) for part in parts] or None, None, None

    def __getitem__(self, item):
        reason = None
        for step in range(len(self)):
            index = (int(item) + step) % len(self)
            try:
                row = super().__getitem__(index)
                if not _decode_images(row["raw_prompt"]):
                    raise UserError("the prompt has no image")
            except BAD_ROW as error:
                reason = reason or f"row {index}: {type(error).__name__}: {error}"
                logger.warning("row %d of the data cannot be used: %s", index, error)
                continue
            if reason is not None:
                row["extra_info"] = {**row["extra_info"], REPLACED: reason}
            return row
        raise UserError(f"no row of {', '.join(self.data_files)} can be used; the first: {reason}")


def _decode_images(messages) -> int:
    """Decode now what verl opened lazily: a damaged file shows only when its pixels are read. Returns how many."""
    contents = (message["content"] for message in messages if isinstance(message["content"], list))
    images = [part for content in contents for part in content if part.get("type") == "image"]
    for part in images:
        source = image_source(part)
        if source is not None:
            part["image"] = load_image(source, ANY_DEPTH)
    return len(images)
