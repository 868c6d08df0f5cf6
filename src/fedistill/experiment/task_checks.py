"""Checks of a task before a run: its sites, its classes, the words of its texts, and contradicting labels."""

import unicodedata
from collections.abc import Sequence
from hashlib import blake2b

import torch
from torch import Tensor

from fedistill.data.partition import leave_out_setting
from fedistill.data.task import Task
from fedistill.experiment.findings import Finding, Level
from fedistill.federation.arm import ReadyArm
from fedistill.models import registry as models
from fedistill.models.signature import Preprocessing

MANY_UNKNOWN = 0.5
"""Share of unknown words from which a warning is due.

A vocabulary from 400 BBC articles does not know 8 % of the words in others; one from texts of another
language hardly knows any.
"""
MANY_OF_ONE_CLASS = 0.9
"""Share of one class in the test set from which accuracy says little."""
_FAIR = {"balanced-accuracy", "macro-f1", "auroc"}
"""Metrics in which a rare class counts as much as a frequent one."""
_MANY_UNKNOWN_CATEGORIES = 0.05
"""Share of unknown categories from which a warning is due: a row has few, where a text has many words."""
_MOST_SHOWN = 20
_MANY_CONFLICTS = 0.01
"""Share of samples with contradicting labels from which they are more than a few copies with wrong labels."""


def check_task(task: Task, arms: Sequence[ReadyArm]) -> list[Finding]:
    """Return what is to be known of the data, as the models of these arms take them."""
    return [
        *_sites(task),
        *_own_tests(task),
        *_labels(task),
        *_alike_classes(task),
        *_imbalance(task, arms[0].evaluate.metrics if arms else []),
        *_clients(task),
        *_words(task, arms),
        *_columns(task),
        *_conflicts(task),
    ]


def _labels(task: Task) -> list[Finding]:
    """Find classes that are only in private data, only in the test set, or in neither."""
    private = task.class_counts().sum(dim=0)
    tested = torch.bincount(task.test.labels, minlength=len(task.classes))
    public = torch.zeros_like(tested)
    if task.public_labels is not None:
        public = torch.bincount(task.public_labels, minlength=len(task.classes))
    single = (private + tested + public) == 1
    findings = []
    for mask, what, fix in (
        (
            (private == 0) & (tested > 0),
            "no client holds any sample of {}, but the test set does",
            "make task.partition more even, or raise task.limit",
        ),
        (
            (private > 0) & (tested == 0),
            "clients hold samples of {}, but the test set has none",
            "give task.test data of all classes, or raise task.test_share",
        ),
        (
            (private == 0) & (tested == 0),
            "neither the clients nor the test set have any sample of {}",
            "add samples",
        ),
    ):
        if several := _named(task, mask & ~single):
            findings.append(
                Finding(
                    "warning", "task", what.format(several), f"{fix}, or {_leave_out(task, mask & ~single)}"
                )
            )
        if one := _named(task, mask & single):
            rare = f"{what.format(one)}; one sample cannot be on both sides"
            findings.append(
                Finding("warning", "task", rare, f"add samples, or {_leave_out(task, mask & single)}")
            )
    return findings


def _leave_out(task: Task, mask: Tensor) -> str:
    names = [task.classes[place] for place in mask.nonzero().flatten().tolist()]
    return f"leave them out: {leave_out_setting(names)}"


