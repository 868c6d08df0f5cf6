"""Prose of the package and its pages: forms that plain English does not have, and what to write instead."""

import re
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "fedistill"

UNITS = (
    "bytes|bits|seconds|samples|labels|rows|logits|epochs|rounds|batches|images|symbols|classes|numbers"
    "|messages|frames|vectors|weights|steps|models|clients|levels|tables"
)
UNIT = (
    "byte|bit|second|sample|label|row|logit|epoch|round|batch|image|symbol|class|number|message|frame|vector"
    "|weight|loss|tensor|model|level|share"
)
EACH = (
    "round|client|class|sample|number|weight|message|batch|step|vector|row|element|pixel|hop|label|turn|line"
    "|model|tensor|method|update|image|node|site|arm|word|document"
)
VERBS = "has|have|had|may|gets|holds|sends|needs|can|uses|is|was|draws|that"
"""What follows where the article begins a clause: how many samples a client has."""


class Form(NamedTuple):
    """A banned form.

    Attributes:
        pattern: regular expression, without regard to case; a space stands for any gap, over lines too.
        instead: what to write.
        example: text that it finds.
    """

    pattern: str
    instead: str
    example: str


BANNED = [
    Form(
        rf"\b({UNITS}) an? ({EACH})\b(?! ({VERBS}))",
        '"per": bytes per round',
        "bits a sample",
    ),
    Form(rf"\b(an?|one|two|\d+) ({UNIT}) an? ({EACH})\b", '"per": one logit per class', "one logit a class"),
    Form(
        r"[;,(] ?(None|empty|absent|zeros|0): (it|there|none|no|nothing|nobody|not|the|all|as|one)\b",
        '"or None if …", "empty if …", "0 if …"',
        "the model; None: it has none",
    ),
    Form(r"\b(go|goes|going|went|gone) on (with|from)\b", '"resumes", "continues"', "goes on from round 3"),
    Form(r"\bgo on by: ", '"continue with: "', "go on by: fedistill resume"),
    Form(
        r"\bends? (up )?in the same bits\b",
        '"is bit-identical", "yields bit-identical results"',
        "it ends in the same bits",
    ),
    Form(r"^\W*is told\b", 'name the caller: "Called with …", "Receives …"', "Is told how a run goes on."),
    Form(
        r"\b(function|method|`\w+`|that|which) gives (an?|the|one|rows) ",
        '"returns"',
        "a function that gives one logit per class",
    ),
    Form(r"\bgives \(n", '"returns"', "it gives (n, C)"),
    Form(r"\bone's own\b", '"your own", "the client\'s own", "a custom"', "a model of one's own"),
    Form(r"\b(of|from|with|by) what came\b", '"the replies", "the values received"', "the mean of what came"),
    Form(r"\bwhat came\b(?=[,.;:)]| on\b| in\b)", '"the replies", "the values received"', "keeps what came."),
    Form(r"\bwhole (round|file|run|message|frame|table)s?\b", '"complete", "entire"', "the last whole round"),
    Form(r"\bhappens whole\b", '"completely or not at all"', "an exchange happens whole or not at all"),
    Form(r"\banew\b", '"again", "from scratch"', "the table is written anew"),
    Form(r"\bamiss\b", '"wrong"', "a file that was amiss"),
    Form(
        r"\b(against|of) nothing\b",
        'say what is missing: "without a reference", "an empty state"',
        "coded against nothing",
    ),
    Form(
        r"\bnobody (asks|was heard|answers|is familiar|replied)\b",
        '"no client", "not … by any …"',
        "None where nobody asks",
    ),
    Form(r"\bwas (not )?heard\b", '"replied", "did not reply"', "one that was not heard"),
    Form(
        r"\b(is|are) said (to|of|before|in|apart|about)\b",
        '"is reported", "is stated"',
        "what is said of a wrong one",
    ),
    Form(
        r"\b(side|message|table|row|byte|format|what it|frame) says? (of|that|how|which|what|\d)",
        '"holds", "states", "gives", "means"',
        "what a table says of each row",
    ),
    Form(r"\bwhat is said\b", '"what is sent", "the content"', "a method decides what is said"),
    Form(r"\b(speaks?|spoke) of\b", '"is about", "refers to", "covers"', "the rows that it speaks of"),
    Form(r"\b(is|are|was|were|has|have|be|then) learnt\b", '"learned"', "weights that are learnt"),
    Form(r"\bforetells?\b", '"predict", "estimate"', "to foretell how long it is"),
    Form(r"\bin vain\b", '"without effect"', "they sent in vain"),
    Form(r"\bmend(s|ed|ing)?\b", '"fix"', "what a user can mend"),
    Form(
        r"\bso many (bits|bytes|rounds|numbers|columns|local|groups|samples|training|scales)\b",
        '"this many", "at most N"',
        "at most so many groups",
    ),
    Form(r"\ba text (in|that|without|of|or)\b", '"text", "a string"', "must be a text in quotes"),
    Form(r"\btruth values?\b", '"boolean"', "texts, truth values, None"),
    Form(r"\bdealt out\b", '"assigned", "distributed"', "dealt out in turn"),
    Form(r"\bwhoever (was|is|came) (first|away)\b", '"regardless of who …"', "whoever was first"),
    Form(r"\bhow (sure|sureness)\b|\bsureness\b", '"confidence", "confident"', "how sure it is"),
    Form(r"\b(likeliest|the likest)\b", '"most likely"', "the likeliest class"),
    Form(r"\bfor (no|the) bytes\b", '"without sending anything"', "both draw the same, for no bytes"),
    Form(r"\bas long as one likes\b|\bas one likes\b", '"to any depth", "as needed"', "as deep as one likes"),
]
NOT_BANNED = [
    "how many samples a client has",
    "which public samples a round uses",
    "a row of zeros",
    "must be a whole number",
    "None of them are used",
    "def f(x: int | None) -> None:\n    '''The loop.'''",
    "bytes per round",
    "an arm says nothing",
    "for a round and a client",
]


