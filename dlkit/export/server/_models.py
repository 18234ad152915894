"""The models in service: new versions take over when they are proven, old ones end when their last request did."""

import asyncio
import contextlib
import gc
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dlkit.export.server._batching import Batcher
from dlkit.export.server._errors import ServeError
from dlkit.export.server._loaded import Loaded, RefusedError
from dlkit.export.server._metrics import Metrics
from dlkit.export.server._options import Options
from dlkit.export.server._probe import probe
from dlkit.export.server._scan import Found, Layout

log = logging.getLogger("dlkit.serve")
REMEMBERED = 16  # ended versions that the status still lists


@dataclass(frozen=True)
class State:
    """What the status says of a version: LOADING, AVAILABLE, UNLOADING or END, and why where something failed."""

    state: str
    code: str = "OK"
    message: str = ""


class Version:
    """A version in service: its signatures, its queue, and the number of requests that hold it."""

    def __init__(self, found: Found, loaded: Loaded, options: Options, metrics: Metrics):
        self.name, self.number, self.loaded = found.name, found.version, loaded
        self._threads = ThreadPoolExecutor(options.workers, thread_name_prefix=f"{found.name}-{found.version}")
        self.batcher = Batcher(options, self._threads, lambda *batch: metrics.batch(found.name, *batch))
        self._holders = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def held(self) -> Iterator["Version"]:
        """Keeps the version in memory for the length of a request."""
        self._holders += 1
        self._idle.clear()
        try:
            yield self
        finally:
            self._holders -= 1
            if not self._holders:
                self._idle.set()

    async def end(self) -> None:
        """Waits for the requests that hold it, then frees threads and weights."""
        await self._idle.wait()
        self._threads.shutdown(wait=False)
        self.loaded.close()


