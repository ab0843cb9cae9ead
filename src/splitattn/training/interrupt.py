"""Catches Ctrl-C and SIGTERM, so that a training can save first."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from splitattn import distributed

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopRequest:
    """Records whether, and by which signal, this process was told to stop."""

    def __init__(self) -> None:
        self.signal: int | None = None

    def __bool__(self) -> bool:
        return self.signal is not None

    def obey(self) -> None:
        """End the process as the signal would have.

        Raises:
            KeyboardInterrupt: it was Ctrl-C.
            SystemExit: it was SIGTERM, or another process was told to stop; with the exit status
                that a shell would report.
        """
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        raise SystemExit(128 + (self.signal or signal.SIGTERM))


@contextmanager
def stop_request() -> Iterator[StopRequest]:
    """Catch Ctrl-C and SIGTERM within the context; a second one takes effect at once.

    Outside the main thread, where Python cannot handle signals, nothing is caught.

    Raises:
        KeyboardInterrupt, SystemExit: a signal came and another process has ended; nothing is
            saved. `torchrun` sends SIGTERM to all when one has failed, and that one reports the
            error.
    """
    request = StopRequest()

    def note(number: int, _: FrameType | None) -> None:
        request.signal = number
        signal.signal(number, before[number])

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {int(number): signal.getsignal(number) for number in _SIGNALS}
    for number in _SIGNALS:
        signal.signal(number, note)
    try:
        yield request
    except RuntimeError as error:
        if request and distributed.is_of_peer(error):
            request.obey()
        raise
    finally:
        for caught, handler in before.items():
            signal.signal(caught, handler)
