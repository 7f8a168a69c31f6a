"""Storage: the results database: its tables, its migrations, and every SQL statement.

Functions of SQL take a ``Connection`` first; the caller owns the transaction (``Database.write()`` or ``.read()``).
Times come in as aware UTC datetimes. Modules are imported, not functions: ``leases.claim(connection, ...)``.
"""
