"""Stored files for everything that speaks fsspec: pandas, pyarrow, Dask, zarr, xarray, DuckDB open `croft://NAME`.

    import pandas
    frame = pandas.read_parquet("croft://measurements/2026.parquet")

It is found by its protocol once `croft[fs]` is installed; nothing needs to be imported. Names are those of `croft ls`;
folders are there as long as something is in them. Option: `home`, the folder of a peer other than the default one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from fsspec.spec import AbstractFileSystem

from croft.client.local_api import LocalApi
from croft.client.stored_files import StoredFiles
from croft.control import schema
from croft.control.home import Home
from croft.control.work_messages import OpenGet
from croft.errors import CroftError, NotFound

Info = dict[str, Any]


class CroftFileSystem(AbstractFileSystem):  # type: ignore[misc]  # the library is not typed
    """See the module. A written file counts once it is closed; what was there stays as an earlier version."""

    protocol = "croft"
    root_marker = ""
    cachable = True

    def __init__(self, home: str | None = None, **options: Any) -> None:
        super().__init__(**options)
        found = Home.find(Path(home) if home else None)
        self._files = StoredFiles(found, LocalApi(found.control_socket))

    # --- what is there -----------------------------------------------------------------------------------------------

    def ls(self, path: str, detail: bool = True, **options: Any) -> list[Info] | list[str]:
        """What is right below a folder, or the file itself. Raises FileNotFoundError."""
        path = self._strip_protocol(path)
        found = self._files.ls(path)
        if not found and path:
            raise FileNotFoundError(path)
        infos = list(_below(path, found))
        return infos if detail else sorted(info["name"] for info in infos)

    def info(self, path: str, **options: Any) -> Info:
        """One file or folder. Raises FileNotFoundError."""
        path = self._strip_protocol(path)
        found = self._files.ls(path)
        for file in found:
            if file.name == path:
                return _file(file)
        if not found and path:
            raise FileNotFoundError(path)
        return _folder(path)

    def created(self, path: str) -> datetime:
        """When its first version was stored."""
        return datetime.fromtimestamp(self.info(path)["versions"][0], UTC)

    def modified(self, path: str) -> datetime:
        """When its newest version was stored."""
        return datetime.fromtimestamp(self.info(path)["versions"][-1], UTC)

    def ukey(self, path: str) -> str:
        """What changes whenever the file does."""
        info = self.info(path)
        return f"{info['name']}@{info['version']}/{info['versions'][-1]}"

    # --- reading -----------------------------------------------------------------------------------------------------

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **options: Any) -> bytes:
        """A file, or a range of it; negative numbers count from its end. Raises FileNotFoundError."""
        path = self._strip_protocol(path)
        if (start or 0) < 0 or (end or 0) < 0:
            size = self.info(path)["size"]
            start = max(0, size + start) if start is not None and start < 0 else start
            end = size + end if end is not None and end < 0 else end
        begin = start or 0
        opening = OpenGet(path.encode(), offset=begin, size=-1 if end is None else max(0, end - begin))
        with _as_os_error(path):
            return b"".join(self._files.read(opening))

    def _open(self, path: str, mode: str = "rb", *args: Any, **options: Any) -> BinaryIO:
        with _as_os_error(path):
            match mode:
                case "rb":
                    return self._files.open(path, "rb")
                case "wb":
                    return self._files.open(path, "wb")
                case "xb":
                    if self.exists(path):
                        raise FileExistsError(path)
                    return self._files.open(path, "wb")
        raise ValueError(f"a stored file cannot be opened as {mode!r}; use rb, wb or xb")

    # --- writing -----------------------------------------------------------------------------------------------------

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **options: Any) -> None:
        """Stores bytes."""
        path = self._strip_protocol(path)
        if mode == "create" and self.exists(path):
            raise FileExistsError(path)
        self._files.put(value, path)

    def cp_file(self, path1: str, path2: str, **options: Any) -> None:
        """Stores the newest version of one file under another name."""
        with self._open(self._strip_protocol(path1)) as source:
            self._files.put(source, self._strip_protocol(path2))

    def rm_file(self, path: str) -> None:
        """Removes a file; its versions stay, as with `croft rm`. Raises FileNotFoundError."""
        with _as_os_error(path):
            self._files.rm(self._strip_protocol(path))

    def rm(self, path: str | list[str], recursive: bool = False, maxdepth: int | None = None) -> None:
        """Removes files, and with `recursive` folders with all that is in them. Raises FileNotFoundError."""
        names = self.expand_path(path, recursive=recursive, maxdepth=maxdepth)
        for name in names:
            if self.isfile(name):
                self.rm_file(name)

    def mkdir(self, path: str, create_parents: bool = True, **options: Any) -> None:
        """Folders need not be made."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Folders need not be made."""

    def rmdir(self, path: str) -> None:
        """A folder is gone with the last file in it. Raises OSError for one that is not empty."""
        if self._files.ls(self._strip_protocol(path)):
            raise OSError(f"the folder {path} is not empty")


@contextlib.contextmanager
def _as_os_error(path: str) -> Iterator[None]:
    """Errors as programs expect them of a file system."""
    try:
        yield
    except NotFound as error:
        raise FileNotFoundError(path) from error
    except CroftError as error:
        raise OSError(f"{error.message}. {error.remedy}") from error


def _below(path: str, found: list[schema.StoredFile]) -> Iterator[Info]:
    start = len(path) + 1 if path else 0
    folders: set[str] = set()
    for file in found:
        if file.name == path:
            yield _file(file)
            continue
        head, slash, _ = file.name[start:].partition("/")
        if not slash:
            yield _file(file)
        elif head not in folders:
            folders.add(head)
            yield _folder(f"{path}/{head}" if path else head)


def _file(file: schema.StoredFile) -> Info:
    return {
        "name": file.name,
        "size": file.size_bytes,
        "type": "file",
        "version": file.versions[-1].number,
        "versions": [version.at for version in file.versions],
    }


def _folder(path: str) -> Info:
    return {"name": path, "size": 0, "type": "directory"}
