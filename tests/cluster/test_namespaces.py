"""Two nodes without ssh: launch/node.sh on each of two network namespaces gives the one-process result."""

from __future__ import annotations

from collections.abc import Callable

from namespaces import ADDRESSES, Namespaces
from runs import LAUNCH, STEPS, Launches, TinyRun


def test_two_network_namespaces_give_the_one_process_result(
    namespaces: Namespaces,
    launches: Launches,
    tiny_run: Callable[..., TinyRun],
    one_process: Callable[..., TinyRun],
) -> None:
    run = tiny_run()
    nodes = [
        launches.start(
            *namespaces.inside(host), LAUNCH / "node.sh",
            "--first", host, "--ranks", 1, "--world", 2, "--master", f"{ADDRESSES[0]}:29400",
            "--logs", run.out / "launch", "anit", "train", run.config,
            GLOO_SOCKET_IFNAME="eth0",
        )
        for host in range(2)
    ]  # fmt: skip
    outputs = [node.communicate(timeout=120)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], "\n".join(outputs)
    assert run.steps() == list(range(1, STEPS + 1))
    difference = run.difference(one_process())
    print(f"two network namespaces: largest difference of the adapters {difference:.2e}")
    assert difference <= 1e-5
    assert launches.left_over() == {}
