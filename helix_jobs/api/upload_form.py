"""UploadForm: the form of an upload (RFC 7578), read piece by piece. Pure; it holds no part of the file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from helix_jobs.api.problems import Problem
from helix_jobs.wording import data_size

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FILE_FIELD: Final = "file"
_FIELDS: Final = frozenset({"purpose", "expires_after[anchor]", "expires_after[seconds]"})
_MAX_VALUE_BYTES: Final = 1024
_MAX_NAME_CHARS: Final = 255
_NO_NAME: Final = "upload"


class UploadForm:
    """Reads ``multipart/form-data``.

    Args:
        content_type: The request's header, with the boundary.
        max_bytes: The most bytes of the file.

    Attributes:
        fields: The fields beside the file, by name.
        filename: The file's name, made fit to be shown and stored; None until the file has begun.
        size: Bytes of the file so far.

    Raises:
        Problem: The header is not that of a form.
    """

    def __init__(self, content_type: str, max_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary:
            raise Problem(415, "the body is no form by its Content-Type; send multipart/form-data", code="content_type")
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.size = 0
        self._max_bytes = max_bytes
        self._pieces: list[bytes] = []
        self._header_name = self._header_value = self._value = b""
        self._disposition = b""
        self._field = ""
        self._ended = False
        callbacks: MultipartCallbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": self._add_header_name,
            "on_header_value": self._add_header_value,
            "on_header_end": self._end_header,
            "on_headers_finished": self._begin_content,
            "on_part_data": self._add_content,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _malformed(error) from error

    def feed(self, data: bytes) -> bytes:
        """Read the next piece of the body; returns what of it belongs to the file.

        Raises:
            Problem: The form is malformed, has a field that is not taken, or its file is too large.
        """
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _malformed(error) from error
        found, self._pieces = b"".join(self._pieces), []
        return found

    def finish(self) -> None:
        """The body has ended.

        Raises:
            Problem: The form has not, or it has no file, or an empty one.
        """
        if not self._ended:
            raise Problem(400, "the form is cut off; send it whole", code="invalid_request")
        if self.filename is None:
            raise Problem(400, "file: is missing; send the file in the form", param="file", code="invalid_request")
        if not self.size:
            raise Problem(400, "file: is empty; send a file with lines", param="file", code="invalid_request")

    def _begin_part(self) -> None:
        self._disposition = self._value = b""

    def _add_header_name(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]  # the parser limits a header's length

    def _add_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _end_header(self) -> None:
        if self._header_name.lower() == b"content-disposition":
            self._disposition = self._header_value
        self._header_name = self._header_value = b""

    def _begin_content(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode(errors="replace")
        if self._field == FILE_FIELD:
            if self.filename is not None:
                raise Problem(
                    400, "file: stands twice in the form; send one file", param="file", code="invalid_request"
                )
            self.filename = fit_name(options.get(b"filename", b"").decode(errors="replace"))
        elif self._field not in _FIELDS or self._field in self.fields:
            reason = "stands twice in the form" if self._field in self.fields else "is not a field that is taken here"
            name = fit_name(self._field)[:80]
            raise Problem(400, f"{name}: {reason}; remove it", param=name, code="invalid_request")

    def _add_content(self, data: bytes, start: int, end: int) -> None:
        if self._field == FILE_FIELD:
            self.size += end - start
            if self.size > self._max_bytes:
                raise file_too_large(self._max_bytes)
            self._pieces.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MAX_VALUE_BYTES:
            raise Problem(400, f"{self._field}: is too long; shorten it", param=self._field, code="invalid_request")

    def _end_part(self) -> None:
        if self._field != FILE_FIELD:
            self.fields[self._field] = self._value.decode(errors="replace")

    def _end(self) -> None:
        self._ended = True


def fit_name(name: str) -> str:
    """A name from a form without folders and without characters that do not print. It is never used as a path."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1].strip()
    shown = "".join(character if character.isprintable() else "_" for character in last[:_MAX_NAME_CHARS])
    return shown or _NO_NAME


def file_too_large(limit: int) -> Problem:
    """The refusal of a file over the limit."""
    return Problem(
        413,
        f"file: is larger than {data_size(limit)}; split it into several, or set HELIX_MAX_UPLOAD_MB for the server",
        param="file",
        code="too_large",
    )


def _malformed(error: FormParserError) -> Problem:
    return Problem(400, f"the form is malformed ({type(error).__name__}); send it again", code="invalid_request")
