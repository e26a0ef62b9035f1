"""A stream of messages between two processes of ours, over a local socket."""

from __future__ import annotations

import pickle
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue

from server import logs
from server.messages import Message

LENGTH = struct.Struct("<I")
BUFFER_BYTES = 1 << 16


class Link:
    """One end. Messages arrive in the order in which they were sent; a frame holds all that was sent while the one
    before it was written, so that the texts of a moment travel together.

    Frames are pickles: whoever may write to the socket may do whatever this process may, so it lies where only the
    own user comes. Any thread sends, and is never held up by that; one thread reads.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._outbox: SimpleQueue[Message | None] = SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="adaptermux-link", daemon=True)
        self._writer.start()

    def send(self, message: Message) -> None:
        self._outbox.put(message)

    def read(self) -> Iterator[list[Message]]:
        """What comes, frame by frame, until the link ends."""
        with suppress(OSError), self._connection.makefile("rb", BUFFER_BYTES) as stream:
            while len(head := stream.read(LENGTH.size)) == LENGTH.size:
                [num_bytes] = LENGTH.unpack(head)
                frame = stream.read(num_bytes)
                if len(frame) < num_bytes:
                    return
                yield pickle.loads(frame)

    def end(self) -> None:
        """End it for both sides, from any thread; what was sent last may be lost."""
        with suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Let go of it; for the thread that has read."""
        self._outbox.put(None)
        self.end()
        self._writer.join()
        self._connection.close()

    def _write(self) -> None:
        try:
            while (messages := self._waiting()) is not None:
                frame = pickle.dumps(messages, pickle.HIGHEST_PROTOCOL)
                self._connection.sendall(LENGTH.pack(len(frame)) + frame)
        except OSError:
            pass  # the other side is gone
        except Exception as error:  # what cannot be pickled
            logs.bug("link_crashed", error)
        finally:
            self.end()  # who reads must notice too

    def _waiting(self) -> list[Message] | None:
        """All that is to be sent, at least one; None once the link is closed."""
        messages: list[Message] = []
        message = self._outbox.get()
        with suppress(Empty):
            while message is not None:
                messages.append(message)
                message = self._outbox.get_nowait()
        return messages if message is not None else None
