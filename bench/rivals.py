"""Measures storing one large file and many small ones: Croft, scp and Tahoe-LAFS, one after the other.

python -m bench.rivals [--json FILE] [--megabytes N] [--files N] [--tahoe PROGRAM]

Croft and Tahoe-LAFS keep any three of five shares, each with five holders on this machine; scp copies to an sshd here,
without a second copy. Tahoe-LAFS is given fewer of the small files, as it takes so long, by eight callers at once. It
is wanted as `tahoe` on the path, or where --tahoe says; if it is not there, its figures are left out, and that is said:

    python -m venv tahoe && tahoe/bin/pip install tahoe-lafs
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.storage import HOLDERS, KEEP, SMALL_BYTES, Village
from bench.transport import HOST
from bench.tunnel import await_port, end, free_port
from croft.client.stored_files import StoredFiles
from support import ssh_server

TAHOE_FILES = 200
TAHOE_CALLERS = 8
TAHOE_S_MAX = 60.0
CIPHER = "aes128-gcm@openssh.com"
ROWS = ["large put, MB/s", "large get, MB/s", "small files put/s", "small files got/s"]

Figures = dict[str, float]


def seconds(work: Callable[[], object]) -> float:
    """How long something takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def croft(large: Path, small: Path, back: Path) -> Figures:
    """Five daemons that hold, one that asks."""
    village = Village()
    try:
        files = StoredFiles(village.homes[0], village.owner)
        mb, count = large.stat().st_size / 1e6, len(list(small.iterdir()))
        took = [
            seconds(lambda: files.put(large, "large", keep=KEEP)),
            seconds(lambda: files.fetch("large", back / "large")),
            seconds(lambda: files.put(small, "small", keep=KEEP)),
            seconds(lambda: files.fetch("small", back / "small")),
        ]
        return dict(zip(ROWS, [mb / took[0], mb / took[1], count / took[2], count / took[3]], strict=True))
    finally:
        village.stop()


def scp(large: Path, small: Path, back: Path) -> Figures:
    """An sshd of our own, and `scp` by its fastest cipher."""
    with tempfile.TemporaryDirectory(dir=back) as name, contextlib.ExitStack() as cleanup:
        keys, there = Path(name), back / "there"
        there.mkdir()
        ssh_server.make_keys(keys)
        port = free_port()
        command = [*ssh_server.server_command(keys, port), "-o", "Subsystem=sftp internal-sftp"]
        cleanup.callback(end, subprocess.Popen(command, stderr=subprocess.DEVNULL))
        await_port(port)

        def copy(*what: str) -> float:
            options = ["-q", "-r", "-P", str(port), "-c", CIPHER, *ssh_server.client_options(keys)]
            return seconds(lambda: subprocess.run(["scp", *options, *what], check=True, stderr=subprocess.DEVNULL))

        mb, count = large.stat().st_size / 1e6, len(list(small.iterdir()))
        took = [
            copy(str(large), f"{HOST}:{there}/large"),
            copy(f"{HOST}:{there}/large", str(back / "large")),
            copy(str(small), f"{HOST}:{there}/small"),
            copy(f"{HOST}:{there}/small", str(back / "small")),
        ]
        return dict(zip(ROWS, [mb / took[0], mb / took[1], count / took[2], count / took[3]], strict=True))


# --- Tahoe-LAFS ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def tahoe_grid(program: str, base: Path) -> Iterator[int]:
    """An introducer, five that store, and a client, whose port is given."""
    k, n = KEEP.split("of")

    def make(kind: str, name: str, *options: str) -> Path:
        command = [program, kind, *options, str(base / name)]
        subprocess.run(command, check=True, capture_output=True)
        return base / name

    def listening() -> list[str]:
        port = free_port()
        return ["--listen=tcp", f"--port=tcp:{port}:interface={HOST}", f"--location=tcp:{HOST}:{port}"]

    with contextlib.ExitStack() as cleanup:

        def run(node: Path) -> None:
            with (base / f"{node.name}.log").open("wb") as log:
                process = subprocess.Popen([program, "run", "--allow-stdin-close", str(node)], stdout=log, stderr=log)
            cleanup.callback(end, process)

        introducer = make("create-introducer", "introducer", *listening())
        run(introducer)
        furl_file = introducer / "private" / "introducer.furl"
        furl = _until(lambda: furl_file.exists() and furl_file.read_text().strip(), "the introducer runs")
        for number in range(HOLDERS):
            run(make("create-node", f"holder{number}", f"--introducer={furl}", "--webport=none", *listening()))
        web = free_port()
        shares = [f"--shares-needed={k}", f"--shares-happy={n}", f"--shares-total={n}"]
        run(make("create-client", "client", f"--introducer={furl}", f"--webport=tcp:{web}:interface={HOST}", *shares))
        _until(lambda: _connected(web) >= HOLDERS, "the client knows all who store")
        yield web


