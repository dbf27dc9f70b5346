"""Arrays and a JSON header in one npz file: written atomically, read without pickle."""

from __future__ import annotations

import json
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


def write_archive(
    path: str | os.PathLike[str],
    file_format: str,
    header: dict[str, Any],
    arrays: dict[str, NDArray[Any]],
) -> None:
    """Write one compressed npz; an interrupted write leaves the old file as it was.

    Raises: TypeError for a header that JSON cannot hold; OSError where the file cannot be written.
    """
    text = np.array(json.dumps({"format": file_format, **header}))
    stored: dict[str, Any] = {"header": text, **arrays}
    path = Path(path)
    partial = path.with_name(path.name + ".part")
    with partial.open("wb") as file:
        np.savez_compressed(file, **stored)
    os.replace(partial, path)


def read_archive(
    path: str | os.PathLike[str], file_format: str
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The header and the arrays that ``write_archive`` wrote.

    Raises: ValueError for a damaged file or another format; OSError for an unreadable one.
    """
    try:
        with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        header = json.loads(str(arrays.pop("header")))
        found = header.pop("format")
    # np.load gives what is no npz as an array, or takes it for a pickle, or for a broken zip.
    except (ValueError, KeyError, TypeError, AttributeError, EOFError) as error:
        raise ValueError(f"{path} is not a {file_format} file ({error})") from None
    except (zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is a damaged {file_format} file ({error})") from None
    if found != file_format:
        raise ValueError(f"{path} must be a {file_format} file, got {found!r}")
    return header, arrays
