"""Statements whose text is made once for each kind of database, for what every change waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, CursorResult, Delete, Insert, Select, Update

_Parameters = list[tuple[str, Callable[[Any], Any] | None]]
"""Names in the order of the text, each with what turns its value into one of the database."""


class Prepared:
    """A statement with a ready text: SQLAlchemy takes longer to make it anew than SQLite takes to run it."""

    def __init__(self, statement: Insert | Update | Delete | Select[Any], *names: str) -> None:
        """Prepare *statement*; *names* are the columns that an INSERT fills."""
        self._statement = statement
        self._names = names
        self._texts: dict[str, tuple[str, _Parameters]] = {}

    def execute(self, connection: Connection, *rows: Mapping[str, Any]) -> CursorResult[Any]:
        """Run it once for each of *rows*; what it finds is as the database has it (JSON may be text)."""
        if len(rows) > 1:  # SQLAlchemy sends many rows at once
            return connection.execute(self._statement, rows)
        text, parameters = self._texts.get(connection.dialect.name) or self._compile(connection)
        (row,) = rows
        values = tuple(row[name] if to is None else to(row[name]) for name, to in parameters)
        return connection.exec_driver_sql(text, values)

    def _compile(self, connection: Connection) -> tuple[str, _Parameters]:
        dialect = connection.dialect
        compiled: Any = self._statement.compile(dialect=dialect, column_keys=list(self._names) or None)
        types = {name: compiled.binds[name].type.dialect_impl(dialect) for name in compiled.positiontup}
        made = str(compiled), [(name, types[name].bind_processor(dialect)) for name in compiled.positiontup]
        self._texts[dialect.name] = made
        return made
