"""ZIP archives from outside, spreadsheets and documents among them: looked through before a library unpacks them."""

from __future__ import annotations

import io
import zipfile
import zlib

_PIECE = 1024 * 1024
_LOCAL = 30
"""Bytes of a member's own header before its name."""


class ArchiveTooLargeError(Exception):
    """It would unpack to more than is allowed."""


def look_through(data: bytes, most: int) -> list[str]:
    """The names of an archive's members. It unpacks to ``most`` bytes at most, whatever its headers claim: each member
    is unpacked once, piece by piece, because libraries unpack a member whole before they believe its size.

    Raises:
        ArchiveTooLargeError: if it is larger.
        zipfile.BadZipFile: if it is no archive, or a member is another size than it says, or packed as Office never
            does.
    """
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = archive.infolist()
    if sum(member.file_size for member in members) > most:
        raise ArchiveTooLargeError
    for member in members:
        if _size(data, member) != member.file_size:
            raise zipfile.BadZipFile("another size than it says")
    return [member.filename for member in members]


def _size(data: bytes, member: zipfile.ZipInfo) -> int:
    """Bytes of a member, unpacked; counting ends soon after those that it claims."""
    header = data[member.header_offset : member.header_offset + _LOCAL]
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    start = member.header_offset + _LOCAL + name + extra
    packed = memoryview(data)[start : start + member.compress_size]
    if member.compress_type == zipfile.ZIP_STORED:
        return len(packed)
    if member.compress_type != zipfile.ZIP_DEFLATED:
        raise zipfile.BadZipFile("packed in another way")
    unpacking, size, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, bytes(packed)
    try:
        while not unpacking.eof and size <= member.file_size:
            piece = unpacking.decompress(rest, _PIECE)
            if not piece and not unpacking.eof:
                raise zipfile.BadZipFile("cut short")
            size, rest = size + len(piece), unpacking.unconsumed_tail
    except zlib.error as error:
        raise zipfile.BadZipFile("damaged") from error
    return size
