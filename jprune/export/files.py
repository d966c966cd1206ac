"""Files that are whole: written beside the old ones and renamed.

A bundle is a folder, or an archive (a path that ends in ``.zip``), of parts and
a manifest that names each part with its size and its SHA-256. Names of parts hold
a piece of the hash, so that a new bundle is written beside an old one in the
same folder; to replace the manifest is what replaces the bundle.
"""

import hashlib
import io
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jprune._core.describe import describe

MANIFEST = "manifest.json"
MOST = 100_000_000  # bytes of a manifest
_NAME = re.compile(r"[a-z]+\.[0-9a-f]{16}\.(json|safetensors|stablehlo)")
# What `write` leaves of a part where it is killed.
_LEFT = re.compile(rf"\.({_NAME.pattern}|manifest\.json)\.\d+\.tmp")


def write(path: Path, data: bytes) -> None:
    """A file in the place of another, which stays whole until the end."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(beside, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_bundle(
    path: Path, parts: Mapping[str, bytes], about: Mapping[str, Any]
) -> None:
    """Parts, called ``"params.safetensors"`` say, and a manifest."""
    names, listed = {}, {}
    for part, data in parts.items():
        stem, ending = part.split(".")
        digest = hashlib.sha256(data).hexdigest()
        names[part] = f"{stem}.{digest[:16]}.{ending}"
        listed[stem] = {
            "name": names[part],
            "bytes": len(data),
            "sha256": digest,
        }
    manifest = signed({**about, "files": listed})
    if is_archive(path):
        write(path, _archive(parts, names, manifest))
        return
    path.mkdir(exist_ok=True)
    # Listed now: what another process is about to write is not among it.
    left = [x for x in path.iterdir() if _LEFT.fullmatch(x.name)]
    for part, data in parts.items():
        write(path / names[part], data)
    write(path / MANIFEST, manifest)
    parts_there = [x for x in path.iterdir() if _NAME.fullmatch(x.name)]
    for old in (*left, *parts_there):
        if old.name not in names.values():
            old.unlink(missing_ok=True)


def check_place(call: str, place: Any) -> Path:
    """A place where a bundle may be written, refused before any work.

    Raises:
      ValueError: There is no such folder, or something else is there.
    """
    path = as_path(call, place)
    folder = path.parent
    if not folder.is_dir():
        raise ValueError(f"`{call}`: there is no folder '{folder}'.")
    if is_archive(path):
        if path.is_dir():
            raise ValueError(
                f"`{call}`: '{path}' is a folder, and a path that ends in .zip "
                "is a file."
            )
        return path
    if path.is_file():
        raise ValueError(
            f"`{call}`: '{path}' is a file. A bundle is a folder, or a file "
            "whose path ends in .zip."
        )
    if path.is_dir() and not (path / MANIFEST).exists():
        others = [
            x
            for x in path.iterdir()
            if not (_NAME.fullmatch(x.name) or _LEFT.fullmatch(x.name))
        ]
        if others:
            raise ValueError(
                f"`{call}`: the folder '{path}' holds other files, "
                f"{others[0].name!r} say."
            )
    return path


def check_file(call: str, place: Any) -> Path:
    """A place where a file may be written, refused before any work.

    Raises:
      ValueError: There is no such folder, or a folder is there.
    """
    path = as_path(call, place)
    if not path.parent.is_dir() or path.is_dir():
        raise ValueError(
            f"`{call}`: '{path}' must be a file in a folder that exists."
        )
    return path


def as_path(call: str, place: Any) -> Path:
    """A path, of a string or a path."""
    try:
        return Path(place)
    except TypeError:
        raise ValueError(
            f"`{call}`: path must be a path, got {describe(place)}."
        ) from None


def is_archive(path: Path) -> bool:
    """Whether a bundle is written to one file."""
    return path.suffix == ".zip"


def signed(about: Mapping[str, Any]) -> bytes:
    """JSON that holds its own hash: a changed bit is seen."""
    return _json({**about, "sha256": _digest(about)})


def _digest(about: Mapping[str, Any]) -> str:
    return hashlib.sha256(_json(about)).hexdigest()


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, indent=1, sort_keys=True, allow_nan=False).encode()


def _archive(
    parts: Mapping[str, bytes], names: Mapping[str, str], manifest: bytes
) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for part, data in parts.items():
            archive.writestr(zipfile.ZipInfo(names[part]), data)
        archive.writestr(zipfile.ZipInfo(MANIFEST), manifest)
    return buffer.getvalue()


def read_bundle(
    call: str, place: Any, check: Callable[[str, dict[str, Any]], None]
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The manifest of a bundle, and its parts by their stems.

    Args:
      call: How the caller is named in errors.
      place: A folder or an archive.
      check: Refuses manifests, before any part is read.

    Raises:
      ValueError: Something is missing, is not what the manifest says, or is
        called as no part is.
    """
    path = as_path(call, place)
    if not path.exists():
        raise ValueError(f"`{call}`: there is no '{path}'.")
    inside = _from_folder if path.is_dir() else _from_archive
    read = inside(call, path)
    where = f"`{call}`: '{path}', {MANIFEST!r}"
    about = _manifest(where, read)
    check(where, about)
    parts = {}
    for stem, listed in _files(where, about).items():
        name = str(listed.get("name"))
        where = f"`{call}`: '{path}', {name!r}"
        if not _NAME.fullmatch(name) or name.split(".")[0] != stem:
            raise ValueError(
                f"{where}: a part is called '{stem}.<16 digits>.<ending>'; no "
                "other file is read."
            )
        data = _whole(where, read, name, listed.get("bytes"))
        if hashlib.sha256(data).hexdigest() != listed.get("sha256"):
            raise ValueError(
                f"{where}: the SHA-256 is not that of the manifest; the file is "
                "damaged, or another one."
            )
        parts[stem] = data
    return about, parts


