"""Every command of the command line, by the words that call it."""

from __future__ import annotations

import click

from helix_jobs.cli.group import cli


def _all_commands() -> dict[tuple[str, ...], click.Command]:
    context = click.Context(cli)
    leaves: dict[tuple[str, ...], click.Command] = {}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            leaves |= {(name, inner): command.commands[inner] for inner in command.commands}
        else:
            leaves[(name,)] = command
    return leaves


COMMANDS = _all_commands()
