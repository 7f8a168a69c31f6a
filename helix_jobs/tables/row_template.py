"""RowTemplate: fills templates in for rows, in jinja2's sandbox. Runs in ``render_process`` only, which has limits.

Templates see each column under its name, and all of them as ``row`` (``row["First name"]``). A missing column is an
error, never an empty text. A value that is None is written as nothing, as an empty cell of a CSV is.

What would differ from one reading to the next is taken away (``random``, ``lipsum``, ``strftime_now``): the same table
under the same idempotency key has to make the same batch.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

import jinja2
from jinja2 import StrictUndefined
from jinja2.utils import missing

from helix_jobs.engine.text.template_sandbox import sandbox
from helix_jobs.tables.columns import no_such_column

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

# Characters that a row's texts may have together, as many as a line of JSON may have bytes.
MAX_RENDERED_CHARS: Final = 4 * 1024 * 1024
_CHANGING: Final = (("filters", "random"), ("globals", "lipsum"), ("globals", "strftime_now"))
_MAX_WORDS: Final = 200
_TEMPLATE: Final = "<template>"


class RowRefusedError(Exception):
    """A row cannot be asked about.

    Attributes:
        field: The column, or the option whose template refuses it.
        reason: Why.
        remedy: What to do.
    """

    def __init__(self, field: str, reason: str, remedy: str) -> None:
        super().__init__(f"{field}: {reason}; {remedy}")
        self.field, self.reason, self.remedy = field, reason, remedy


class _MissingColumnError(jinja2.UndefinedError):
    """The template names a column that the row does not have."""

    def __init__(self, name: object, message: str) -> None:
        super().__init__(message)
        self.column = str(name)


class _AllColumns(dict[str, Any]):
    """The row as a template sees it under ``row``: what it lacks is a column."""


class _MissingColumn(StrictUndefined):
    """Carries the column's name into the error."""

    __slots__ = ()

    def __init__(
        self,
        hint: str | None = None,
        obj: Any = missing,  # noqa: ANN401  (jinja2's signature)
        name: str | None = None,
        exc: type[jinja2.TemplateRuntimeError] = jinja2.UndefinedError,
    ) -> None:
        is_column = exc is jinja2.UndefinedError and (obj is missing or isinstance(obj, _AllColumns))
        make: Callable[[str], Exception] = partial(_MissingColumnError, name) if is_column else exc
        super().__init__(hint, obj, name, make)  # type: ignore[arg-type]  # only called with a message


class RowTemplate:
    """The templates of one submission.

    Args:
        where: An expression that tells which rows count; None for all.
        texts: What becomes a line: a value whose texts are all templates; None where the row itself is the line.

    Raises:
        jinja2.TemplateSyntaxError: A template or the expression cannot be read.
    """

    def __init__(self, where: str | None, texts: object) -> None:
        environment = sandbox()
        environment.undefined = _MissingColumn
        environment.finalize = _written_form
        for place, name in _CHANGING:
            getattr(environment, place).pop(name, None)
        if where is not None:
            _refuse_self(environment, f"{{{{ {where} }}}}")
        self._where_takes_row = where is not None and _takes_row(environment, f"{{{{ {where} }}}}")
        self._fill_takes_row = _takes_row(environment, texts)
        self._where = None if where is None else environment.compile_expression(where, undefined_to_none=False)
        self._fill = _compiled(environment, texts)

    def keeps(self, values: Mapping[str, Any]) -> bool:
        """Whether the row counts.

        Raises:
            RowRefusedError: The expression fails on the row.
        """
        assert self._where is not None, "asked for with an expression only"
        where = self._where
        if self._where_takes_row:
            _refuse_column_row(values)
        # Passed as one mapping: a column may have the name of an argument, such as self.
        return bool(_asked("--where", values, lambda scope: bool(_called("--where", where(scope)))))

    def filled(self, values: Mapping[str, Any]) -> Any:  # noqa: ANN401  (of the shape of ``texts``)
        """The texts, filled in.

        Raises:
            RowRefusedError: A template fails on the row, or writes too much.
        """
        if self._fill_takes_row:
            _refuse_column_row(values)
        room = [MAX_RENDERED_CHARS]
        return _asked("template", values, lambda scope: self._fill(scope, room))


def _written_form(value: object) -> object:
    """A value as a template writes it."""
    return "" if value is None else _called("template", value)


