"""Writes a tiny data set in MELD's layout, to walk through the guide without the real one: `python meld.py FOLDER`.

30 clips of one second: the emotion is the colour, the rest is noise. What a model learns here says nothing.
"""

from __future__ import annotations

import csv
import subprocess
import sys
from pathlib import Path

import imageio_ffmpeg

COLOURS = {
    "joy": "yellow",
    "sadness": "blue",
    "anger": "red",
    "fear": "purple",
    "surprise": "orange",
    "neutral": "gray",
}
# part of MELD: (its table, where its clips are, dialogues of six lines, season and episode)
PARTS = {
    "train": ("train_sent_emo.csv", "train_splits", 3, (4, 9)),
    "dev": ("dev_sent_emo.csv", "dev_splits_complete", 1, (5, 2)),
    "test": ("test_sent_emo.csv", "output_repeated_splits_test", 1, (1, 1)),
}
HEADER = [
    "Sr No.",
    "Utterance",
    "Speaker",
    "Emotion",
    "Sentiment",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
]


def clip(path: Path, colour: str, seed: int) -> None:
    picture = f"color=c={colour}:size=160x120:rate=10:duration=1,noise=alls=40:allf=t:all_seed={seed}"
    sound = f"sine=frequency={200 + 40 * seed}:duration=1:sample_rate=16000"
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-loglevel", "error", "-y", "-f", "lavfi", "-i", picture]
    command += ["-f", "lavfi", "-i", sound, "-pix_fmt", "yuv420p", "-shortest", str(path)]
    subprocess.run(command, check=True)


def main(root: Path) -> None:
    seed = 0
    for table, folder, dialogues, (season, episode) in PARTS.values():
        (root / folder).mkdir(parents=True)
        with (root / table).open("w", newline="") as stream:
            rows = csv.writer(stream)
            rows.writerow(HEADER)
            for dialogue in range(dialogues):
                for line, (emotion, colour) in enumerate(COLOURS.items()):
                    seed += 1
                    text = f"This is line {seed}."
                    where = (dialogue, line, season, episode, "00:00:00,000", "00:00:01,000")
                    rows.writerow((seed, text, "Ada", emotion, "neutral", *where))
                    clip(root / folder / f"dia{dialogue}_utt{line}.mp4", colour, seed)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
