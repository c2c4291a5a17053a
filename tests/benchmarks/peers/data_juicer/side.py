"""The data-juicer side of build-images; runs in data-juicer's own environment and prints the report of its run.

    .local/bench/peers/data_juicer/bin/python side.py --rows ROWS.jsonl --out OUT --cores 2

ROWS holds {"text", "images": [path], "label", "uid", "split"} a line. The clock runs from the executor's start to its
exported Parquet file; reading the configuration and importing operators come before.
"""

import argparse
import hashlib
import importlib.metadata
import json
import shutil
import sys
import time
from pathlib import Path

OPTIONS = ("amusement", "anger", "awe", "contentment", "disgust", "excitement", "fear", "sadness")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cores", type=int, required=True)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    export = options.out / "all.parquet"
    recipe = options.out / "recipe.yaml"
    settings = {
        "project_name": "build-images",
        "dataset_path": str(options.rows),
        "export_path": str(export),
        "export_type": "parquet",
        "np": options.cores,
        "use_cache": False,
        "open_tracer": False,
        "open_monitor": False,
        "custom_operator_paths": [str(Path(__file__).with_name("resize_and_hash_mapper.py"))],
        "process": [
            {"image_shape_filter": {"min_width": 16, "min_height": 16}},
            {"resize_and_hash_mapper": {"options": list(OPTIONS)}},
        ],
    }
    recipe.write_text(json.dumps(settings))  # JSON is YAML
    report, sys.stdout = sys.stdout, sys.stderr
    from data_juicer.config import init_configs
    from data_juicer.core.executor.default_executor import DefaultExecutor

    executor = DefaultExecutor(init_configs(["--config", str(recipe)]))
    began = time.perf_counter()
    executor.run()
    seconds = time.perf_counter() - began

    import pyarrow.parquet as pq

    table = pq.read_table(export, columns=["sha256", "width", "height"])
    listed = sorted(zip(*(table[name].to_pylist() for name in ("sha256", "width", "height"))))
    together = hashlib.sha256("\n".join(row[0] for row in listed).encode()).hexdigest()
    widths, heights = sum(row[1] for row in listed), sum(row[2] for row in listed)
    versions = {name: importlib.metadata.version(name) for name in ("py-data-juicer", "datasets", "pillow")}
    work = {"rows": len(listed), "sources": together[:16], "width_px": widths, "height_px": heights}
    print(
        json.dumps({"seconds": seconds, "units": len(listed), "work": work, "notes": {"versions": versions}}),
        file=report,
    )


if __name__ == "__main__":
    main()
