"""Requests that arrive together run once.

A batch leaves when it is full, when its oldest request has waited `batch_timeout`, or when as many requests wait as
lately were under way together, so that a lone client never waits. Only requests of one signature and one shape share
a batch; nothing is padded. When a batch fails, its halves run again until the request that is to blame stands alone:
the others get their answers.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlkit.export.server._errors import ServeError, invalid
from dlkit.export.server._loaded import Arrays, Signature
from dlkit.export.server._options import Options


@dataclass(slots=True, eq=False)
class _Item:
    signature: Signature
    inputs: Arrays
    rows: int
    cost: int
    future: "asyncio.Future[Arrays]"
    since: float = field(default_factory=time.monotonic)


class Batcher:
    """The queue in front of one version.

    Args:
        options: sizes and times.
        executor: `options.workers` threads.
        observe: told the rows, requests and seconds of each batch.
    """

    def __init__(self, options: Options, executor: Executor, observe: Callable[[int, int, float], None]):
        self._options, self._executor, self._observe = options, executor, observe
        self._groups: dict[Any, deque[_Item]] = {}
        self._free = options.workers
        self._timer: asyncio.TimerHandle | None = None
        self._running = 0
        self._together = 1
        self.waiting = 0

    async def submit(self, signature: Signature, inputs: Arrays, costs: Sequence[int] | None = None) -> Arrays:
        """Returns the outputs for all rows of `inputs`; `costs` are the pixels of each row.

        Raises:
            ServeError: the queue is full, or the signature failed on these inputs.
        """
        if not signature.batched:
            return await self._one(_Item(signature, inputs, 1, sum(costs or ()), _future()), object())
        rows = {len(value) for value in inputs.values()}
        if len(rows) != 1:
            raise invalid(f"the inputs have different numbers of rows: {sorted(rows)}; expected one number for all")
        count = rows.pop()
        if count > self._options.max_queue:
            raise invalid(f"{count} rows in one request; this server takes at most {self._options.max_queue}")
        key = (signature.name, *((name, value.dtype.str, value.shape[1:]) for name, value in sorted(inputs.items())))
        cuts = self._cuts(count, costs)
        if len(cuts) == 1:
            return await self._one(_Item(signature, inputs, count, sum(costs or ()), _future()), key)
        items = [
            _Item(signature, {n: v[a:b] for n, v in inputs.items()}, b - a, sum(costs[a:b]) if costs else 0, _future())
            for a, b in cuts
        ]
        return await self._several(items, key)

    def _cuts(self, count: int, costs: Sequence[int] | None) -> list[tuple[int, int]]:
        """Where a large request is split: no part has more than `max_batch` rows or `max_pixels` pixels."""
        cuts, start, spent = [], 0, 0
        for row in range(count):
            cost = costs[row] if costs else 0
            if row > start and (row - start >= self._options.max_batch or spent + cost > self._options.max_pixels):
                cuts.append((start, row))
                start, spent = row, 0
            spent += cost
        return [*cuts, (start, count)]

    async def _one(self, item: _Item, key: Any) -> Arrays:
        self._admit([item], key)
        return await item.future

    async def _several(self, items: list[_Item], key: Any) -> Arrays:
        self._admit(items, key)
        try:
            parts = await asyncio.gather(*(item.future for item in items))
        finally:
            for item in items:
                item.future.cancel()
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def _admit(self, items: list[_Item], key: Any) -> None:
        if self.waiting + sum(item.rows for item in items) > self._options.max_queue:
            raise ServeError("UNAVAILABLE", f"the queue is full ({self.waiting} rows wait); try again in a moment")
        group = self._groups.setdefault(key, deque())
        group.extend(items)
        self.waiting += sum(item.rows for item in items)
        self._dispatch()

    def _dispatch(self) -> None:
        """Starts every batch that may leave now, and sets the clock for the next one."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._free and self._groups:
            key = min(self._groups, key=lambda k: self._groups[k][0].since)
            ripe = next((k for k in self._groups if self._ripe(k)), None)
            if ripe is None:
                wait = self._groups[key][0].since + self._options.batch_timeout - time.monotonic()
                self._timer = asyncio.get_running_loop().call_later(max(wait, 0.0), self._dispatch)
                return
            batch = self._take(key if self._ripe(key) else ripe)
            if batch:
                self._start(batch)

    def _ripe(self, key: Any) -> bool:
        group = self._groups[key]
        count = sum(len(group) for group in self._groups.values())
        together = min(self._together, self._options.max_batch)
        return (
            time.monotonic() - group[0].since >= self._options.batch_timeout
            or count >= together
            or sum(item.rows for item in group) >= self._options.max_batch
        )

    def _take(self, key: Any) -> list[_Item]:
        """Removes a batch from its group; requests that nobody waits for any more are left out."""
        batch: list[_Item] = []
        group, rows, cost = self._groups[key], 0, 0
        while group:
            item = group[0]
            if not item.future.done():
                over = rows + item.rows > self._options.max_batch or cost + item.cost > self._options.max_pixels
                if batch and over:
                    break
                batch.append(item)
                rows, cost = rows + item.rows, cost + item.cost
            group.popleft()
            self.waiting -= item.rows
        if not group:
            del self._groups[key]
        return batch

    def _start(self, batch: list[_Item]) -> None:
        self._free -= 1
        self._running += len(batch)
        waiting = sum(len(group) for group in self._groups.values())
        self._together = max(self._running + waiting, self._together - 1)
        started = time.monotonic()
        loop = asyncio.get_running_loop()
        running = loop.run_in_executor(self._executor, _run, batch)

        def finished(done: "asyncio.Future[list[Any]]") -> None:
            self._free += 1
            self._running -= len(batch)
            self._observe(sum(item.rows for item in batch), len(batch), time.monotonic() - started)
            failure = None if done.cancelled() else done.exception()
            results = [failure or ServeError("UNAVAILABLE", "the server is ending")] * len(batch)
            for item, result in zip(batch, results if done.cancelled() or failure else done.result(), strict=True):
                if item.future.done():
                    continue
                if isinstance(result, BaseException):
                    item.future.set_exception(result)
                else:
                    item.future.set_result(result)
            self._dispatch()

        running.add_done_callback(finished)


def _future() -> "asyncio.Future[Arrays]":
    return asyncio.get_running_loop().create_future()


def _run(batch: list[_Item]) -> list[Any]:
    """Runs in a worker's thread; returns outputs or an error for each item."""
    signature = batch[0].signature
    try:
        if len(batch) == 1:
            return [signature.run(batch[0].inputs)]
        names = batch[0].inputs
        found = signature.run({name: np.concatenate([item.inputs[name] for item in batch]) for name in names})
    except ServeError as error:
        if len(batch) == 1:
            return [error]
        half = len(batch) // 2
        return _run(batch[:half]) + _run(batch[half:])
    results, start = [], 0
    for item in batch:
        results.append({name: value[start : start + item.rows] for name, value in found.items()})
        start += item.rows
    return results