def _called(what: str, value: object) -> object:
    """The value, unless it is a function that was to be called: its text would be Python's name for it.

    Raises:
        RowRefusedError: It is one.
    """
    if not callable(value) or isinstance(value, jinja2.Undefined):
        return value
    name = str(getattr(value, "__name__", "NAME"))
    raise RowRefusedError(what, f"gives the function {name}, not what it returns", f"call it: {name}()")


def _asked(what: str, values: Mapping[str, Any], ask: Callable[[dict[str, Any]], Any]) -> Any:  # noqa: ANN401
    scope = {**values, "row": _AllColumns(values)}
    try:
        return ask(scope)
    except RowRefusedError:
        raise
    except _MissingColumnError as error:
        remedy = f"{no_such_column(values, error.column)}; a template may test it: {{% if NAME is defined %}}"
        raise RowRefusedError(error.column, "is no column of the row", remedy) from error
    except jinja2.TemplateError as error:
        said = " ".join(str(error).split())[:_MAX_WORDS]
        raise RowRefusedError(what, f"refuses the row: {said}", "correct the row or the template") from error
    except MemoryError as error:
        raise RowRefusedError(what, "needs too much memory for the row", "simplify the template") from error
    except Exception as error:  # a template may raise any error, and its message may quote the row
        raise RowRefusedError(
            what,
            # jinja2 tells the line of a template, but not that of an expression: there it is its compiled form's.
            f"fails on the row{'' if what == '--where' else _place(error)} ({type(error).__name__})",
            "correct the template; cells of a CSV are text: write {{ NAME|int }} or {{ NAME|float }} for a number",
        ) from error


def _place(error: BaseException) -> str:
    """The template's line that failed, where it is known."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == _TEMPLATE:
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" in line {line}" if line else ""


def _compiled(environment: jinja2.Environment, texts: object) -> Callable[[dict[str, Any], list[int]], Any]:
    """A function that fills the texts of a value in, and keeps the value's shape."""
    if isinstance(texts, str):
        _refuse_self(environment, texts)
        template = environment.from_string(texts)
        return lambda scope, room: _written(template, scope, room)
    if isinstance(texts, list):
        parts = [_compiled(environment, item) for item in texts]
        return lambda scope, room: [part(scope, room) for part in parts]
    if isinstance(texts, dict):
        members = {name: _compiled(environment, item) for name, item in texts.items()}
        return lambda scope, room: {name: member(scope, room) for name, member in members.items()}
    return lambda _scope, _room: texts


def _refuse_self(environment: jinja2.Environment, text: str) -> None:
    """Refuse a template that names ``self``: jinja2 puts an object of its own in the place of such a column.

    Raises:
        jinja2.TemplateSyntaxError: It does.
    """
    for name in environment.parse(text).find_all(jinja2.nodes.Name):
        if name.name == "self":
            raise jinja2.TemplateSyntaxError("self is jinja2's own; a column of that name is row.self", name.lineno)


def _takes_row(environment: jinja2.Environment, texts: object) -> bool:
    """Whether a template takes ``row`` as a value, and not as the place of columns (``row.name``)."""
    if isinstance(texts, list):
        return any(_takes_row(environment, item) for item in texts)
    if isinstance(texts, dict):
        return any(_takes_row(environment, item) for item in texts.values())
    if not isinstance(texts, str):
        return False
    tree = environment.parse(texts)
    names = [name for name in tree.find_all(jinja2.nodes.Name) if name.name == "row"]
    places = {id(found.node) for found in tree.find_all(jinja2.nodes.Getattr)}
    places |= {id(found.node) for found in tree.find_all(jinja2.nodes.Getitem)}
    # A template may have a variable of that name for itself.
    return all(name.ctx == "load" for name in names) and any(id(name) not in places for name in names)


def _refuse_column_row(values: Mapping[str, Any]) -> None:
    """Refuse a row with a column called ``row``: a template that takes ``row`` would have all columns in its place.

    Raises:
        RowRefusedError: It has one.
    """
    if "row" in values:
        remedy = "write row.row for the column, or rename it with --select"
        raise RowRefusedError("row", "is all columns in a template, and not the column of that name", remedy)


def _written(template: jinja2.Template, scope: dict[str, Any], room: list[int]) -> str:
    pieces = []
    for piece in template.generate(scope):
        room[0] -= len(piece)
        if room[0] < 0:
            reason = f"writes more than {MAX_RENDERED_CHARS:,} characters for the row"
            raise RowRefusedError("template", reason, "shorten it, or the row")
        pieces.append(piece)
    return "".join(pieces)
