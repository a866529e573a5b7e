"""For processes whose clock is off: their `time.sleep` sleeps.

Python asks for a moment of the monotonic clock, which libfaketime, told to leave that one alone,
takes for one of its own: it refuses, and whoever sleeps between two looks looks without a pause.
"""

import select
import time


def sleep(seconds: float) -> None:
    select.select([], [], [], seconds)


time.sleep = sleep
