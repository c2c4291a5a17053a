"""A data-juicer operator, as one writes it where data-juicer has none: scale down, encode, hash, ask.

data-juicer has no operator that resizes pictures or keeps their bytes. This one is written like its own
`image_blur_mapper`: the pictures are loaded by `load_data_with_context`, which shares them between operators.
"""

import hashlib
import io

import imagehash
from data_juicer.ops.base_op import OPERATORS, Mapper
from data_juicer.ops.op_fusion import LOADED_IMAGES
from data_juicer.utils.mm_utils import load_data_with_context, load_image
from PIL import Image

OP_NAME = "resize_and_hash_mapper"


@OPERATORS.register_module(OP_NAME)
@LOADED_IMAGES.register_module(OP_NAME)
class ResizeAndHashMapper(Mapper):
    """The longer side brought down to `max_side_px`, JPEG, sha256 of the file, perceptual hash, an instruction."""

    def __init__(self, max_side_px=448, quality=92, options=(), *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.max_side_px, self.quality, self.asked_options = max_side_px, quality, list(options)

    def process_single(self, sample, context=False):
        path = sample[self.image_key][0]
        sample, images = load_data_with_context(sample, context, [path], load_image)
        picture = images[path].copy()
        if max(picture.size) > self.max_side_px:
            picture.thumbnail((self.max_side_px, self.max_side_px), Image.Resampling.LANCZOS)
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=self.quality, subsampling=0)
        with open(path, "rb") as stream:
            sample["sha256"] = hashlib.sha256(stream.read()).hexdigest()
        sample["data"] = buffer.getvalue()
        sample["phash"] = str(imagehash.phash(picture))
        sample["width"], sample["height"] = picture.size
        sample["messages"] = [
            {"role": "user", "content": f"<image>\nWhich emotion? {', '.join(self.asked_options)}."}
        ]
        sample["options"] = self.asked_options
        return sample
