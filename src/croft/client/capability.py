"""A capability of somebody, as this program calls it: binds and checks arguments, reads results, names what failed."""

from __future__ import annotations

import difflib
import inspect
import secrets
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from croft.client.call_session import CallSession, ClientCall
from croft.client.serialise import RemoteTraceback
from croft.control import schema
from croft.errors import (
    BadArgument,
    CallLost,
    CapabilityFailed,
    CodecError,
    CroftError,
    NotFound,
    PeerMisbehaved,
    TooLarge,
    Usage,
    by_code,
)
from croft.twins.call_messages import ARGUMENT_BYTES_MAX, AskCall, CallEnded, CallFailed, CallRaised
from croft.twins.capability import Signature, open_signature
from croft.twins.capability_schema import CONTENT, FILE, PATH_FORMAT, Checker, Mismatch, describe, is_file, read_text
from croft.twins.capability_signature import lowered
from croft.wire.values import decode_value, encode_in_parts

KEY_BYTES: Final = 16
CONSENT_S: Final = 60.0
"""How long a call waits for its provider's owner, unless the caller says otherwise."""


@dataclass(frozen=True)
class Known:
    """A capability that is called.

    Attributes:
        offered: what its provider published. of: the id of the peer or twin that is to run it; empty: any that promises
            the same. time_s: how long a call may take; 0: as its provider says. wait_s: for the owner's consent, and
            `on_wait` is told, from another thread, who is asked; `on_provider` likewise who is to run it.
    """

    offered: schema.Capability
    of: str = ""
    time_s: float = 0.0
    wait_s: float = CONSENT_S
    on_wait: Callable[[str], None] = lambda provider: None
    on_provider: Callable[[str], None] = lambda provider: None

    @cached_property
    def signature(self) -> Signature:
        """What it promises."""
        try:
            return open_signature(self.offered.signature.encode())
        except PeerMisbehaved as fault:
            raise CapabilityFailed(f"{self.offered.by} published nonsense: {fault}", provider=self.offered.by) from None

    @property
    def name(self) -> str:
        """What it is called by."""
        return self.offered.name

    @property
    def fields(self) -> Mapping[str, Any]:
        """The schema of each parameter, in order."""
        fields: Mapping[str, Any] = self.signature.parameters.get("properties", {})
        return fields

    @cached_property
    def checker(self) -> Checker:
        """Of its arguments."""
        return Checker(self.signature.parameters)

    @cached_property
    def _returns(self) -> Checker:
        return Checker(self.signature.returns)

    # --- the way there -----------------------------------------------------------------------------------------------

    def bind(self, positional: Sequence[Any], named: Mapping[str, Any]) -> tuple[dict[str, Any], Iterable[Any] | None]:
        """The arguments by name, and the stream into the call. Raises BadArgument that names the field."""
        names = list(self.fields)
        if len(positional) > len(names):
            raise BadArgument(f"`{self.name}` takes {len(names)} arguments, got {len(positional)}")
        bound = dict(zip(names, positional, strict=False))
        for name, value in named.items():
            if name not in self.fields:
                raise self.unknown(name)
            if name in bound:
                raise BadArgument(f"`{self.name}` got `{name}` twice", field=name)
            bound[name] = value
        stream = bound.pop(self.signature.stream_in, None) if self.signature.stream_in else None
        if self.signature.stream_in and not isinstance(stream, Iterable) and not hasattr(stream, "__aiter__"):
            field = self.signature.stream_in
            raise BadArgument(f"`{self.name}` wants a stream as `{field}`", field=field)
        return bound, stream

    def encoded(self, bound: Mapping[str, Any]) -> bytes:
        """The arguments, checked, as they travel. Raises BadArgument that names the field, TooLarge."""
        plain = {name: self._lowered(name, value) for name, value in bound.items()}
        try:
            self.checker.check(plain)
        except Mismatch as mismatch:
            raise self.bad(mismatch) from None
        return self._encoded(plain, "arguments")

    def encoded_item(self, item: Any) -> bytes:
        """An item of the stream into the call, likewise."""
        field = self.signature.stream_in
        return self._encoded(self._fitting(field, item, "[]"), field)

    def encoded_field(self, field: str, value: Any) -> bytes:
        """One argument by itself, likewise."""
        return self._encoded(self._fitting(field, value), field)

    def encoded_some(self, bound: Mapping[str, Any]) -> bytes:
        """Some of the arguments, likewise, whatever else the call needs."""
        for name in bound:
            if name not in self.fields:
                raise self.unknown(name)
        return self._encoded({name: self._fitting(name, value) for name, value in bound.items()}, "arguments")

    def _fitting(self, field: str, value: Any, where: str = "") -> Any:
        plain = self._lowered(field, value)
        try:
            self.checker.check(plain, self.fields[field])
        except Mismatch as mismatch:
            raise self.bad(mismatch.under(f".{field}{where}")) from None
        return plain

    def asked(self) -> AskCall:
        """What to ask for, but for the arguments."""
        key = secrets.token_bytes(KEY_BYTES) if self.offered.is_idempotent else b""
        digest = bytes.fromhex(self.offered.digest)
        return AskCall(0, self.name, b"", True, digest, key, self.wait_s, self.time_s, self.of)

    def begin(self, session: CallSession, arguments: bytes) -> ClientCall:
        """Makes the call, on the session's loop."""
        call = session.begin(self.asked(), arguments)
        call.on_wait, call.on_provider = self.on_wait, self.on_provider
        return call

    # --- the way back ------------------------------------------------------------------------------------------------

    def value(self, answer: bytes | CallRaised | CallFailed | CallEnded, provider: str) -> Any:
        """The result, or an item of it. Raises what came instead."""
        if not isinstance(answer, bytes):
            raise self.error(answer, provider)
        try:
            value = decode_value(bytearray(answer))
            self._returns.check(value)
        except CodecError as error:
            why = f"{provider} answered `{self.name}` with something that cannot be read: {error.message}"
            raise CapabilityFailed(why, provider=provider) from None
        except Mismatch as mismatch:
            why = f"{provider} answered `{self.name}` with the wrong type: result{mismatch.where} {mismatch.what}"
            remedy = f"It promised {describe(self.signature.returns)}; tell its owner, or name another one with `of`."
            raise CapabilityFailed(why, remedy=remedy, provider=provider) from None
        return with_files(value)

    def error(self, answer: CallRaised | CallFailed | CallEnded, provider: str) -> CroftError:
        """What went wrong."""
        where = f"`{self.name}` on {provider}" if provider else f"`{self.name}`"
        match answer:
            case CallRaised(_, name, message, traceback):
                error = CapabilityFailed(
                    f"{where} raised {name}: {message}",
                    remedy="It failed there: call it with other arguments, or ask its owner.",
                    provider=provider,
                    type_name=name,
                    remote_traceback=traceback,
                )
                error.__cause__ = RemoteTraceback(f"on {provider}:\n{traceback}")
                return error
            case CallFailed(_, "bad_argument", message, remedy, _, field):
                return BadArgument(f"{where} refuses: {message}", remedy=remedy or self._remedy(), field=field)
            case CallFailed(_, "call_lost" | "capability_failed" as code, message, remedy, has_begun):
                kind = CallLost if code == "call_lost" else CapabilityFailed
                lost = "; it may have run" if code == "call_lost" else ""
                remedy = remedy or ("" if self.offered.is_idempotent else "Call it again if that does no harm.")
                return kind(f"{message}{lost}", remedy=remedy, provider=provider, may_have_run=has_begun)
            case CallFailed(_, code, message, remedy, has_begun):
                return by_code(code, message if has_begun else f"{message}; `{self.name}` has not run", remedy)
            case CallEnded():
                return CapabilityFailed(f"{where} ended without a result", provider=provider)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _lowered(self, name: str, value: Any) -> Any:
        try:
            return lowered(value)
        except OSError as error:
            raise BadArgument(f"`{name}`: {value} cannot be read: {error.strerror}", field=name) from None

    def _encoded(self, plain: Any, what: str) -> bytes:
        try:
            return b"".join(encode_in_parts(plain, size_bytes_max=ARGUMENT_BYTES_MAX))
        except TooLarge:
            limit = f"{ARGUMENT_BYTES_MAX >> 20} MiB"
            raise TooLarge(
                f"the {what} of `{self.name}` take more than {limit}", remedy="Send less at a time, or a stream."
            ) from None
        except CodecError as error:
            raise BadArgument(
                f"`{self.name}` cannot be sent its {what}: {error.message}", remedy=error.remedy
            ) from None

    def bad(self, mismatch: Mismatch) -> BadArgument:
        """The error that names the field which does not fit."""
        field = mismatch.where.lstrip(".").partition(".")[0].partition("[")[0]
        if mismatch.what == "is unknown" and field not in self.fields:
            return self.unknown(field)
        where = mismatch.where.lstrip(".") or "the call"
        return BadArgument(f"`{self.name}`: `{where}` {mismatch.what}", remedy=self._remedy(), field=field)

    def unknown(self, name: str) -> BadArgument:
        """The error that names a field which is not there, and the nearest one that is."""
        near = difflib.get_close_matches(name, self.fields, n=1)
        remedy = f"Did you mean `{near[0]}`?" if near else self._remedy()
        return BadArgument(f"`{self.name}` takes no `{name}`", remedy=remedy, field=name)

    def _remedy(self) -> str:
        return f"It is {self.offered.shown}"


