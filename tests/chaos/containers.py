"""What the Docker engine itself tells of this run's containers, while they come and go."""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from dataclasses import dataclass, field

from container_manager.executors.base import LABEL_BARRED, LABEL_INSTANCE, EngineUnavailable
from tests.support import docker_engine


@dataclass
class Seen:
    """All containers that ever bore one name."""

    ids: set[str] = field(default_factory=set)
    barred: bool = False
    starts: list[int] = field(default_factory=list)
    """Nanoseconds of the engine's clock."""
    ends: list[int] = field(default_factory=list)


class Events:
    """Follows the events of the machine's engine, which goes on until they end.

    An engine that is started again has forgotten its events; what runs on that one tells by itself.
    """

    def __init__(self, instance: str) -> None:
        self.seen: dict[str, Seen] = defaultdict(Seen)
        self._filters = json.dumps(
            {"type": ["container"], "label": [f"{LABEL_INSTANCE}={instance}"]}
        )
        self._since = f"{time.time():.6f}"
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def end(self) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _follow(self) -> None:
        with docker_engine.engine() as http:
            stream = http.stream("GET", "/events", {"since": self._since, "filters": self._filters})
            rest = b""
            while (data := stream.read(0.5)) != b"":
                *lines, rest = (rest + (data or b"")).split(b"\n")
                for line in lines:
                    self._take(json.loads(line))
                if data is None and self._ended.is_set():
                    return
            raise EngineUnavailable("the engine's events ended")

    def _take(self, event: dict[str, object]) -> None:
        actor: dict[str, dict[str, str]] = event["Actor"]  # type: ignore[assignment]
        attributes = actor["Attributes"]
        seen = self.seen[attributes["name"]]
        seen.ids.add(str(actor["ID"]))
        seen.barred |= LABEL_BARRED in attributes
        if event["Action"] == "start":
            seen.starts.append(int(str(event["timeNano"])))
        elif event["Action"] == "die":
            seen.ends.append(int(str(event["timeNano"])))
