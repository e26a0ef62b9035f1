"""The HTTP process's end of the link to the engine process: questions, and who waits for their answers."""

from __future__ import annotations

import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

from server import logs
from server.errors import EngineStopped
from server.link import Link
from server.messages import Answered, Called, Cancelled, Counted, Failed, Hello, Message, Returned

MOST_COUNTED = 10_000
"""Counts that are kept for the next engine process while there is none."""
AGAIN_S = 0.1


class Exchange:
    """Any thread may ask. Once the link breaks, all that waits is answered with EngineStopped, and a new one is made.

    heard: called on the reading thread with whatever answers nothing, in order.
    """

    def __init__(self, address: Path, heard: Callable[[Message], None]) -> None:
        self._address, self._heard = str(address), heard
        self._lock = threading.Lock()
        self._numbers = count()
        self._pending: dict[int, Future[Any]] = {}
        self._thread = threading.Thread(target=self._run, name="adaptermux-exchange", daemon=True)
        self._counted: deque[Counted] = deque(maxlen=MOST_COUNTED)
        self._link: Link | None = None  # once the engine process has greeted
        self._read: Link | None = None  # before that too
        self._is_up = threading.Event()
        self._is_closed = False

    @property
    def is_up(self) -> bool:
        return self._is_up.is_set()

    def start(self) -> None:
        """Wait for the engine process's hello."""
        self._thread.start()
        self._is_up.wait()

    def close(self) -> None:
        """Give up what is asked, and ask no more."""
        with self._lock:
            self._is_closed = True
            if self._read is not None:
                self._read.end()
        self._thread.join()

    def call(self, name: str, *values: object) -> Future[Any]:
        """Let the engine process do something; raises EngineStopped."""
        return self.ask(lambda number: Called(number, name, values))

    def ask(self, message: Callable[[int], Message], number: int | None = None) -> Future[Any]:
        """Send what is made with a number, and get what will be answered to it. Raises EngineStopped."""
        answer = Future[Any]()
        number = self.number() if number is None else number
        asked = message(number)
        with self._lock:
            if self._link is None:
                raise EngineStopped("the engine is being started again; ask again soon")
            self._pending[number] = answer
            self._link.send(asked)
        answer.add_done_callback(partial(self._settle, number))
        return answer

    def number(self) -> int:
        return next(self._numbers)

    def tell(self, message: Message) -> None:
        """Send what has no answer; while there is no link, only counts are kept."""
        with self._lock:
            if self._link is not None:
                self._link.send(message)
            elif isinstance(message, Counted):
                self._counted.append(message)

    def _settle(self, number: int, answer: Future[Any]) -> None:
        if self._pending.pop(number, None) is not None and answer.cancelled():
            self.tell(Cancelled(number))

    def _run(self) -> None:
        while not self._is_closed:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._address)
            except OSError:
                connection.close()
                time.sleep(AGAIN_S)
                continue
            # nothing comes before an engine process has loaded what it serves and taken the connection
            link = Link(connection)
            with self._lock:
                self._read = link
                if self._is_closed:
                    link.end()
            try:
                for messages in link.read():
                    for message in messages:
                        self._take(link, message)
            except Exception as error:
                logs.bug("exchange_crashed", error)
            finally:
                was_up = self.is_up
                self._lose(link)
            if not was_up:
                time.sleep(AGAIN_S)

    def _take(self, link: Link, message: Message) -> None:
        if isinstance(message, Answered):
            self._resolve(message.number, message.answer())
        elif isinstance(message, Returned):
            self._resolve(message.number, message.value)
        elif isinstance(message, Failed):
            self._resolve(message.number, message.error)
        else:
            self._heard(message)
            if isinstance(message, Hello):
                self._begin(link)

    def _resolve(self, number: int, outcome: object) -> None:
        answer = self._pending.pop(number, None)
        if answer is None or not answer.set_running_or_notify_cancel():
            return  # nobody waits any more
        if isinstance(outcome, Exception):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def _begin(self, link: Link) -> None:
        with self._lock:
            self._link = link
            while self._counted:
                link.send(self._counted.popleft())
        self._is_up.set()

    def _lose(self, link: Link) -> None:
        with self._lock:
            self._link = self._read = None
            self._is_up.clear()
            numbers = list(self._pending)
        for number in numbers:
            self._resolve(number, EngineStopped("the engine has ended and is being started again; ask again soon"))
        link.close()