def choose(offered: Sequence[schema.Capability], name: str, of: str = "") -> schema.Capability:
    """The capability that a name means; `of`: the id of a peer or twin. Raises NotFound with the nearest name."""
    usable = [one for one in offered if of in ("", one.peer, one.twin)]
    found = [one for one in usable if name == one.name] or [one for one in usable if name == _identifier(one.name)]
    if found:
        return found[0]
    near = difflib.get_close_matches(name, [one.name for one in usable], n=1)
    remedy = f"Did you mean `{near[0]}`?" if near else "See what there is: `croft capabilities`."
    raise NotFound(f"nobody here offers `{name}` to you", remedy=remedy)


def names(offered: Sequence[schema.Capability]) -> list[str]:
    """What may stand behind a dot."""
    return sorted({_identifier(one.name) for one in offered})


def document(function: Any, known: Known) -> None:
    """Gives a function the name, text and signature of a capability, for `help` and for editors."""
    offered = known.offered
    function.__name__ = function.__qualname__ = _identifier(offered.name)
    examples = [f">>> {one}" for one in offered.examples]
    notes = [f"Needs {', '.join(offered.needs)}."] if offered.needs else []
    notes += [f"Costs {offered.price:g} favours."] if offered.price else []
    where = f"Offered by {offered.by}: {offered.shown}"
    function.__doc__ = "\n\n".join(part for part in (offered.text, *notes, "\n".join(examples), where) if part)
    required = known.signature.parameters.get("required", [])
    parameters: list[inspect.Parameter] = []
    for name, field in known.fields.items():
        is_required = name in required or name == known.signature.stream_in
        default = inspect.Parameter.empty if is_required else field.get("default", ...)
        # One without default may follow one with: then all that follow are shown as they would have to be written.
        is_after = any(one.default is not inspect.Parameter.empty for one in parameters)
        kind = inspect.Parameter.KEYWORD_ONLY if is_required and is_after else inspect.Parameter.POSITIONAL_OR_KEYWORD
        if parameters and parameters[-1].kind is inspect.Parameter.KEYWORD_ONLY:
            kind = inspect.Parameter.KEYWORD_ONLY
        annotation = describe(field)
        parameters.append(inspect.Parameter(name, kind, default=default, annotation=annotation))
    returns = describe(known.signature.returns)
    function.__signature__ = inspect.Signature(
        parameters, return_annotation=f"Iterator[{returns}]" if known.signature.streams else returns
    )


