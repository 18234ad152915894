"""How long the processor works on a call, whatever else happens in its process."""

import time
from collections.abc import Callable


def quickest(call: Callable[[], object], limit: float = 1.0, tries: int = 3) -> float:
    """Returns the fewest seconds of processor time that a call took; repeats it while it takes `limit` and more.

    The first call may pay for what is none of its own: a garbage collection over all that the tests before it left,
    threads that are still ending, a first import.
    """
    taken = []
    for _ in range(tries):
        started = time.process_time()
        call()
        taken.append(time.process_time() - started)
        if taken[-1] < limit:
            break
    return min(taken)