def rooms() -> dict[str, list[Path]]:
    """Files with prose: by the first folder below the package, or beside it by their own name."""
    found: dict[str, list[Path]] = {
        "README.md": [ROOT / "README.md"],
        "CHANGELOG.md": [ROOT / "CHANGELOG.md"],
    }
    for path in sorted((ROOT / "docs").rglob("*.md")):
        generated = path.parent.name == "methods"
        found.setdefault("docs/methods" if generated else "docs", []).append(path)
    found["examples"] = sorted((ROOT / "examples").rglob("*.toml"))
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.relative_to(PACKAGE).parts[0], []).append(path)
    return found


def complaints(text: str) -> list[tuple[int, str, str]]:
    """Line, phrase and what to write instead, of every banned form.

    Code is searched with the prose in it: it has none of these phrases.
    """
    # Quotes and number signs are where a string or a comment goes on in the next line.
    prose = re.sub(r"""\bf(?=["'])|["#]""", " ", text)
    found = []
    for form in BANNED:
        pattern = form.pattern.replace(" ", r"\s+")
        for match in re.finditer(pattern, prose, re.IGNORECASE | re.MULTILINE):
            line = prose.count("\n", 0, match.start()) + 1
            found.append((line, " ".join(match[0].split()), form.instead))
    return sorted(found)


@pytest.mark.parametrize("room", rooms())
def test_no_banned_form_is_used(room: str) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {phrase!r}: write {instead}"
        for path in rooms()[room]
        for line, phrase, instead in complaints(path.read_text(encoding="utf-8"))
    ]
    assert not found, "\n".join(["", *found])


@pytest.mark.parametrize("form", BANNED, ids=lambda form: form.example)
def test_each_form_finds_its_example(form: Form) -> None:
    """Also where it goes on in the next line of a comment or of a message."""
    for text in (form.example, form.example.replace(" ", "\n    # "), form.example.replace(" ", ' "\n f"')):
        assert form.instead in {instead for _, _, instead in complaints(text)}, text


@pytest.mark.parametrize("text", NOT_BANNED)
def test_plain_english_is_left_alone(text: str) -> None:
    assert complaints(text) == []
