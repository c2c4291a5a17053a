"""A command that is run by hand starts a Ray of its own: nothing of it may be reached from the network."""

from __future__ import annotations

import json
import os
import subprocess
import sys

SCRIPT = """
import ipaddress, json, time
import psutil
from dataset_build.ray_local import connect

def on_loopback(ip):
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback

connect(num_cpus=1)
import ray
try:
    ray.get(ray.remote(lambda: 1).remote())  # so that a worker is there too
    inside, outside = set(), set()
    until = time.monotonic() + 5
    while time.monotonic() < until:  # agents come up, and open their ports, after the head
        me = psutil.Process()
        for process in [me, *me.children(recursive=True)]:
            try:
                found = [c.laddr for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN]
                name = process.name()
            except psutil.Error:
                continue
            for address in found:
                (inside if on_loopback(address.ip) else outside).add((address.ip, address.port, name))
        time.sleep(0.5)
finally:
    ray.shutdown()
print(json.dumps({"inside": sorted(inside), "outside": sorted(outside)}))
"""


def test_a_local_ray_listens_on_loopback_only() -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=180, env=environment
    )
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout.strip().splitlines()[-1])
    assert found["inside"], "no listening socket was found: the test would hold over nothing"
    assert found["outside"] == []
