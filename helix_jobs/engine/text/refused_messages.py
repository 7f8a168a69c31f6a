"""RefusedMessagesError: a chat that the model's template cannot render."""


class RefusedMessagesError(Exception):
    """The template makes no prompt from these messages; the error's message says why."""
