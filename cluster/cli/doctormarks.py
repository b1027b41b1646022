"""How findings look in a terminal."""

from __future__ import annotations

from rich.markup import escape

MARKS = {True: "[green]✓[/]", False: "[red]✗[/]"}


def mark(good: bool | None, fix: str) -> str:
    """Right, wrong, advice, or nothing to judge."""
    return MARKS[good] if good is not None else "[yellow]![/]" if fix else ""


def with_fix(text: str, fix: str) -> str:
    return escape(f"{text}; {fix}" if fix else text)