class Models:
    """All models of a folder. Everything but loading runs in the event loop."""

    def __init__(self, options: Options, metrics: Metrics):
        self._options, self._metrics = options, metrics
        self._layout = Layout(options.directory)
        self._serving: dict[str, dict[int, Version]] = {}
        self._states: dict[str, dict[int, State]] = {}
        self._refused: dict[tuple[str, int], tuple[int, int]] = {}
        self._seen: dict[tuple[str, int], tuple[int, int]] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._loading = asyncio.Lock()

    def names(self) -> list[str]:
        """The models that answer now."""
        return sorted(name for name, versions in self._serving.items() if versions)

    def known(self) -> list[str]:
        """The models that answer or were refused; one that was taken away or loads for the first time is neither."""
        refused = {name for name, states in self._states.items() if any(state.message for state in states.values())}
        return sorted({*refused, *self.names()})

    def __contains__(self, name: object) -> bool:
        return name in self._states

    def get(self, name: str, number: int | None = None) -> Version:
        """Returns the version that a request means; its newest where it names none.

        Raises:
            ServeError: NOT_FOUND.
        """
        versions = self._serving.get(name, {})
        found = versions.get(max(versions, default=0) if number is None else number)
        if found is None:
            asked = f"Latest({name})" if number is None else f"Specific({name}, {number})"
            raise ServeError("NOT_FOUND", f"Servable not found for request: {asked}")
        return found

    def states(self, name: str, number: int | None = None) -> list[tuple[int, State]]:
        """Returns the states of a model's versions, newest first.

        Raises:
            ServeError: NOT_FOUND.
        """
        states = self._states.get(name, {})
        if not states:
            raise ServeError("NOT_FOUND", f"Could not find any versions of model {name}")
        if number is not None and number not in states:
            raise ServeError("NOT_FOUND", f"Could not find version {number} of model {name}")
        return [(key, states[key]) for key in sorted(states, reverse=True) if number in (None, key)]

    async def start(self) -> None:
        """Loads what is there; versions that fail are refused.

        Raises:
            RefusedError: no model at all could be loaded; the text has the reasons.
        """
        await self.refresh(first=True)
        if not self.names():
            reasons = [
                f"{name} version {number}: {state.message}"
                for name in self.known()
                for number, state in self.states(name)
                if state.message
            ]
            raise RefusedError("; ".join(reasons) or "no version could be loaded")

    async def watch(self) -> None:
        """Looks at the folder for ever."""
        while True:
            await asyncio.sleep(self._options.poll)
            try:
                await self.refresh()
            except Exception:  # a look that fails must not be the last one
                log.exception("looking at %s failed", self._options.directory)

    async def refresh(self, first: bool = False) -> None:
        """Brings what is served in line with the folder."""
        async with self._loading:
            on_disk = await asyncio.to_thread(self._layout.scan)
            for name in sorted({*on_disk, *self._serving}):
                await self._refresh_model(name, on_disk.get(name, []), first)

    async def _refresh_model(self, name: str, versions: list[Found], first: bool) -> None:
        wanted: list[int] = []
        serving = self._serving.setdefault(name, {})
        for found in versions:
            if len(wanted) == self._options.versions:
                break
            if found.version in serving or await self._try(found, first):
                wanted.append(found.version)
        here = {found.version for found in versions}
        for key in [key for key in self._refused if key[0] == name and key[1] not in here]:
            del self._refused[key]  # a refused version is forgotten with its folder
            self._states[name].pop(key[1], None)
        # an older version leaves only for a newer one that serves, or with its folder
        for number in sorted(set(serving) - set(wanted)):
            self._retire(name, number)

    async def _try(self, found: Found, first: bool) -> bool:
        """Loads a version if it is not known as broken and its files have come to rest."""
        key = (found.name, found.version)
        if self._refused.get(key) == found.stamp:
            return False
        settled, self._seen[key] = self._seen.get(key) == found.stamp, found.stamp
        if not first and not settled:
            return False
        self._state(found, State("LOADING"))
        log.info("%s version %d: loading", *key)
        try:
            if not first:  # while others are served, a version that crashes or hangs does so elsewhere
                reason = await probe(found.path, self._options.load_timeout)
                if reason:
                    raise RefusedError(reason)
            version = await asyncio.to_thread(self._load, found)
        except RefusedError as error:
            self._refused[key] = found.stamp
            self._state(found, State("END", "FAILED_PRECONDITION", str(error)))
            self._metrics.loads(found.name, "refused")
            log.error("%s version %d: refused: %s", *key, error)
            return False
        self._refused.pop(key, None)
        self._serving[found.name][found.version] = version
        self._state(found, State("AVAILABLE"))
        self._metrics.loads(found.name, "loaded")
        self._metrics.version(found.name, found.version, True)
        log.info("%s version %d: serving", *key)
        return True

    def _load(self, found: Found) -> Version:
        loaded = Loaded(found.path)
        loaded.check()
        _settle()
        return Version(found, loaded, self._options, self._metrics)

    def _retire(self, name: str, number: int) -> None:
        version = self._serving[name].pop(number)
        self._states[name][number] = State("UNLOADING")
        task = asyncio.create_task(self._end(version))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    async def _end(self, version: Version) -> None:
        await version.end()
        states = self._states[version.name]
        if states[version.number].state == "UNLOADING":  # unless it came back meanwhile
            states[version.number] = State("END")
            self._metrics.version(version.name, version.number, False)
        for number in sorted(number for number, state in states.items() if state.state == "END")[:-REMEMBERED]:
            del states[number]
        log.info("%s version %d: ended", version.name, version.number)
        del version
        await asyncio.to_thread(_settle, True)

    def _state(self, found: Found, state: State) -> None:
        self._states.setdefault(found.name, {})[found.version] = state

    async def close(self) -> None:
        """Ends every version when its requests are done."""
        for name, versions in self._serving.items():
            for number in list(versions):
                self._retire(name, number)
        while self._ending:
            await asyncio.gather(*self._ending)


def _settle(ended: bool = False) -> None:
    """Takes what is loaded out of the garbage collector's rounds, which would go through every graph again and again.

    Graphs are full of cycles, so when a version has ended everything is looked at once more.
    """
    if ended:
        gc.unfreeze()
    gc.collect()
    gc.freeze()
