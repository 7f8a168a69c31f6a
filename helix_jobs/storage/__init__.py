"""Storage: the results database: its tables, its migrations, and every SQL statement."""
