"""What the scripts that make pages write alike."""


def made_by(command: str, source: str) -> str:
    """The first line of a page: what makes it, and what to edit in its place."""
    return f"<!-- Made by `{command}`. Edit {source}, and run it again. -->"


def table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table of Markdown."""
    lines = [heads, tuple("---" for _ in heads), *rows]
    return "\n".join("| " + " | ".join(_cell(cell) for cell in line) + " |" for line in lines)


def _cell(text: str) -> str:
    """A bar would end the cell, in code too; a backslash before it is taken away in both."""
    return text.replace("|", r"\|")
