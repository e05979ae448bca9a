"""Two hosts as network namespaces: a virtual cable between them, an address each, and no other network."""

from __future__ import annotations

import os
import subprocess

import pytest

ADDRESSES = ("10.77.0.1", "10.77.0.2")


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Namespaces:
    """`inside(i)` is what to put before a command so that it runs on host i."""

    def __init__(self) -> None:
        self.names = [f"anit{os.getpid()}h{i}" for i in range(2)]

    def inside(self, host: int) -> list[str]:
        return ["ip", "netns", "exec", self.names[host]]

    def __enter__(self) -> Namespaces:
        try:
            for name in self.names:
                _ip("netns", "add", name)
            one, two = self.names
            _ip("-n", one, "link", "add", "eth0", "type", "veth", "peer", "name", "eth0", "netns", two)
            for name, address in zip(self.names, ADDRESSES, strict=True):
                _ip("-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
                _ip("-n", name, "link", "set", "eth0", "up")
                _ip("-n", name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError as error:
            self.__exit__()
            pytest.skip(f"network namespaces cannot be made here: {error.stderr.strip()}")
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
