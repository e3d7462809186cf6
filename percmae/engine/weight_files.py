"""What a file of weights is, told by its content whatever its name, and the tensors in it.

Read are safetensors and torch's archives, gzip'ed or not, with a state dict at the top or under one
of the keys that training codes put it under. Anything else is told by what it is: a pointer or a
web page that was saved in a file's place, an archive, another tool's format.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import safetensors.torch
from torch import Tensor

from percmae.engine.checkpoint import first_line, torch_dict
from percmae.errors import CheckpointError

# Keys that state dicts are found under, those of this project first; of several the first is taken.
HOLDERS = (
    *("networks", "generator"),
    *("state_dict", "model_state_dict", "model", "module"),
    *("teacher", "model_ema", "state_dict_ema", "ema", "student"),
)
OFFICIAL = "model"  # of the MAE authors' files: nothing to remark on
# A compressed file may hold this many times its size, and at least as many bytes as any test has.
MOST_EXPANSION, ALWAYS_EXPANDED = 16, 1 << 30
LONGEST_SAFETENSORS_HEADER = 100_000_000  # as the format has it


class FileContent(NamedTuple):
    """The tensors of a file by name, and what there is to say of how they were found."""

    tensors: dict[str, Tensor]
    remarks: list[str]


def tensors_in(data: bytes, what: str, fix: str) -> FileContent:
    """The tensors in a file's content; no code in it is run.

    Raises CheckpointError, naming ``what``, for anything but weights; ``fix`` says how to get a
    damaged file whole.
    """
    remarks = []
    if data[:2] == b"\x1f\x8b" and not _is_safetensors(data):
        data = _gunzipped(data, what, fix)
        remarks.append("unpacked by gzip")
    if _is_safetensors(data):
        return FileContent(_safetensors(data, what, fix), remarks)
    if found := _something_else(data):
        raise CheckpointError(f"{what}: {found}")
    if data[:2] == b"PK" and not zipfile.is_zipfile(io.BytesIO(data)):
        raise CheckpointError(f"{what}: a torch archive that is cut off or damaged; {fix}")
    tensors, held = _state_dict(torch_dict(data, what, fix), what)
    return FileContent(tensors, remarks + held)


def _gunzipped(data: bytes, what: str, fix: str) -> bytes:
    most = max(ALWAYS_EXPANDED, MOST_EXPANSION * len(data))
    # 16 asks for gzip's header. Members may follow one another.
    whole, rest = bytearray(), data
    try:
        while rest:
            stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
            whole += stream.decompress(rest, most + 1 - len(whole))
            if len(whole) > most:
                raise CheckpointError(f"{what}: expands to more than {most:,} bytes; unpack it")
            if not stream.eof:
                raise CheckpointError(f"{what}: a gzip file that is cut off; {fix}")
            rest = stream.unused_data.lstrip(b"\0")
    except zlib.error as error:
        raise CheckpointError(f"{what}: a damaged gzip file ({error}); {fix}") from None
    return bytes(whole)


def _is_safetensors(data: bytes) -> bool:
    """A length of 8 bytes and a JSON object."""
    return data[8:9] == b"{" and int.from_bytes(data[:8], "little") < LONGEST_SAFETENSORS_HEADER


def _safetensors(data: bytes, what: str, fix: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load(data)
    except Exception as error:
        # Damaged bytes make the parser raise whatever it stumbles over.
        raise CheckpointError(
            f"{what}: a safetensors file that is damaged or cut off ({first_line(error)}); {fix}"
        ) from None


def _something_else(data: bytes) -> str | None:
    """What the content is and what to do, where it is not weights."""
    if not data:
        return "the file is empty; fetch it again"
    if not any(data):
        return "holds nothing but zeros, as a download that has not ended may; fetch it again"
    for magic, name in _OTHERS.items():
        if data.startswith(magic):
            return f"{name}; give its weights as a torch or safetensors file"
    if data[257:262] == b"ustar":
        return "a tar archive; unpack it and give the file in it"
    if data[:4] == b"PK\3\4":
        return _in_zip(data)
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if _is_text(head[:256]):
        return _in_text(head)
    if data[:1] != b"\x80" and data[:2] != b"PK":
        return f"neither safetensors nor a torch archive: it begins with {data[:8].hex(' ')}"
    return None


def _in_text(head: bytes) -> str:
    """What a text is that lies in the place of weights."""
    lower = head[:200].lower()
    if head.startswith(b"version https://git-lfs"):
        return (
            "a Git LFS pointer in place of the file; run `git lfs pull` in its repository, or "
            "download the file itself"
        )
    if lower.startswith((b"<!doctype html", b"<html", b"<head")):
        return (
            "a web page (HTML) in place of the file; download from the address that gives the "
            "file itself (of a model hub /resolve/ or /raw/, not /blob/)"
        )
    if lower.startswith(b"<"):
        code = re.search(rb"<Code>\s*(\w+)", head)
        told = f" ({code[1].decode()})" if code else ""
        return f"an XML answer{told} in place of the file, as a store gives one; fetch it again"
    if b'"weight_map"' in head:
        return "the index of a safetensors file in parts; join them to one file"
    return f"a text that begins {head[:40].decode(errors='replace')!r}, not weights"


_OTHERS = {
    b"\x89HDF": "an HDF5 file (Keras, TensorFlow)",
    b"\x93NUMPY": "a NumPy array",
    b"GGUF": "a GGUF file",
    b"\xfd7zXZ": "a file compressed by xz",
    b"\x28\xb5\x2f\xfd": "a file compressed by zstd",
    b"BZh": "a file compressed by bzip2",
    b"7z\xbc\xaf": "a 7z archive",
}


def _in_zip(data: bytes) -> str | None:
    """What a zip archive is, where it is not torch's."""
    try:
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    except (zipfile.BadZipFile, ValueError, OSError):
        return None
    if any(name.endswith("/constants.pkl") for name in names):
        return "a TorchScript archive; save the model's state_dict() with torch.save"
    if any(name.endswith("data.pkl") for name in names):
        return None
    if names and all(name.endswith(".npy") for name in names):
        return "a NumPy archive (npz); give its weights as a torch or safetensors file"
    return "a zip archive; unpack it and give the file in it"


