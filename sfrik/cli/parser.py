"""The parser of the command line: flags in groups, a short help and a complete one, errors in one line."""

from __future__ import annotations

import argparse
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sfrik.errors import SfrikError, nearest
from sfrik.system.terminal import UNBROKEN, terminal_width

__all__ = ["CHOICE", "Parser"]

# Two flags for folders, and what they are.
MEANING = {"--exp-dir": "the folder of one run", "--results": "the root folder of all runs"}
ROOT_OR_RUN = dict(zip(MEANING, reversed(MEANING), strict=True))
CHOICE = "NAME"  # the value of a flag that takes one of several names, which its help lists


class _HelpFormatter(argparse.HelpFormatter):
    """Adds the default of a flag to its help, if it has one, and shows the values of a flag once.

    Attributes:
        brief: whether the help of a flag, except a choice, ends at its first semicolon.
    """

    brief = False

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, max_help_position=25, **keywords)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        return f"{', '.join(action.option_strings)} {self._format_args(action, action.dest.upper())}"

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        text = super()._format_args(action, default_metavar)
        return f"{text.split()[0]} ..." if action.nargs == "+" else text

    def _get_help_string(self, action: argparse.Action) -> str:
        text, start, default = (action.help or "").partition(" (default: ")
        default = f"{start.lstrip()}{default}"
        text = text.split("; ")[0] if self.brief and action.metavar != CHOICE else text
        if not default and action.default not in (None, "", False, argparse.SUPPRESS):
            default = "(default: %(default)s)"
        return f"{text} {default.replace(' ', UNBROKEN)}".rstrip()

    def _split_lines(self, text: str, width: int) -> list[str]:
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        return [line.replace(UNBROKEN, " ") for line in lines]

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(f"{indent}{line}" for line in self._split_lines(text, width - len(indent)))


class _HelpAll(argparse.Action):
    """`--help-all`: prints the help with all flags."""

    def __call__(self, parser, namespace, values, option_string=None):
        assert isinstance(parser, Parser)
        parser._print_message(parser.format_help(everything=True), sys.stdout)
        parser.exit()


class Parser(argparse.ArgumentParser):
    """argparse with groups of commands and flags, flags in two spellings, one-line errors, and no abbreviations.

    `--epoch` does not stand for `--epochs`; `--data_dir` is `--data-dir`.

    Attributes:
        examples: command lines for the end of the help.
        commands: the names of the commands by the title of their group, for the list of commands.
        further: the flags, by the names of their values, that only `--help-all` shows.
    """

    def __init__(
        self, examples: Iterable[str] = (), commands: Mapping[str, Sequence[str]] | None = None, **arguments: Any
    ) -> None:
        super().__init__(allow_abbrev=False, formatter_class=_HelpFormatter, add_help=False, **arguments)
        self.examples, self.commands, self.further = list(examples), commands or {}, set[str]()
        self._positionals.title = "arguments"
        self._helps: list[argparse.Action] = [
            self.add_argument("-h", "--help", action="help", help="show this help"),
            self.add_argument("--help-all", action=_HelpAll, nargs=0, default=argparse.SUPPRESS, help="show all flags"),
        ]

    def group(self, title: str) -> argparse._ArgumentGroup:
        """The group of flags with this title; a new one if there is none."""
        return next((group for group in self._action_groups if group.title == title), None) or self.add_argument_group(title)

    def error(self, message: str):
        missing = re.fullmatch("the following arguments are required: (.*)", message)
        raise SfrikError(f"{f'{missing[1]} must be given' if missing else message}: see {self.prog} --help")

    def parse_known_args(self, args=None, namespace=None):
        assert args is not None  # main passes them
        ends = args.index("--") if "--" in args else len(args)
        args = [*map(self._hyphens, args[:ends]), *args[ends:]]
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [flag for flag in self._option_string_actions if flag.startswith("--")]
            flag = unknown[0].split("=")[0]
            if (other := ROOT_OR_RUN.get(flag.replace("_", "-"))) in known:
                raise SfrikError(f"unknown argument {unknown[0]}: {self.prog} has {other}, {MEANING[other]}")
            if "_" in flag:  # as it was typed
                known = [f"--{name[2:].replace('-', '_')}" for name in known]
            recipe = " (a recipe is given by --recipe)" if "--recipe" in known and not flag.startswith("-") else ""
            raise SfrikError(f"unknown argument {unknown[0]}{recipe or nearest(flag, known)}: see {self.prog} --help")
        return namespace, unknown

    def _hyphens(self, argument: str) -> str:
        """A flag of this parser in its spelling with hyphens; any other argument is returned unchanged."""
        flag = re.match(r"--\w[^=]*", argument)
        spelled = flag[0].replace("_", "-") if flag else ""
        return spelled + argument[len(spelled) :] if spelled in self._option_string_actions else argument

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if isinstance(action, argparse._SubParsersAction) and value not in action.choices:
            raise SfrikError(f"unknown command {value!r:.100}{nearest(value, action.choices)}: see {self.prog} --help")
        super()._check_value(action, value)

    def format_help(self, everything: bool = False) -> str:
        """The help, at most two screens of 40 lines; all flags with `everything`."""
        formatter = self._get_formatter()
        assert isinstance(formatter, _HelpFormatter)
        formatter.brief = bool(self.further) and not everything
        formatter.add_usage(self._usage(formatter), [], [])
        formatter.add_text(self.description)
        for title, actions in self._sections(everything):
            formatter.start_section(title)
            formatter.add_arguments(actions)
            formatter.end_section()
        examples = "".join(f"  {line}\n" for example in self.examples for line in _command_lines(example, terminal_width() - 4))
        return formatter.format_help() + (f"\nexamples:\n{examples}" if examples else "")

    def _usage(self, formatter: argparse.HelpFormatter) -> str:
        """The usage line, with positional arguments and required flags only."""
        words = [self.prog]
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                words.append(str(action.metavar))
            elif action.required or not action.option_strings:
                words += [*action.option_strings[:1], formatter._format_args(action, action.dest.upper())]
        return " ".join([*words, "[FLAGS]"])

    def _sections(self, everything: bool) -> Iterable[tuple[str | None, list[argparse.Action]]]:
        """The titles and entries of the help. The flags without a group are last among settings, else first."""
        positional, optional, *groups = self._action_groups
        for group in (positional, *groups, optional) if self.further else (positional, optional, *groups):
            actions = [action for action in group._group_actions if everything or action.dest not in self.further]
            if group is optional:
                shown = self._helps if self.further and not everything else self._helps[:1]
                actions = [*(action for action in actions if action not in self._helps), *shown]
            for action in actions:
                if isinstance(action, argparse._SubParsersAction):
                    listed = {entry.dest: entry for entry in action._get_subactions()}
                    yield from ((title, [listed[name] for name in names]) for title, names in self.commands.items())
            yield group.title, [action for action in actions if not isinstance(action, argparse._SubParsersAction)]


def _command_lines(command: str, width: int) -> list[str]:
    """A command line, continued on lines of its own where it is longer than the width."""
    words = re.sub(r"(--\S+) (?!-)", rf"\1{UNBROKEN}", command)
    lines = textwrap.wrap(words, width - 2, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)
    return [*(f"{line} \\".replace(UNBROKEN, " ") for line in lines[:-1]), lines[-1].replace(UNBROKEN, " ")]
