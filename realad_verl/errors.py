"""Errors that a user can act on. The command line prints them as one message, without a traceback."""

import difflib
from collections.abc import Iterable
from typing import Any


class UserError(ValueError):
    """A mistake in what the user gave (setting, file, model). The message names it, what is allowed, and the fix."""


def unknown_key(key: str, allowed: Iterable[str], where: str) -> UserError:
    """The error for a key that does not exist in ``where``; it names the nearest real key."""
    allowed = sorted(allowed)
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return UserError(f"unknown key '{key}' in {where}.{hint} Allowed: {', '.join(allowed)}.")


def bad_value(key: str, value: Any, allowed: str) -> UserError:
    """The error for a value outside what ``key`` allows."""
    return UserError(f"{key} = {value!r} is not allowed. Allowed: {allowed}.")
