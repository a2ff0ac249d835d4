"""Stopping at Ctrl-C or SIGTERM: one line, and the process is gone, whatever it was doing.

An exception would not do. The compiler runs in threads of its own for up to minutes, during which Python raises
nothing; and an interpreter that takes itself down while they run may crash. Nothing is lost by leaving at once: a run
folder is valid at every moment (`scall_jax.run.manifest`), and the system frees its lock.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
"""Exit codes by signal, those of a shell."""


@contextlib.contextmanager
def stop_on_signals(line: Callable[[], str], last: bool = False) -> Iterator[None]:
    """Within this context, a signal of `CODES` ends the process with a line on standard error.

    A thread waits for the signal, because the main thread may not come back from compiled code for minutes. Outside of
    the main thread, and for signals that the process ignores, nothing changes.

    Args:
      line: returns the text; called in that thread.
      last: nothing but the end of the process comes afterwards. Signals are ignored from then on, since the work is
        done, and an interpreter that takes itself down would end by them without a line.
    """
    here = threading.current_thread() is threading.main_thread()
    numbers = [x for x in CODES if here and signal.getsignal(x) is not signal.SIG_IGN]
    if not numbers:
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    threading.Thread(target=_watch, args=(reader, line), daemon=True).start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _nothing) for number in numbers}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, signal.SIG_IGN if last else handler)
        signal.set_wakeup_fd(before)
        # The thread reads what was sent before the end, so that no signal is lost.
        writer.close()


def _nothing(number: int, frame: object) -> None:
    """The thread has the signal already."""


def _watch(reader: socket.socket, line: Callable[[], str]) -> None:
    with reader:
        while received := reader.recv(1):
            if received[0] in CODES:
                _stop(received[0], line)


def _stop(number: int, line: Callable[[], str]) -> None:
    try:
        # On a terminal this overwrites the progress bars and the echo of the keys.
        start = "\r\033[J" if os.isatty(2) else ""
        # The main thread goes on for the moment; what it prints must not follow the line.
        out, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        try:
            text = line()
        except Exception:
            text = "stopped"
        # The lock of `sys.stderr` may be held by the main thread, so that nothing but the system writes here.
        os.write(out, f"{start}{text}\n".encode())
    finally:
        os._exit(CODES[signal.Signals(number)])
