"""Rank 0's watchdog with a thousand ranks on loopback, for the tests: prints what it costs, as JSON.

python thousand_peers.py PEERS SECONDS
"""

from __future__ import annotations

import json
import resource
import socket
import sys
import threading
import time

import torch.distributed as dist

from anit_ds.ranks.environment import Ranks
from anit_ds.ranks.watchdog import Watchdog
from anit_ds.ranks.wire import Link, meet


def main() -> None:
    peers, seconds = int(sys.argv[1]), float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    store, links = dist.HashStore(), list[Link]()
    world = peers + 1

    def come() -> None:
        for rank in range(peers, 0, -1):
            link = meet(store, rank=rank, world_size=world, timeout=60.0)
            assert isinstance(link, Link)
            links.append(link)

    coming = threading.Thread(target=come)
    started = time.monotonic()
    coming.start()
    watchdog = Watchdog(Ranks(0, 0, world), store, timeout_seconds=30.0)
    here = time.monotonic() - started
    cpu = time.process_time()
    for step in range(1, int(seconds) + 1):
        for link in links:
            link.send({"status": {"rank": link.rank, "step": step, "progress": step}})
        watchdog.beat(step)
        time.sleep(1.0)
    cpu = time.process_time() - cpu
    heard = sum(len(link.receive()) > 0 for link in links)
    for link in links:
        link.send({"status": {"rank": link.rank, "last_words": "done"}})
        link.socket.shutdown(socket.SHUT_WR)
    watchdog.stop()
    print(json.dumps({"peers": len(links), "heard": heard, "seconds": round(here, 2), "cpu": round(cpu / seconds, 3)}))


if __name__ == "__main__":
    main()
