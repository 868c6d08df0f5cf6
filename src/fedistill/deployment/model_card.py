"""README.md of a saved model: what it is, how well it does, and how it is used, with fedistill or without."""

import re
import shlex

from fedistill.config.units import format_bytes
from fedistill.data.record_encoding import LIMIT
from fedistill.deployment.description import (
    FILE,
    TOKENIZER,
    WEIGHTS,
    Description,
    ImagePreprocessing,
    TablePreprocessing,
    TextPreprocessing,
)
from fedistill.models.registry import is_own

_FOLDERS = re.compile(r"""(^|(?<=[="',\[\s])|(?<=hf:))(~|\.\.?|[A-Za-z]:)?[\\/]([^"',\[\]]*[\\/])?""")
"""The folders of a path that begins with one of this machine, alone or in a setting."""


def without_folders(text: str) -> str:
    """Return a path, or a setting with paths, with the last part of each alone: folders are of one machine.

    Examples:
        >>> without_folders("/data/my articles.csv"), without_folders("hf:owner/name")
        ('my articles.csv', 'hf:owner/name')
        >>> without_folders("hf:./models/my-bert(lora=4)")
        'hf:my-bert(lora=4)'
        >>> without_folders('task.train=["/data/a.csv", "../b.csv"]')
        'task.train=["a.csv", "b.csv"]'
    """
    return _FOLDERS.sub("", text)


def portable_command(command: str) -> str:
    """Return a command without the folders of its paths.

    Examples:
        >>> portable_command("fedistill compare /home/me/exp.toml --set task.train=/data/a.csv --out ../run")
        'fedistill compare exp.toml --set task.train=a.csv --out run'
    """
    parts = shlex.split(command)
    without = list(map(without_folders, parts))
    return command if without == parts else shlex.join(without)