def _sites(task: Task) -> list[Finding]:
    """Name the clients of a partition by sites, and the sites that take no part."""
    findings = []
    if task.client_names:
        sizes = zip(task.client_names, task.samples(), strict=True)
        what = f"{len(task.client_names)} clients: " + _shown([f"{name!r} ({size})" for name, size in sizes])
        findings.append(Finding("fact", "task.partition", what))
    if beyond := [site for site in task.absent if site.private]:
        names = _shown([f"{site.name!r} ({site.private} samples)" for site in beyond])
        fix = f"raise task.clients to {len(task.client_names) + len(beyond)}, or leave it out"
        findings.append(Finding("warning", "task.clients", f"these sites take no part: {names}", fix))
    if gone := [site for site in task.absent if not site.private]:
        names = _shown([f"{site.name!r} ({site.samples} samples)" for site in gone])
        what = f"these sites take no part, since no sample of theirs is private: {names}"
        fix = "lower task.public or task.test_share, raise task.limit, or give task.test data of its own"
        findings.append(Finding("warning", "task.partition", what, fix))
    if task.unused:
        what = f"{task.unused} private samples belong to no client"
        findings.append(Finding("fact", "task.partition", what))
    return findings


def _own_tests(task: Task) -> list[Finding]:
    """Say how many samples clients hold out of their own, and name those that have too few to do so."""
    if not task.own_tests:
        return []
    sizes = [len(data) for data in task.own_tests]
    names = [repr(name) for name in task.client_names] or [f"client {number}" for number in range(len(sizes))]
    findings = []
    if any(sizes):
        least, most = min(filter(None, sizes)), max(sizes)
        each = str(most) if least == most else f"{least} to {most}"
        what = (
            f"{sum(map(bool, sizes))} of {len(sizes)} clients hold out {each} samples of their own to test on"
        )
        findings.append(Finding("fact", "task.own_test_share", what))
    if none := [
        f"{name} ({own})" for name, own, held in zip(names, task.samples(), sizes, strict=True) if not held
    ]:
        what = f"too few samples to hold out any: {_shown(none)}; the views @own leave them out"
        fix = "raise task.own_test_share, or set it to 0 if no client should hold out any"
        findings.append(Finding("warning", "task.own_test_share", what, fix))
    return findings


def _imbalance(task: Task, metrics: Sequence[str]) -> list[Finding]:
    """Find a class so frequent that accuracy says little, unless another metric is asked for that does."""
    counts = torch.bincount(task.test.labels, minlength=len(task.classes))
    share = float(counts.max() / counts.sum())
    if share <= MANY_OF_ONE_CLASS or not _FAIR.isdisjoint(metrics):
        return []
    what = (
        f"{share:.1%} of the test samples are of class {task.classes[int(counts.argmax())]!r}, and whoever"
        " always names it is as accurate as that"
    )
    asked = ", ".join(f'"{name}"' for name in dict.fromkeys([*metrics, "balanced-accuracy"]))
    return [Finding("warning", "task", what, f"set evaluate.metrics = [{asked}] and look at that")]


def _alike_classes(task: Task) -> list[Finding]:
    """Find classes whose names differ only in spaces, capitals, or how characters are composed."""
    by_word: dict[str, list[str]] = {}
    for name in task.classes:
        word = " ".join(unicodedata.normalize("NFKC", name).casefold().split())
        by_word.setdefault(word, []).append(name)
    alike = [names for names in by_word.values() if len(names) > 1]
    if not alike:
        return []
    shown = _shown([" and ".join(map(repr, names)) for names in alike])
    fix = (
        "if they are one class, write it in one way in the file, or map one name to the other in task.relabel"
    )
    return [
        Finding("warning", "task", f"{shown} are different classes, though their names hardly differ", fix)
    ]


