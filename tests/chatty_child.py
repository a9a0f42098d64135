"""``python -m tests.chatty_child SETTINGS``: a child that comes up, says much, and waits."""

import os
import signal
import sys
import threading
from pathlib import Path

import msgspec


class ChattySettings(msgspec.Struct, frozen=True):
    pids: str
    """A file that gets a line with the process id, and one that says how it ended."""


def main() -> None:
    settings = msgspec.json.decode(sys.argv[1], type=ChattySettings)
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    with Path(settings.pids).open("a") as file:
        file.write(f"{os.getpid()}\n")
        print("started", flush=True)
        print("and more\n" * 100_000, flush=True)
        file.write("said\n")
        file.flush()
        stopping.wait()
        file.write("stopped\n")


if __name__ == "__main__":
    main()