def tahoe(program: str, large: Path, small: Path) -> Figures:
    """What its web interface takes and gives."""
    with tempfile.TemporaryDirectory(prefix="croft-bench-") as name, tahoe_grid(program, Path(name)) as web:

        def put(path: Path) -> str:
            with path.open("rb") as file:
                return _asked(web, "PUT", "/uri", file).decode().strip()

        def get(cap: str) -> int:
            return len(_asked(web, "GET", f"/uri/{cap}"))

        mb, caps = large.stat().st_size / 1e6, list[str]()
        some = sorted(small.iterdir())[:TAHOE_FILES]
        with ThreadPoolExecutor(TAHOE_CALLERS) as callers:
            took = [
                seconds(lambda: caps.append(put(large))),
                seconds(lambda: get(caps[0])),
                seconds(lambda: caps.extend(callers.map(put, some))),
                seconds(lambda: list(callers.map(get, caps[1:]))),
            ]
        return dict(zip(ROWS, [mb / took[0], mb / took[1], len(some) / took[2], len(some) / took[3]], strict=True))


def _asked(port: int, method: str, path: str, body: object = None) -> bytes:
    connection = http.client.HTTPConnection(HOST, port, timeout=3_600)
    try:
        connection.request(method, path, body)  # type: ignore[arg-type]  # an open file, or nothing
        response = connection.getresponse()
        told = response.read()
        assert response.status in (200, 201), told[:300]
        return told
    finally:
        connection.close()


def _connected(port: int) -> int:
    with contextlib.suppress(OSError):
        servers = json.loads(_asked(port, "GET", "/?t=json"))["servers"]
        return sum(server["connection_status"].lower().startswith("connected") for server in servers)
    return 0


def _until(condition: Callable[[], object], what: str) -> str:
    deadline = time.monotonic() + TAHOE_S_MAX
    while not (value := condition()):
        assert time.monotonic() < deadline, f"Tahoe-LAFS: waited in vain until {what}"
        time.sleep(0.1)
    return str(value)


def measure(megabytes: int, count: int, program: str | None) -> dict[str, Figures]:
    """Every figure of everybody who is here."""
    base = Path(tempfile.mkdtemp(prefix="croft-bench-"))
    try:
        large, small = base / "large", base / "small"
        large.write_bytes(os.urandom(megabytes << 20))
        small.mkdir()
        for number in range(count):
            (small / f"{number:05}").write_bytes(os.urandom(SMALL_BYTES))
        figures: dict[str, Figures] = {}
        for name, work in (("Croft", croft), ("scp", scp)):
            back = base / name
            back.mkdir()
            figures[name] = work(large, small, back)
            assert (back / "large").read_bytes() == large.read_bytes()
            shutil.rmtree(back)
        if program is None:
            print("Tahoe-LAFS is not installed here: its figures are missing. See --help.", flush=True)
            figures["Tahoe-LAFS"] = dict.fromkeys(ROWS, math.nan)
        else:
            figures["Tahoe-LAFS"] = tahoe(program, large, small)
        return figures
    finally:
        shutil.rmtree(base, ignore_errors=True)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="bench.rivals", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--megabytes", type=int, default=1_024)
    parser.add_argument("--files", type=int, default=5_000)
    parser.add_argument("--tahoe", default=shutil.which("tahoe"), help="the program `tahoe`")
    options = parser.parse_args(arguments)
    figures = measure(options.megabytes, options.files, options.tahoe)
    print(f"{'':20}" + "".join(f"{name:>14}" for name in figures))
    for row in ROWS:
        print(f"{row:20}" + "".join(f"{told[row]:14,.3g}" for told in figures.values()))
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