def model_card(description: Description) -> str:
    """Return the card as Markdown, in English."""
    origin = description.origin
    title = {"server": "The server's model", "client": f"The model of {_client(description)}"}.get(
        origin.role, f"A model of the clients ({description.architecture.name})"
    )
    parts = [
        _front_matter(description),
        f"# {title}: {origin.task}",
        f"Trained by fedistill {description.version}, which trains models across clients that keep their"
        " data.",
        _table([*_facts(description), *_measured(description)]),
        f"Made by: `{origin.command}`" if origin.command else "",
        "## Classes",
        "In the order of the outputs: " + ", ".join(f"`{name}`" for name in description.classes) + ".",
        "## Use",
        _use(description),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _client(description: Description) -> str:
    origin = description.origin
    return f"client {origin.client}" + (f" ({origin.site})" if origin.site else "")


def _front_matter(description: Description) -> str:
    kind = None if description.signature is None else description.signature.kind
    task = {
        "image": "image-classification",
        "text": "text-classification",
        "table": "tabular-classification",
    }.get(kind or "")
    lines = ["library_name: fedistill", *([f"pipeline_tag: {task}"] if task else [])]
    return "\n".join(["---", *lines, "tags:", "- federated-learning", "- knowledge-distillation", "---"])


def _facts(description: Description) -> list[tuple[str, str]]:
    origin = description.origin
    complete = (
        "" if origin.round == origin.rounds else ": the last complete round of a run that was not finished"
    )
    return [
        ("task", f"{origin.task}, {len(description.classes)} classes"),
        ("architecture", f"`{description.architecture.name}`, {origin.parameters:,} trained parameters"),
        ("method", f"`{origin.method}`, codec `{origin.codec}`, arm `{origin.arm}`"),
        ("seed", str(origin.seed)),
        ("rounds", f"{origin.round} of {origin.rounds}{complete}"),
    ]


def _measured(description: Description) -> list[tuple[str, str]]:
    origin = description.origin
    rows = []
    if origin.accuracy is not None:
        rows.append(("accuracy of this model", f"{origin.accuracy:.2%} on the task's test set"))
    rows += [(f"accuracy, `{view}`", f"{value:.2%}") for view, value in origin.views.items()]
    sent = {
        "up": origin.bytes_up,
        "down": origin.bytes_down,
        "set-up": origin.bytes_setup,
        "public set": origin.bytes_public,
    }
    known = [f"{format_bytes(count)} {what}" for what, count in sent.items() if count is not None]
    return [*rows, *([("sent, all clients", ", ".join(known))] if known else [])]


def _table(rows: list[tuple[str, str]]) -> str:
    cells = [f"| {name} | {_cell(value)} |" for name, value in rows]
    return "\n".join(["| | |", "| --- | --- |", *cells])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _use(description: Description) -> str:
    if description.signature is None:
        return (
            f"This network takes features of the clients' models, not samples. `{WEIGHTS}` has its weights,"
            " under PyTorch's names."
        )
    signature = description.signature
    samples = {"image": "images", "text": "texts", "table": "data_frame"}[signature.kind]
    parts = [
        "With fedistill, where this folder is `DIR`:",
        "```console\n$ fedistill predict DIR FILE --out predictions.csv\n```",
        "```python\nimport fedistill\n\n"
        f'model = fedistill.load_model("DIR")\nprobabilities = model.predict({samples})\n```',
        f"Without it: `{WEIGHTS}` has the weights under PyTorch's names, and `{FILE}` has what this page"
        f" states in a form for programs. The network takes {_inputs(description)}",
    ]
    recipe = description.architecture.hf
    if recipe is not None:
        parts.append(
            f"The network is built by transformers (`{recipe.config.get('model_type')}`): `{FILE}` has its"
            " configuration, and `fedistill export DIR FILE --hf FOLDER` writes it as transformers reads it."
        )
    if is_own(description.architecture.name):
        module, _, function = description.architecture.name.partition(":")
        parts.append(
            f"The network is what the function `{function}` of the Python module `{module}` returns, which is"
            " not in this folder."
        )
    return "\n\n".join(parts)


def _inputs(description: Description) -> str:
    """Return the preprocessing in words, as the end of a sentence and more."""
    signature, preprocessing = description.signature, description.preprocessing
    assert signature is not None
    shape = ", ".join(map(str, signature.shape))
    ends = f"and returns one logit for each class: {signature.classes} per sample."
    if isinstance(preprocessing, ImagePreprocessing):
        colours = {1: "grey", 3: "RGB"}.get(signature.shape[0], "")
        return (
            f"float32 {colours} images of the shape (n, {shape}), `(pixel - {preprocessing.mean}) /"
            f" {preprocessing.std}` of pixels from 0 to 255, {ends}"
        )
    if isinstance(preprocessing, TablePreprocessing):
        return (
            f"float32 rows of the shape (n, {shape}), {ends} In `preprocessing.encoding` of `{FILE}` are the"
            " columns in order. Of each under `numeric` comes `(value - mean) / std`, cut at"
            f" {LIMIT:g} and -{LIMIT:g}, or 0 where the value is missing; then, for those with `missing`, 1"
            " where it is and else 0; then, of each under `categorical`, a number for each of its"
            " `categories` and, with `missing`, for a missing value: 1 for that of the row, 0 for others."
        )
    assert isinstance(preprocessing, TextPreprocessing)
    words = (
        "Words are those of Unicode (UAX #29, by ICU) in lower case and normal form NFC, as"
        " `fedistill.data.text.words_of` finds them"
    )
    how = {
        "hashed": f"{words}; the id of a word is its CRC-32, modulo {preprocessing.buckets}, plus 1.",
        "unicode": f"{words}; joined by U+001F, they are what `{TOKENIZER}` takes.",
        "tokenizer": f"They are those of `{TOKENIZER}`"
        + (", plus 1 where they are not padding." if preprocessing.shift else "."),
    }[preprocessing.words]
    wordless = "empty" if preprocessing.words == "hashed" else "unknown"
    return (
        f"int64 token ids of the shape (n, {shape}), the first {preprocessing.length} of a text, padded with"
        f" 0, {ends} {how} Texts without a word become one {wordless} word."
    )
