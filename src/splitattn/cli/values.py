"""Checks that apply to every option."""

from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

from typer.core import TyperCommand

from splitattn.errors import InputError
from splitattn.files import as_on_disk


class Command(TyperCommand):
    """A verb that refuses empty values and numbers that are not finite.

    Paths get their accents composed as on the disk.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse `args` into the parameters of `ctx`.

        Raises:
            InputError: a value is empty, NaN or infinite.
        """
        # From the text, since Typer takes an empty path for the current folder.
        texts, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self._single():
            text = texts.get(parameter.name)
            if text == "" or (isinstance(text, list) and "" in text):
                raise InputError(
                    f"{_called(parameter)} must not be empty, got ''; is it a shell variable that "
                    "is not set?"
                )
        rest = super().parse_args(ctx, args)
        for parameter in self._single():
            value = ctx.params[parameter.name]
            if isinstance(value, float) and not isfinite(value):
                raise InputError(f"{_called(parameter)} must be a finite number, got {value}")
            if type(value) is str or isinstance(value, Path):
                found = as_on_disk(Path(value))
                ctx.params[parameter.name] = value if found == Path(value) else type(value)(found)
        return rest

    def _single(self) -> Iterator[Any]:
        """The options, and the arguments that are no lists of images or names."""
        return (parameter for parameter in self.params if parameter.nargs == 1)


def _called(parameter: Any) -> str:
    is_option = parameter.param_type_name == "option"
    return str(parameter.opts[0] if is_option else parameter.human_readable_name)
