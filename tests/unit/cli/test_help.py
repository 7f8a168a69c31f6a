from __future__ import annotations

import re

import click
import pytest

from helix_jobs.cli.group import EXIT_CODES, cli


def all_commands():
    context = click.Context(cli)
    found = {(): cli}
    for name in cli.list_commands(context):
        command = cli.get_command(context, name)
        found[(name,)] = command
        if isinstance(command, click.Group):
            found |= {(name, sub): command.commands[sub] for sub in command.commands}
    return found


COMMANDS = all_commands()
LEAVES = {path: command for path, command in COMMANDS.items() if not isinstance(command, click.Group)}


def test_the_promised_commands_are_there():
    promised = {"submit", "status", "list", "watch", "results", "cancel", "retry", "worker"}
    assert {(name,) for name in promised} | {("db", "upgrade"), ("db", "current")} <= set(LEAVES)


@pytest.mark.parametrize("path", COMMANDS, ids=" ".join)
def test_every_command_and_option_says_what_it_does(path, helix):
    command = COMMANDS[path]
    assert command.help
    assert not command.get_short_help_str(60).endswith("..."), "give it a short_help"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.opts
            assert re.match(r".*[.)\]]$", parameter.help), f"{parameter.opts}: end the help with a full stop"
    for flag in ("--help", "-h"):
        result = helix(*path, flag)
        assert result.exit_code == 0
        assert result.output.startswith("Usage:")


@pytest.mark.parametrize("path", LEAVES, ids=" ".join)
def test_every_command_takes_json_and_log_level(path):
    options = {option for parameter in LEAVES[path].params for option in parameter.opts}
    assert {"--json", "--log-level"} <= options


def test_exit_codes_are_documented(helix):
    text = " ".join(helix("--help").output.split())
    assert all(f" {code} {meaning} " in f"{text} " for code, meaning in EXIT_CODES.items())


def test_version(helix):
    assert re.fullmatch(r"helix \d+\.\d+\.\d+\n", helix("--version").output)
