"""Commands and endpoints as capabilities: what they take, and what no caller gets them to do."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from croft.compute import wasm_runner
from croft.errors import Usage
from croft.twins.capability import open_signature, show_signature
from croft.twins.capability_kinds import function_of, parameter
from croft.twins.capability_signature import Typed
from croft.twins.capability_source import Source
from support.wasm import ECHO, opens, save


def command(*words: str, returns: str = "text", folder: str = "") -> Source:
    return Source(python="/python", command=words, returns=returns, folder=folder)


def shown(source: Source) -> str:
    return show_signature("it", open_signature(Typed(function_of(source)).signature))


def test_a_command_takes_what_stands_in_braces() -> None:
    source = command("ocr", "{page:file}", "-", "-l", "{language=eng}", "--psm={mode:int=3}", "{{literal}}")

    assert shown(source) == "it(page: Path, language: str = 'eng', mode: int = 3) -> str"
    assert shown(command("ls", returns="lines")) == "it() -> Iterator[str]"
    assert shown(command("true", returns="none")) == "it() -> None"


def test_a_command_runs_with_each_argument_in_its_place(tmp_path: Path) -> None:
    echo = function_of(command("printf", "%s|%s|%s", "{a}", "x{b:int=7}", "{{c}}"))

    assert echo(a="one; two $HOME `id`") == "one; two $HOME `id`|x7|{c}"
    assert function_of(command("pwd", folder=str(tmp_path)))().strip() == str(tmp_path)
    assert function_of(command("printf", '{{"a":{n:int}}}', returns="json"))(n=3) == {"a": 3}
    assert function_of(command("printf", "ab", returns="bytes"))() == b"ab"
    assert list(function_of(command("printf", "a\\nb\\n", returns="lines"))()) == ["a", "b"]


@pytest.mark.parametrize("text", ["-rf", "--output=/etc/passwd", "a\0b"])
def test_text_never_passes_for_an_option(text: str) -> None:
    with pytest.raises(ValueError, match=r"option|zero byte"):
        function_of(command("cat", "{name}"))(name=text)


def test_a_command_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="exited with 2: no such thing"):
        function_of(command("sh", "-c", "echo no such thing >&2; exit 2"))()


def test_lines_that_nobody_reads_end_their_command() -> None:
    lines: Iterator[str] = function_of(command("yes", returns="lines"))()

    assert next(lines) == "y"
    lines.close()  # type: ignore[attr-defined]  # it is a generator; waits for the end of the command


def wasm(*words: str, folder: Path, returns: str = "text") -> Source:
    runner = wasm_runner.__file__
    return Source(python="/python", command=words, returns=returns, folder=str(folder), wasm_runner=runner)


def test_a_command_that_is_webassembly_sees_its_files_and_nothing_else(tmp_path: Path) -> None:
    page, secret = tmp_path / "page.txt", tmp_path / "secret.txt"
    page.write_text("ink")
    secret.write_text("well")
    save(tmp_path, "reads.wasm", opens("page.txt"))
    save(tmp_path, "pries.wasm", opens("secret.txt"))
    save(tmp_path, "writes.wasm", opens("page.txt", writes=True))

    assert function_of(wasm("reads.wasm", "{page:file}", folder=tmp_path))(page=page) == "ink"
    assert list(function_of(wasm("reads.wasm", "{page:file}", folder=tmp_path, returns="lines"))(page=page)) == ["ink"]
    with pytest.raises(RuntimeError, match=r"pries\.wasm exited with 44"):  # WASI: no such file
        function_of(wasm("pries.wasm", "{page:file}", folder=tmp_path))(page=page)
    assert function_of(wasm("writes.wasm", "{page:file}", folder=tmp_path))(page=page) == ""
    assert page.read_text() == "ink"


def test_webassembly_gets_its_arguments_and_no_variables(tmp_path: Path) -> None:
    save(tmp_path, "echo.wasm", ECHO)

    with pytest.raises(RuntimeError, match="exited with 7") as caught:
        function_of(wasm("echo.wasm", "{a}", "x{b:int=7}", folder=tmp_path))(a="one; two $HOME")
    assert "PATH" not in str(caught.value)


def test_webassembly_takes_no_two_files_of_one_name(tmp_path: Path) -> None:
    save(tmp_path, "reads.wasm", opens("page.txt"))
    (tmp_path / "page.txt").write_text("ink")

    with pytest.raises(ValueError, match=r"two files are called `page\.txt`"):
        function_of(wasm("reads.wasm", "{a:file}", "{b:file}", folder=tmp_path))(
            a=tmp_path / "page.txt", b=tmp_path / "page.txt"
        )


@pytest.mark.parametrize("text", ["", "Page", "page:pdf", "a b", "1a"])
def test_what_is_no_parameter_is_refused(text: str) -> None:
    with pytest.raises(Usage):
        parameter(text)


@pytest.mark.parametrize(
    "source",
    [
        command("ocr", "{flag:bool}"),
        command("ocr", "{n:int=x}"),
        command("ocr", returns="image"),
        Source(python="/python", http="http://example.org/x"),
        Source(python="/python", http="https://127.0.0.1/x"),
        Source(python="/python", http="http://127.0.0.1/x", parameters=("a:file",)),
        Source(python="/python", http="http://127.0.0.1/x", returns="lines"),
    ],
)
def test_what_cannot_be_offered_is_refused(source: Source) -> None:
    with pytest.raises(Usage):
        function_of(source)


@pytest.fixture
def endpoint() -> Iterator[str]:
    """Answers with what it was posted, or 404."""

    class Echo(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200 if self.path == "/echo?v=1" else 404)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Echo)
    serving = threading.Thread(target=server.serve_forever, daemon=True)
    serving.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    serving.join()
    server.server_close()


def test_an_endpoint_is_posted_the_arguments(endpoint: str) -> None:
    source = Source(python="/p", http=f"{endpoint}/echo?v=1", parameters=("q", "top:int=5"), returns="json")

    assert shown(source) == "it(q: str, top: int = 5) -> any"
    assert function_of(source)(q="x") == {"q": "x", "top": 5}
    text = function_of(Source(python="/p", http=f"{endpoint}/echo?v=1", parameters=("q",)))
    assert json.loads(text(q="ü")) == {"q": "ü"}
    with pytest.raises(RuntimeError, match="404"):
        function_of(Source(python="/p", http=f"{endpoint}/other", parameters=("q",)))(q="x")


# --- folders ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("x")
    root = tmp_path / "data"
    (root / "scans").mkdir(parents=True)
    (root / "scans" / "a.txt").write_text("ink")
    (root / "out").symlink_to(tmp_path / "secret")
    return root


def test_a_folder_is_listed_and_read(folder: Path) -> None:
    read = function_of(Source(python="/p", data=str(folder)))

    assert read() == ["out", "scans/"] and read(name="scans") == ["scans/a.txt"]
    assert read(name="scans/a.txt").read_text() == "ink"
    with pytest.raises(FileNotFoundError):
        read(name="scans/b.txt")


@pytest.mark.parametrize("name", ["..", "../secret", "/etc/passwd", "scans/../../secret", "out"])
def test_nothing_outside_a_folder_is_read(folder: Path, name: str) -> None:
    with pytest.raises(ValueError, match="not in it"):
        function_of(Source(python="/p", data=str(folder)))(name=name)


def test_what_is_no_folder_cannot_be_offered(folder: Path) -> None:
    with pytest.raises(Usage, match="no folder"):
        function_of(Source(python="/p", data=str(folder / "nothing")))
