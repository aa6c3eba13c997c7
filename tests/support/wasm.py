"""Small WebAssembly programs for tests, written as text."""

from __future__ import annotations

from pathlib import Path

import wasmtime

WASI = "wasi_snapshot_preview1"
IMPORTS = f"""
 (import "{WASI}" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
 (import "{WASI}" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
 (import "{WASI}" "args_sizes_get" (func $sizes (param i32 i32) (result i32)))
 (import "{WASI}" "args_get" (func $args (param i32 i32) (result i32)))
 (import "{WASI}" "environ_sizes_get" (func $env_sizes (param i32 i32) (result i32)))
 (import "{WASI}" "environ_get" (func $env (param i32 i32) (result i32)))
 (import "{WASI}" "path_open"
  (func $open (param i32 i32 i32 i32 i32 i64 i64 i32 i32) (result i32)))
 (import "{WASI}" "path_symlink" (func $symlink (param i32 i32 i32 i32 i32) (result i32)))
 (import "{WASI}" "proc_exit" (func $exit (param i32)))
 (memory (export "memory") 2)
 (func $print (param $fd i32) (param $at i32) (param $size i32)
  (i32.store (i32.const 0) (local.get $at)) (i32.store (i32.const 4) (local.get $size))
  (drop (call $write (local.get $fd) (i32.const 0) (i32.const 1) (i32.const 8))))
"""


def module(body: str, data: str = "") -> bytes:
    """A program whose `_start` is `body`; `data` stands at address 1024."""
    text = f'(module {IMPORTS} (data (i32.const 1024) "{data}") (func (export "_start") (local $n i32) {body}))'
    return bytes(wasmtime.wat2wasm(text))


ECHO = module(
    """
    (drop (call $sizes (i32.const 16) (i32.const 20)))
    (drop (call $args (i32.const 4096) (i32.const 8192)))
    (call $print (i32.const 1) (i32.const 8192) (i32.load (i32.const 20)))
    (drop (call $env_sizes (i32.const 16) (i32.const 20)))
    (drop (call $env (i32.const 4096) (i32.const 8192)))
    (call $print (i32.const 2) (i32.const 8192) (i32.load (i32.const 20)))
    (i32.store (i32.const 0) (i32.const 16384)) (i32.store (i32.const 4) (i32.const 1000))
    (drop (call $read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8)))
    (call $print (i32.const 1) (i32.const 16384) (i32.load (i32.const 8)))
    (call $exit (i32.const 7))
    """
)
"""Prints its arguments, on standard error its variables, each ended by a zero, and what it reads; ends with 7."""

LOOP = module("(loop $l (br $l))")
GROW = module("(loop $l (if (i32.eq (memory.grow (i32.const 256)) (i32.const -1)) (then unreachable)) (br $l))")
"""Takes 16 MiB after 16 MiB, and traps when it gets no more."""
NOTHING = module("")


def opens(path: str, *, writes: bool = False) -> bytes:
    """Opens a path below the folder that it sees first, to read it or make it; ends with what WASI says of that.

    What it reads it prints; into what it makes it writes `made`.
    """
    flags, rights = (1, 64) if writes else (0, 2)
    use = (
        "(call $print (i32.load (i32.const 12)) (i32.const 2048) (i32.const 4))"
        if writes
        else """
        (i32.store (i32.const 0) (i32.const 16384)) (i32.store (i32.const 4) (i32.const 1000))
        (drop (call $read (i32.load (i32.const 12)) (i32.const 0) (i32.const 1) (i32.const 8)))
        (call $print (i32.const 1) (i32.const 16384) (i32.load (i32.const 8)))
        """
    )
    return module(
        f"""
        (i32.store (i32.const 2048) (i32.const 0x6564616d))
        (local.set $n (call $open (i32.const 3) (i32.const 1) (i32.const 1024) (i32.const {len(path)})
         (i32.const {flags}) (i64.const {rights}) (i64.const 0) (i32.const 0) (i32.const 12)))
        (if (i32.eqz (local.get $n)) (then {use}))
        (call $exit (local.get $n))
        """,
        path,
    )


def links(target: str, name: str) -> bytes:
    """Makes a symbolic link `name` to `target`; ends with what WASI says of that."""
    return module(
        f"""
        (call $exit (call $symlink (i32.const 1024) (i32.const {len(target)}) (i32.const 3)
         (i32.const {1024 + len(target)}) (i32.const {len(name)})))
        """,
        target + name,
    )


def component(result: int) -> bytes:
    """A component whose `wasi:cli/run` says that all went well (0), or not (1)."""
    return bytes(
        wasmtime.wat2wasm(
            f"""(component
             (core module $m (func (export "run") (result i32) i32.const {result}))
             (core instance $i (instantiate $m))
             (func $run (result (result)) (canon lift (core func $i "run")))
             (component $c (import "f" (func $f (result (result)))) (export "run" (func $f)))
             (instance $x (instantiate $c (with "f" (func $run))))
             (export "wasi:cli/run@0.2.0" (instance $x)))"""
        )
    )


def save(folder: Path, name: str, program: bytes) -> Path:
    """Writes a program into a file."""
    path = folder / name
    path.write_bytes(program)
    return path
