"""One file a family: how its configuration and its weights' names become a ``ModelDescription``."""
