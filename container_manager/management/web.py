"""The web server as a child of `standalone`: uvicorn on a socket that the parent opened.

The parent keeps the socket: while a web server that died is replaced, visitors wait, and are not
refused. In production uvicorn is started by its own command, see docs/deployment.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import socket
from types import FrameType

import uvicorn
from django.conf import settings
from django.utils.module_loading import import_string

from container_manager import sse
from container_manager.management.children import obey_parent

GRACE_SECONDS = 5
"""So long a stopping server waits for requests that are under way; streams end by themselves."""


class _Server(uvicorn.Server):
    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """SIGTERM as ever; Ctrl-C is the parent's."""
        if sig != signal.SIGINT:
            super().handle_exit(sig, frame)

    def stop(self) -> None:
        self.should_exit = True
        sse.stop()


def serve(listener: socket.socket) -> None:
    """Answer requests until we are told to stop."""
    config = uvicorn.Config(
        import_string(settings.ASGI_APPLICATION),
        access_log=False,
        lifespan="off",
        log_config=None,
        log_level="warning",
        # Who is trusted to say where a request came from is named, or nobody is.
        proxy_headers="FORWARDED_ALLOW_IPS" in os.environ,
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
        ws="none",
    )
    logging.getLogger("uvicorn").handlers = logging.getLogger("container_manager").handlers
    server = _Server(config)
    obey_parent(server.stop)
    server.run(sockets=[listener])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="the listening socket")
    parser.add_argument("--supervised", action="store_true", required=True)
    serve(socket.socket(fileno=parser.parse_args().fd))


if __name__ == "__main__":
    main()