def _shown(items: Sequence[str]) -> str:
    more = len(items) - _MOST_SHOWN
    return ", ".join(items[:_MOST_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _words(task: Task, arms: Sequence[ReadyArm]) -> list[Finding]:
    """Say which share of the words that models read is unknown to their tokenizers."""
    if task.signature.kind != "text":
        return []
    names = [name for arm in arms for name in (*arm.config.models.clients, arm.config.models.server)]
    by_tokenizer = {models.preprocessing(name): name for name in reversed(names)}
    findings = []
    for wanted, name in by_tokenizer.items():
        share = task.unknown_share(wanted)
        if share is None:
            continue
        where = "task.text" if wanted == Preprocessing() else f"model {name!r}"
        what = f"{share:.1%} of the words in private texts are unknown to the tokenizer"
        if share < MANY_UNKNOWN:
            findings.append(Finding("fact", where, what))
            continue
        fix = "take public texts of the same language and kind, more of them, or a tokenizer.json"
        findings.append(Finding("warning", where, what, fix))
    return findings


def _columns(task: Task) -> list[Finding]:
    """Say which columns of a table are inputs, which are not and why, and what the encoding does not know."""
    encoding = task.record_encoding()
    if encoding is None:
        return []
    marked = sum(one.missing for one in encoding.numeric)
    parts = [
        f"{len(encoding.numeric)} numeric columns ({marked} of them with missing values)",
        "categorical ones: "
        + (_shown([f"{one.name!r} ({len(one.categories)})" for one in encoding.categorical]) or "none"),
    ]
    if task.left_out:
        reasons = _shown([f"{name!r} ({why})" for name, why in task.left_out.items()])
        parts.append(f"left out: {reasons}")
    how = "sums that clients share" if task.column_sums else "the public set"
    what = f"a row is {encoding.width} inputs, scaled by {how}; {'; '.join(parts)}"
    findings = [Finding("fact", "task.table", what)]
    share = task.unknown_categories
    if share:
        unknown = f"{share:.1%} of the categories in private rows are unknown to the encoding"
        fix = 'enlarge the public set, or set task.table.scaling = "sums"'
        level: Level = "warning" if share >= _MANY_UNKNOWN_CATEGORIES else "fact"
        findings.append(Finding(level, "task.table", unknown, fix if level == "warning" else ""))
    return findings


def _conflicts(task: Task) -> list[Finding]:
    """Find inputs that are equal, as models see them, while their labels differ: nobody can learn both.

    Equal texts are those with equal token ids of the task's own tokenizer, cut at `task.text.length`.
    """
    parts = [
        *(
            (task.client_inputs(client, Preprocessing()), data.labels)
            for client, data in enumerate(task.clients)
        ),
        (task.test_inputs(Preprocessing()), task.test.labels),
    ]
    labels_by_input: dict[bytes, dict[int, int]] = {}
    for inputs, labels in parts:
        for row, label in zip(inputs.numpy(), labels.tolist(), strict=True):
            counts = labels_by_input.setdefault(blake2b(row.tobytes(), digest_size=16).digest(), {})
            counts[label] = counts.get(label, 0) + 1
    count = sum(sum(counts.values()) for counts in labels_by_input.values() if len(counts) > 1)
    if not count:
        return []
    total = sum(len(labels) for _, labels in parts)
    what = f"{count} of {total} samples ({count / total:.1%}) have the same input as one with another label"
    fix = "look for copies with wrong labels, or inputs that differ only in what is cut off or not told apart"
    # Of few columns, equal rows with unlike labels are no mistake.
    many = count >= _MANY_CONFLICTS * total and task.signature.kind != "table"
    level: Level = "warning" if many else "fact"
    return [Finding(level, "task", what, fix)]


def label_skew(task: Task) -> float:
    """Return how far the clients' label shares are from those of all samples, 0 to 1.

    It is the mean over clients of the total variation distance, half the sum of absolute differences: the
    share of a client's samples that would need another label to be distributed like everyone's.
    """
    counts = task.class_counts().double()
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    overall = counts.sum(dim=0) / counts.sum().clamp(min=1)
    return float((shares - overall).abs().sum(dim=1).mean() / 2)


def _named(task: Task, mask: Tensor) -> str:
    return ", ".join(repr(task.classes[place]) for place in mask.nonzero().flatten().tolist())


def _clients(task: Task) -> list[Finding]:
    empty = [client for client, data in enumerate(task.clients) if len(data) == 0]
    if not empty:
        return []
    shown = ", ".join(map(str, empty[:5])) + (" …" if len(empty) > 5 else "")
    fix = "lower task.clients, or set task.partition.min_samples"
    return [Finding("error", "task", f"clients without samples: {shown}", fix)]
