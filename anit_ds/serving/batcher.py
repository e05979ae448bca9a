"""Requests that arrive together are answered together: one batch at a time, in a thread of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
_PATIENCE = 0.005  # seconds


@dataclass
class _Waiting:
    row: Row
    answered: asyncio.Future[Row]


class Batcher:
    """`ask` waits until the batch that its row is in has been answered by `answer`, which one thread at a time calls.

    A batch is what has come by the time the one before is done, and no more than `batch_size` rows; its first row waits
    some milliseconds for company.
    """

    def __init__(self, answer: Callable[[Sequence[Row]], list[Row]], *, batch_size: int) -> None:
        self._answer, self._batch_size = answer, batch_size
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()

    async def ask(self, row: Row) -> Row:
        """The row again with its answer. Raises what `answer` raises."""
        waiting = _Waiting(row, asyncio.get_running_loop().create_future())
        await self._queue.put(waiting)
        return await waiting.answered

    async def run(self) -> None:
        """Answer for as long as the server lasts."""
        while True:
            batch = [await self._queue.get()]
            await asyncio.sleep(_PATIENCE)
            while len(batch) < self._batch_size and not self._queue.empty():
                batch.append(self._queue.get_nowait())
            if not await self._answer_all(batch):
                for waiting in batch:  # one by one: what is wrong with a row is nobody else's matter
                    await self._answer_all([waiting])

    async def _answer_all(self, batch: Sequence[_Waiting]) -> bool:
        """Whether the batch has its answers; of a single row that raises whoever waits is told."""
        try:
            rows = await asyncio.to_thread(self._answer, [waiting.row for waiting in batch])
        except Exception as error:
            if len(batch) == 1 and not batch[0].answered.cancelled():
                batch[0].answered.set_exception(error)
            return len(batch) == 1
        for waiting, row in zip(batch, rows, strict=True):
            if not waiting.answered.cancelled():
                waiting.answered.set_result(row)
        return True
