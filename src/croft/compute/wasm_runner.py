"""Runs one WebAssembly program as a process: WASI for its arguments, standard streams and current folder, no more.

Started by path as `python -sEP wasm_runner.py FUEL MEMORY_BYTES FD NAME [ARGUMENT]...`; the program is what can be read
from FD; FUEL 0 means that none is counted. It sees the current folder as `.` and as `/job`, and the variables in
VARIABLES. It has no network, no other files and no processes. A module (WASI preview 1) is started by `_start`, a
component (WASI 0.2) by `wasi:cli/run`. Exit codes are the program's own; what it does wrong ends it with TRAPPED_CODE.
"""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from typing import Any

VARIABLES = "CROFT_WASM_VARIABLES"
"""Holds the program's environment as JSON: none of it is ever that of this process. As in `worker_messages`."""
TRAPPED_CODE = 134
CANNOT_START_CODE = 126
"""As in `worker_messages`, which is not there where this runs."""
MODULE_BYTES_MAX = 256 << 20
TABLE_ELEMENTS_MAX = 1 << 20
INSTANCES_MAX = 100
MAGIC = b"\0asm"
COMPONENT_LAYER = b"\x01\x00"
"""In bytes 6 and 7 of a component; a module has zeros there."""


def say(text: str) -> None:
    """Tells whoever runs the program, on its standard error."""
    sys.stderr.write(f"croft: {text}\n")
    sys.stderr.flush()


def run(descriptor: int, program: str, arguments: list[str], fuel: int, memory_bytes: int) -> int:
    """Runs it to its end; returns the exit code."""
    import wasmtime

    config = wasmtime.Config()
    config.consume_fuel = fuel > 0
    # Boxes have few threads, and none of their files in memory.
    config.parallel_compilation = False
    config.memory_init_cow = False
    engine = wasmtime.Engine(config)
    store = wasmtime.Store(engine)
    store.set_limits(memory_size=memory_bytes, table_elements=TABLE_ELEMENTS_MAX, instances=INSTANCES_MAX)
    if fuel > 0:
        store.set_fuel(fuel)
    store.set_wasi(_wasi(wasmtime, program, arguments))
    try:
        with os.fdopen(descriptor, "rb") as file:
            size = os.fstat(descriptor).st_size
            data = file.read(size) if size <= MODULE_BYTES_MAX else b""
        if not data.startswith(MAGIC):
            say(f"{program} is no WebAssembly, or more than {MODULE_BYTES_MAX:,} bytes of it")
            return CANNOT_START_CODE
        start = _start_of(wasmtime, engine, store, data)
    except (OSError, MemoryError, wasmtime.WasmtimeError, wasmtime.Trap) as error:
        say(f"{program} cannot be started: {_first_line(error)}")
        return CANNOT_START_CODE
    if start is None:
        say(f"{program} has nothing to run: a program exports `_start` or `wasi:cli/run`")
        return CANNOT_START_CODE
    try:
        return int(start())
    except wasmtime.ExitTrap as ended:
        return int(ended.code)
    except (wasmtime.Trap, wasmtime.WasmtimeError) as error:
        if fuel > 0 and store.get_fuel() == 0:
            say(f"{program} used up its fuel of {fuel:,}")
        else:
            say(f"{program} ended by a trap: {_reason(error)}")
        return TRAPPED_CODE


def _wasi(wasmtime: Any, program: str, arguments: list[str]) -> Any:
    wasi = wasmtime.WasiConfig()
    wasi.argv = [program, *arguments]
    wasi.env = list(json.loads(os.environ.get(VARIABLES, "{}")).items())
    wasi.inherit_stdin()
    wasi.inherit_stdout()
    wasi.inherit_stderr()
    for place in (".", "/job"):
        wasi.preopen_dir(".", place)
    return wasi


def _start_of(wasmtime: Any, engine: Any, store: Any, data: bytes) -> Any:
    """What runs a program and returns its exit code; None if it exports no such thing."""
    if data[6:8] == COMPONENT_LAYER:
        return _start_of_component(engine, store, data)
    linker = wasmtime.Linker(engine)
    linker.define_wasi()
    start = linker.instantiate(store, wasmtime.Module(engine, data)).exports(store).get("_start")
    if start is None:
        return None

    def run() -> int:
        start(store)
        return 0

    return run


def _start_of_component(engine: Any, store: Any, data: bytes) -> Any:
    from wasmtime import component

    linker = component.Linker(engine)
    linker.add_wasip2()
    compiled = component.Component(engine, data)
    instance = linker.instantiate(store, compiled)
    for name in compiled.type.exports(engine):
        if name.startswith("wasi:cli/run@"):
            place = instance.get_export_index(store, name)
            within = place and instance.get_export_index(store, "run", place)
            function = within and instance.get_func(store, within)
            return partial(_run_component, function, store) if function else None
    return None


def _run_component(function: Any, store: Any) -> int:
    # It says no more than whether all went well.
    return 0 if function(store).tag == "ok" else 1


def _reason(error: Exception) -> str:
    """The last of what wasmtime says: what went wrong comes after where."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else "unknown"


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else repr(error)


def main() -> int:
    """Runs what the command line says."""
    fuel, memory_bytes, descriptor = map(int, sys.argv[1:4])
    return run(descriptor, sys.argv[4], sys.argv[5:], fuel, memory_bytes)


if __name__ == "__main__":
    sys.exit(main())
