"""The results database: its tables, its migrations, and every SQL statement.

Functions that run SQL take a ``Connection`` first; the caller owns the transaction (``Database.write()`` or
``.read()``). Times come in as aware UTC datetimes. Callers import modules, not functions:
``claims.claim(connection, ...)``.
"""
