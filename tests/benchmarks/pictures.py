"""Generated photographs: JPEG files of mixed size in EmoSet's layout, the same on every machine, made once.

What decides how long a JPEG takes is its number of pixels and its bytes per pixel. Cameras write about 2 to 4 bits per
pixel at quality 85 to 92; so do these: a smooth field of colours (what a perceptual hash sees, different for each), under
fractal noise (detail at every scale, as in photographs) of an amplitude that gives that many bits.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

EMOTIONS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")
SPLITS = ("train", "val", "test")
MEGAPIXELS = (0.3, 12.0)
# Raise it when the pictures change, so that no cached ones are used.
VERSION = 1


def tree(folder: Path, count: int, seed: int = 1, megapixels: tuple[float, float] = MEGAPIXELS) -> Path:
    """The root of a tree of `count` pictures below `folder`, made where it is not there yet."""
    root = folder / f"photographs-{VERSION}-{count}-{seed}-{megapixels[0]:g}-{megapixels[1]:g}"
    if (root / "complete").exists():
        return root
    shutil.rmtree(root, ignore_errors=True)
    lists: dict[str, list[list[str]]] = {split: [] for split in SPLITS}
    draw = random.Random(seed)
    names = []
    for number in range(count):
        emotion = EMOTIONS[number % len(EMOTIONS)]
        split = draw.choices(SPLITS, weights=(0.8, 0.05, 0.15))[0]
        name = f"{emotion}_{number:06d}"
        names.append(f"image/{emotion}/{name}.jpg")
        lists[split].append([emotion, name, names[-1], f"annotation/{emotion}/{name}.json"])
    for emotion in EMOTIONS:
        (root / "image" / emotion).mkdir(parents=True, exist_ok=True)
    cores = os.cpu_count() or 1
    with ProcessPoolExecutor(cores) as pool:
        make = partial(_photograph, root, seed, megapixels)
        for _ in pool.map(make, range(count), names, chunksize=8):
            pass
    for split, entries in lists.items():
        (root / f"{split}.json").write_text(json.dumps(entries))
    (root / "complete").touch()
    return root


def _photograph(root: Path, seed: int, megapixels: tuple[float, float], number: int, name: str) -> None:
    """One picture; its size is drawn evenly on a logarithmic scale, its shape between 1:1 and 3:2, either way up."""
    from PIL import Image

    draw = random.Random(f"{seed} {number}")
    pixels = 1e6 * megapixels[0] * (megapixels[1] / megapixels[0]) ** draw.random()
    shape = draw.uniform(1.0, 1.5)
    width, height = round((pixels * shape) ** 0.5), round((pixels / shape) ** 0.5)
    if draw.random() < 0.3:
        width, height = height, width
    field = Image.frombytes("RGB", (8, 8), draw.randbytes(8 * 8 * 3))
    smooth = field.resize((width, height), Image.Resampling.BICUBIC)
    detail = _detail()
    left = draw.randrange(max(1, detail.width - width))
    top = draw.randrange(max(1, detail.height - height))
    texture = detail.crop((left, top, left + width, top + height))
    path = root / name
    Image.blend(smooth, texture, 0.45).save(path, "JPEG", quality=draw.randint(85, 92))


_textures: list = []


def _detail():
    """Fractal noise of 12 Mpx and more, once per process: octaves of noise, each half as wide and 0.9 as high."""
    if not _textures:
        import numpy as np
        from PIL import Image

        width, height = 4400, 4400
        noise = np.random.default_rng(11)
        whole = np.zeros((height, width, 3), np.float32)
        amplitude, side = 60.0, 12
        while side < width:
            octave = noise.integers(0, 256, (side, side, 3), dtype=np.uint8)
            grown = Image.fromarray(octave).resize((width, height), Image.Resampling.BICUBIC)
            whole += amplitude / 128 * (np.asarray(grown, np.float32) - 128)
            amplitude, side = amplitude * 0.9, side * 2
        _textures.append(Image.fromarray((whole + 128).clip(0, 255).astype(np.uint8)))
    return _textures[0]
