"""Where a capability is found on its owner's machine."""

from __future__ import annotations

import shlex

import msgspec


class Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a capability is found on this machine.

    Attributes:
        python: the interpreter that runs it. file, function: a Python function; or else command: what is run, with
        `{name:type=default}` for parameters, in `folder`; or else http: an endpoint of this machine, to which the
        arguments are posted as JSON; or else data: a folder that is read.
        parameters: of an endpoint, each as `name:type=default`. returns: what a command or endpoint gives.
        wasm_runner: what runs a command that is WebAssembly; told when it is started.
    """

    python: str
    file: str = ""
    function: str = ""
    command: tuple[str, ...] = ()
    http: str = ""
    data: str = ""
    parameters: tuple[str, ...] = ()
    returns: str = "text"
    folder: str = ""
    wasm_runner: str = ""

    @property
    def shown(self) -> str:
        """In a few words."""
        function = f"{self.file}:{self.function}" if self.file else ""
        return self.http or self.data or shlex.join(self.command) or function
