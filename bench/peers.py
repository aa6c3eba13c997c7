"""Two joined peers on this machine, each a daemon of its own: one asks, the other lends."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from croft.client.local_api import LocalApi
from croft.control.home import Home
from croft.node.launch import start_in_background, stop

LINK_TIMEOUT_S = 20.0


class Pair:
    """Made and joined at once; `stop` ends and removes both."""

    def __init__(self, lent_slots: int) -> None:
        self._base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
        self.consumer, self.lender = (Home.find(self._base / name) for name in ("consumer", "lender"))
        try:
            self._join(lent_slots)
        except BaseException:
            self.stop()
            raise

    def _join(self, lent_slots: int) -> None:
        start_in_background(self.consumer, {"bind": "127.0.0.1", "lend.cpus": "0"})
        start_in_background(self.lender, {"bind": "127.0.0.1", "lend.cpus": str(lent_slots)})
        consumer, lender = LocalApi(self.consumer.control_socket), LocalApi(self.lender.control_socket)
        lender.join(consumer.invite(is_spoken=False).line)
        self.lender_name = lender.status().name
        deadline = time.monotonic() + LINK_TIMEOUT_S
        while not any(peer.link == "direct" for peer in consumer.peers()):
            if time.monotonic() > deadline:
                raise TimeoutError("the two peers did not find each other")
            time.sleep(0.02)

    def stop(self) -> None:
        """Ends both daemons and removes their homes."""
        stop(self.consumer)
        stop(self.lender)
        shutil.rmtree(self._base, ignore_errors=True)
