"""Why a Hugging Face hub did not give what was asked of it, and what the reader can do about that."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

_LOG_IN = "log in by `hf auth login` or set HF_TOKEN"
_UNAUTHORIZED, _SERVER_ERROR = 401, 500


@dataclass(frozen=True)
class Denial:
    """What a hub answered.

    Attributes:
        reason: one line, without a full stop.
        fix: what to do; None where nothing better is known than to bring the files another way.
    """

    reason: str
    fix: str | None = None


def denial_of(error: BaseException, name: str, kind: Literal["model", "dataset"] = "model") -> Denial:
    """Explain why something was not downloaded.

    Where the error does not tell, the hub is asked once more: the reader of data sets reports all refusals
    alike.

    Args:
        error: of huggingface_hub, or of a library that uses it.
        name: OWNER/NAME, followed by @REVISION or not.
    """
    return _explained(error, name, kind) or _asked_again(name, kind) or Denial(_line(error))


def _asked_again(name: str, kind: Literal["model", "dataset"]) -> Denial | None:
    import huggingface_hub

    try:
        huggingface_hub.HfApi().auth_check(name.partition("@")[0], repo_type=kind)
    except Exception as error:  # the hub client's errors have no common base class
        return _explained(error, name, kind)
    return None


def _explained(error: BaseException, name: str, kind: Literal["model", "dataset"]) -> Denial | None:
    """Return what an error of the hub client means; None: neither it nor one of its causes is known."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    place, _, revision = name.partition("@")
    page = f"{hub}/{'' if kind == 'model' else 'datasets/'}{place}"
    what = "model" if kind == "model" else "data set"
    for one in _causes(error):
        if isinstance(one, errors.OfflineModeIsEnabled):
            return Denial("the variable HF_HUB_OFFLINE forbids downloads")
        if isinstance(one, errors.GatedRepoError):
            return Denial(
                f"{hub} gives it only to those whom its owner has let in",
                f"ask for access at {page}, then {_LOG_IN}",
            )
        if isinstance(one, errors.RevisionNotFoundError):
            return Denial(
                f"{hub} has {place}, but no revision {revision!r} of it",
                f"take a branch, tag or commit that {page}/tree/main lists",
            )
        answer = one.response if isinstance(one, errors.HfHubHTTPError) else None
        status = 0 if answer is None else answer.status_code
        if answer is not None and status == _UNAUTHORIZED and "authorization" in answer.request.headers:
            return Denial(
                f"{hub} does not accept your token",
                "log in again by `hf auth login`, or correct or unset HF_TOKEN",
            )
        if status == _UNAUTHORIZED or isinstance(one, errors.RepositoryNotFoundError):
            # To those who have not logged in, hubs do not tell whether a private repository is there.
            return Denial(
                f"{hub} has no {what} {place} that you may read",
                f"check the name, and if it is a private one, {_LOG_IN}",
            )
        if status >= _SERVER_ERROR:
            return Denial(f"{hub} has a fault of its own: {_line(one)}")
        if _is_of_the_network(one):
            return Denial(f"{hub} cannot be reached: {_line(one)}")
    return None


def _is_of_the_network(error: BaseException) -> bool:
    # Earlier clients use requests, which fedistill does not depend on, and later ones httpx.
    names = {kind.__name__ for kind in type(error).__mro__}
    library = type(error).__module__.partition(".")[0]
    return library in ("httpx", "requests") and bool(
        names & {"TransportError", "ConnectionError", "Timeout", "TooManyRedirects"}
    )


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
