"""One training process of a real gloo group, without Ray: `rank.py RANK WORLD RENDEZVOUS FOLD OVERRIDE...`."""

from __future__ import annotations

import json
import os
import sys


def main() -> None:
    rank, world, rendezvous, fold = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), OMP_NUM_THREADS="1")
    os.environ.pop("CXX", None)
    import torch.distributed as dist

    from emollm.config import load_recipe
    from emollm.train.loop import train_fold

    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world)
    recipe = load_recipe("smoke", sys.argv[5:])
    result = train_fold(recipe, fold, "test-digest")
    if rank == 0:
        print("RESULT " + json.dumps(result), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
