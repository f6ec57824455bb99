"""Load on a daemon, as registries make it."""

from __future__ import annotations

import http.client
import threading

from envelopes import digest_of, envelope, event


class Clients:
    """Registries: a new connection for every event, and nothing is sent a second time."""

    def __init__(self, port: int, count: int = 4) -> None:
        self.acknowledged: list[str] = []
        self.troubles: list[str] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post, args=(number,)) for number in range(count)]
        for thread in self._threads:
            thread.start()

    def _post(self, number: int) -> None:
        count = 0
        while not self._stop.is_set():
            count += 1
            identity = f"{number}-{count}"
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
            try:
                connection.request("POST", "/", envelope(event(digest=digest_of(identity), identity=identity)))
                response = connection.getresponse()
                body = response.read()
                if response.status == 200:
                    self.acknowledged.append(identity)
                else:
                    self.troubles.append(f"{response.status} {body!r}")
            except (OSError, http.client.HTTPException) as error:
                self.troubles.append(repr(error))
            finally:
                connection.close()

    def went_on(self, before: int, more: int) -> bool:
        """Whether so many more were acknowledged than `before`, or there is trouble."""
        return len(self.acknowledged) > before + more or bool(self.troubles)

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()
