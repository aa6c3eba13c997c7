"""Where a capability is found on its owner's machine."""

from __future__ import annotations

import shlex

import msgspec


class Source(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a capability is found on this machine.

    Attributes:
        python: the interpreter that runs it. file, function: a Python function; or else command: what is run, with
        `{name:type=default}` for parameters, in `folder`; or else http: an endpoint of this machine, to which the
        arguments are posted as JSON.
        parameters: of an endpoint, each as `name:type=default`. returns: what a command or endpoint gives.
    """

    python: str
    file: str = ""
    function: str = ""
    command: tuple[str, ...] = ()
    http: str = ""
    parameters: tuple[str, ...] = ()
    returns: str = "text"
    folder: str = ""

    @property
    def shown(self) -> str:
        """In a few words."""
        return self.http or (shlex.join(self.command) if self.command else f"{self.file}:{self.function}")
