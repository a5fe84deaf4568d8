"""Overrides on the command line: which one Hydra's grammar does not take, and how to write it."""

import ast
import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from realad_verl.errors import UserError


def require_grammar(overrides: Sequence[str]) -> None:
    """Raise UserError naming the first of ``overrides`` that is not in Hydra's grammar, and the form that is."""
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(override)
        except HydraException as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"the override {override} is not in Hydra's grammar ({reason}). "
                f"Write: {' '.join(map(_in_shell, _rewritten(override, parser))) or 'KEY=VALUE, +KEY=VALUE or ~KEY'}"
            ) from None


def _rewritten(override: str, parser: OverridesParser) -> list[str]:
    """The same setting in Hydra's grammar: a nested mapping as dotted keys, any other value in quotes."""
    key, equals, value = override.partition("=")
    if not equals:
        return []
    found = list(_leaves(key, _literal(value)))
    forms = [f"{k}={_quoted(v) if isinstance(v, str) else json.dumps(v)}" for k, v in found or [(key, value)]]
    try:
        parser.parse_overrides(forms)
    except HydraException:
        return []  # the key itself is wrong
    return forms


def _in_shell(text: str) -> str:
    """``text`` as one word of a shell; double quotes where they do, since Hydra's own are single."""
    return f'"{text}"' if "'" in text and not set(text) & set('"$`\\!') else shlex.quote(text)


def _literal(value: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(value)
        except (ValueError, SyntaxError):
            continue
    return None


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(f"{key}.{name}", inner) if isinstance(inner, Mapping) else [(f"{key}.{name}", inner)]


def _quoted(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"