def bound_text(known: Known, texts: Mapping[str, str]) -> dict[str, Any]:
    """Arguments out of what people wrote: `@FILE` is what a file holds. Raises BadArgument, Usage."""
    bound: dict[str, Any] = {}
    for name, text in texts.items():
        field = known.fields.get(name)
        if field is None:
            raise known.unknown(name)
        wanted = known.checker.resolved(field)
        is_path = wanted.get("format") == PATH_FORMAT
        try:
            if is_path:
                bound[name] = Path(text.removeprefix("@"))
            elif text.startswith("@"):
                content = Path(text[1:]).read_bytes()
                bound[name] = content if wanted.get("contentEncoding") == "base64" else content.decode()
            elif wanted.get("contentEncoding") == "base64":
                bound[name] = text.encode()
            else:
                bound[name] = read_text(text, field, known.checker)
        except Mismatch as mismatch:
            raise known.bad(mismatch.under(f".{name}")) from None
        except OSError as error:
            raise Usage(f"{text[1:]} cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise BadArgument(f"`{name}` wants text, and {text[1:]} holds none", field=name) from None
    return bound


def read_item(known: Known, text: str, parameter: str = "") -> Any:
    """A line as an item of the stream into a call, or as `parameter`. Raises BadArgument."""
    field = parameter or known.signature.stream_in
    try:
        return read_text(text, known.fields[field], known.checker)
    except Mismatch as mismatch:
        raise known.bad(mismatch.under(f".{field}" if parameter else f".{field}[]")) from None


def _identifier(name: str) -> str:
    return name.replace("-", "_")


def with_files(value: Any) -> Any:
    """Files in a result become files here, in folders of their own, which are the caller's from then on."""
    if is_file(value) and isinstance(value[FILE], str) and isinstance(value[CONTENT], bytes | bytearray | memoryview):
        path = Path(tempfile.mkdtemp(prefix="croft-result-")) / (Path(value[FILE]).name or "file")
        path.write_bytes(value[CONTENT])
        return path
    if isinstance(value, list | tuple) and any(isinstance(one, dict | list | tuple) for one in value):
        return type(value)(map(with_files, value))
    if isinstance(value, dict):
        return {name: with_files(one) for name, one in value.items()}
    return value