def _is_text(head: bytes) -> bool:
    try:
        return head.decode(errors="strict").replace("\n", "").replace("\t", "").isprintable()
    except UnicodeDecodeError as error:
        # A letter may be cut in two where the piece ends.
        return error.start >= len(head) - 3 and _is_text(head[: error.start])


def _state_dict(state: Mapping[str, Any], what: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a checkpoint, and what there is to say of where they were."""
    held: list[str] = []
    beside: list[str] = []
    while not _is_state_dict(state):
        found = [key for key in HOLDERS if _holds_tensors(state.get(key))]
        if not found:
            raise CheckpointError(
                f"{what}: expected a state dict of tensors, or a run; it holds {_listed(state)}"
            )
        held.append(found[0])
        beside += found[1:]
        state = state[found[0]]
    if beside or held not in ([], [OFFICIAL], ["networks", "generator"]):
        left = f", not {', '.join(beside)}" if beside else ""
        return dict(state), [f"the weights under {'.'.join(held)}{left}"]
    return dict(state), []


def _is_state_dict(state: Mapping[str, Any]) -> bool:
    return bool(state) and all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    )


def _holds_tensors(value: Any) -> bool:
    """Whether it is a state dict, or has one below it."""
    if not isinstance(value, Mapping):
        return False
    return _is_state_dict(value) or any(_holds_tensors(value.get(key)) for key in HOLDERS)


def _listed(state: Mapping[str, Any]) -> str:
    if not state:
        return "nothing"
    names = [f"{key} ({type(value).__name__})" for key, value in list(state.items())[:3]]
    more = f" and {len(state) - 3} more" if len(state) > 3 else ""
    return ", ".join(names) + more
