"""Follow what happens through Redis, and go on where it was left; needs redis-py and nothing else.

python examples/follow_events.py redis://localhost:6379/0 position.txt
"""

import json
import sys
import time
from pathlib import Path

import redis

STREAM = "container_manager:stream"


def follow(url: str, place: Path) -> None:
    client = redis.Redis.from_url(url, decode_responses=True, protocol=2, socket_timeout=5)
    position = int(place.read_text()) if place.exists() else 0
    while True:
        try:
            answer = client.xread({STREAM: f"{position}-0"}, count=100, block=2_000)
        except redis.RedisError as error:
            print(f"waiting for Redis: {error}", file=sys.stderr)
            time.sleep(1)
            continue
        for entry_id, fields in answer[0][1] if answer else []:
            sequence = int(entry_id.partition("-")[0])
            if sequence > position + 1:
                print(f"events {position + 1} to {sequence - 1} are gone: read the jobs anew")
            handle(sequence, json.loads(fields["event"]))
            position = sequence
            keep(place, position)  # after it was handled: at least once


def keep(place: Path, position: int) -> None:
    """All of it or nothing, also when this process is killed meanwhile."""
    new = place.with_name(f"{place.name}.new")
    new.write_text(str(position))
    new.replace(place)


def handle(sequence: int, event: dict) -> None:
    """Yours. `version` counts the moves of an entity: one that is not higher is known already."""
    move = f"{event['old_state']} -> {event['new_state']}"
    print(sequence, event["entity_type"], event["entity_id"], event["version"], move, flush=True)


if __name__ == "__main__":
    follow(sys.argv[1], Path(sys.argv[2]))
