"""What the scripts that make pages write alike."""

import html
import re
from typing import Any


def made_by(command: str, source: str) -> str:
    """The first line of a page: what makes it, and what to edit in its place."""
    return f"<!-- Made by `{command}`. Edit {source}, and run it again. -->"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A bar would end the cell. Renderers differ in how one is written in code, but agree on HTML."""
    code = re.sub(r"`([^`]*\|[^`]*)`", lambda found: f"<code>{_as_html(found[1])}</code>", text)
    return code.replace("|", r"\|")


def _as_html(text: str) -> str:
    return html.escape(text, quote=False).replace("|", "&#124;")


def chosen_settings(settings: dict[str, Any]) -> str:
    """What tuning has changed of an arm, by the last part of each setting's name."""
    named = (f"{key.split('.')[-1]} {_plain(value)}" for key, value in settings.items())
    return ", ".join(named) or "as before"


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def between(text: str, name: str, made: str, page: str) -> str:
    """Return the text of a page with its table of this name as it was made."""
    opens = f"<!-- Made by docs/generate.py: {name}. -->"
    pattern = rf"(?<={re.escape(opens)}\n).*?(?=<!-- As far as here: {name}\. -->)"
    found, count = re.subn(pattern, lambda _: f"\n{made}\n\n", text, flags=re.DOTALL)
    if count != 1:
        raise ValueError(f"{page} has no place for its table of {name}")
    return found