def _files(place: str, about: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    files = about.get("files")
    if not isinstance(files, dict) or not all(
        isinstance(listed, dict) for listed in files.values()
    ):
        raise ValueError(f"{place}: no list of files.")
    return files


Read = Callable[[str, int], bytes]  # a name, and how many bytes at most


def _whole(place: str, read: Read, name: str, size: Any) -> bytes:
    if not isinstance(size, int) or size < 0:
        raise ValueError(f"{place}: a size of {size!r}.")
    data = read(name, size)
    if len(data) != size:
        raise ValueError(
            f"{place}: {len(data):,} bytes or more, the manifest says "
            f"{size:,}; it is cut off, or another one."
        )
    return data


def _manifest(place: str, read: Read) -> dict[str, Any]:
    data = read(MANIFEST, MOST)
    if len(data) > MOST:
        raise ValueError(f"{place}: more than {MOST:,} bytes.")
    try:
        about = json.loads(data)
        claimed = about.pop("sha256")
        right = claimed == _digest(about)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place}: no manifest: {error!r}.") from None
    except RecursionError:
        raise ValueError(f"{place}: no manifest: nested too deep.") from None
    if not right:
        raise ValueError(f"{place}: the text is not what its SHA-256 says.")
    return dict(about)


def _from_folder(call: str, path: Path) -> Read:
    def read(name: str, most: int) -> bytes:
        try:
            with open(path / name, "rb") as file:
                # One more, so that what is too long is seen. No more than that
                # is asked for than there is: the size may be a lie.
                size = os.fstat(file.fileno()).st_size
                return file.read(min(most + 1, size))
        except OSError as error:
            raise ValueError(
                f"`{call}`: '{path / name}' can't be read: {error.strerror}."
            ) from None

    return read


def _from_archive(call: str, path: Path) -> Read:
    place = f"`{call}`: '{path}'"

    def read(name: str, most: int) -> bytes:
        try:
            with zipfile.ZipFile(path) as archive:
                entry = archive.getinfo(name)
                packed = entry.compress_type != zipfile.ZIP_STORED
                if packed or entry.file_size != entry.compress_size:
                    raise ValueError("parts are stored and not compressed")
                if entry.file_size > path.stat().st_size:
                    raise ValueError("a part is larger than the archive")
                with archive.open(entry) as file:
                    return file.read(min(most, entry.file_size) + 1)
        except Exception as error:  # zipfile raises errors of many kinds
            raise ValueError(
                f"{place}: no archive with {name!r}: {error!r}."
            ) from None

    return read
