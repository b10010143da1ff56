"""Folders and the Hugging Face Hub: the only importer of huggingface_hub, which is loaded when it is needed."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import ArgumentError, HubError, NotFoundError
from .version import __version__

__all__ = ["model_card", "push", "resolve"]

FILES = ("config.json", "tokenizer.json", "model.safetensors", "README.md")
"""What is fetched and pushed; training.pt never is."""

_REPO_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*")
_LIMITS = (
    "It says what its training photos have taught it to say, and is often wrong about numbers, colours, written text, "
    "people and whatever is rare in its data. Don't rely on it where a mistake can hurt somebody."
)


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    local_files_only: bool = False,
) -> Path:
    """The folder of a captioner: the given one if it exists, else the Hub's, fetched into its cache.

    Example:
        >>> resolve(".")
        PosixPath('.')

    Args:
        source: a folder, or a Hub id, "user/name".
        revision: branch, tag or commit of the Hub's repository; default: its main branch.
        token: the Hub token, True for the stored one, False for none; default: the stored one if there is one.
        local_files_only: take what is in the cache and never ask the network.

    Raises:
        NotFoundError: no such folder, repository or revision, or nothing in the cache.
        HubError: the Hub can't be reached or refuses.
        ArgumentError: a revision of a folder.
    """
    if not isinstance(source, str | os.PathLike):
        raise ArgumentError(f"a captioner is named by a folder or a Hub id, not {type(source).__name__}")
    text = os.fspath(source)
    path = Path(text).expanduser()
    if text and os.path.exists(path):  # noqa: PTH110 - False, not an error, for names that no file can have
        if revision is not None:
            raise ArgumentError(
                f"{text} is a folder here and has no revisions; leave revision= out, or start where there is no such "
                "folder to get the Hub's repository of that name"
            )
        return path
    if not isinstance(source, str) or not _REPO_ID.fullmatch(text) or len(text) > 200:
        raise NotFoundError(f"there is no folder {text!r:.300}; a repository of the Hub is named like 'user/name'")

    import huggingface_hub

    with _said_plainly(text, revision, local_only=local_files_only):
        folder = huggingface_hub.snapshot_download(
            text,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            allow_patterns=list(FILES),
            library_name="showtell",
            library_version=__version__,
        )
    return Path(folder)


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    commit_message: str = "Upload a showtell captioner",
) -> str:
    """Upload a saved captioner to the Hub and return the address of its repository.

    The repository, and the branch `revision`, are made if absent; only config.json, tokenizer.json, model.safetensors
    and README.md are uploaded. `private` is for a new repository; default: as the account says. `tag` names this
    upload for good, "v1.0" say, to load it by (`revision="v1.0"`); a tag that is there is refused once the files are
    uploaded. `token` is as for `resolve`.

    Raises:
        ArgumentError: `repo_id` isn't "name" or "user/name".
        HubError: the Hub can't be reached or refuses.
        NotFoundError: the folder holds no captioner.
    """
    if not isinstance(repo_id, str) or not re.fullmatch(r"[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)?", repo_id):
        raise ArgumentError(f"a repository of the Hub is named like 'user/name', not {repo_id!r:.200}")
    if tag is not None and not (isinstance(tag, str) and re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", tag)):
        raise ArgumentError(
            f"a tag is a short name such as 'v1.0', of letters, digits, '.', '_' and '-', not {tag!r:.120}"
        )
    card = Path(folder) / FILES[3]
    if card.is_file() and b"library_name: showtell" not in card.read_bytes():
        raise ArgumentError(f"{card} is no model card of showtell; move it away, or save the captioner anew")
    missing = [name for name in FILES[:3] if not (Path(folder) / name).is_file()]
    if missing:
        raise NotFoundError(f"{folder} holds no saved captioner: {', '.join(missing)} missing")

    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="showtell", library_version=__version__)
    with _said_plainly(repo_id, revision, local_only=False):
        repository = api.create_repo(repo_id, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repository.repo_id, branch=revision, exist_ok=True)
        uploaded = api.upload_folder(
            repo_id=repository.repo_id,
            folder_path=Path(folder),
            revision=revision,
            commit_message=commit_message,
            allow_patterns=list(FILES),
        )
        if tag is not None:
            api.create_tag(repository.repo_id, tag=tag, revision=uploaded.oid)
    return str(repository)


@contextmanager
def _said_plainly(repo_id: str, revision: str | None, *, local_only: bool) -> Iterator[None]:
    """Turn what huggingface_hub raises into our errors."""
    from huggingface_hub import errors

    # The base of its HTTP errors is also that of connection errors, in whichever HTTP library it uses. Its downloader
    # hf_xet raises RuntimeError or, newer, an error of its own; an answer that isn't the Hub's ends in the other two.
    network: tuple[type[BaseException], ...] = (
        OSError,
        RuntimeError,
        ValueError,
        KeyError,
        errors.EntryNotFoundError,
        *errors.HfHubHTTPError.__bases__,
        getattr(errors, "XetDownloadError", RuntimeError),
    )
    at = f" at revision {revision!r:.100}" if revision else ""
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"the Hub's repository {repo_id!r} is gated: ask for access on its page, then log in "
            "(hf auth login) or pass token="
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise NotFoundError(
            f"there is no folder {repo_id!r} here and the Hub has no repository of that name that you may see; check "
            "the name, or for a private one log in (hf auth login) or pass token="
        ) from error
    except errors.RevisionNotFoundError as error:
        raise NotFoundError(f"the Hub's repository {repo_id!r} has no revision {revision!r:.100}") from error
    except errors.LocalEntryNotFoundError as error:
        if local_only or isinstance(error.__cause__, errors.OfflineModeIsEnabled):
            raise NotFoundError(
                f"{repo_id!r}{at} isn't in the cache, and the network isn't to be used (local_files_only or "
                "HF_HUB_OFFLINE); fetch it once while online"
            ) from error
        cause = error.__cause__ or error
        raise HubError(
            f"{repo_id!r}{at} isn't in the cache, and the Hub can't be reached or refuses ({_short(cause)}); "
            "check the network and try again; if a folder was meant, there is none of that name here"
        ) from error
    except errors.OfflineModeIsEnabled as error:
        raise HubError("the Hub can't be used while HF_HUB_OFFLINE is set; unset it") from error
    except errors.LocalTokenNotFoundError as error:
        raise HubError("no Hub token is stored on this machine; log in first: hf auth login") from error
    except errors.HFValidationError as error:
        raise ArgumentError(f"{repo_id!r} can't be a repository of the Hub: {_short(error)}") from error
    except network as error:
        raise HubError(
            f"the Hub can't be reached or refuses, for {repo_id!r}{at}: {_short(error)}; check the network and that "
            "your token may do this"
        ) from error


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text:.300}"


def _yaml(value: object) -> str:
    """JSON is YAML but for a few characters, which YAML wants escaped."""
    text = json.dumps(value, ensure_ascii=False)
    return re.sub("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def model_card(
    *,
    title: str,
    repo_id: str | None = None,
    license: str | None = None,  # noqa: A002 - the Hub's word
    languages: Sequence[str] = ("en",),
    datasets: Sequence[str] = (),
    data: str | None = None,
    scores: Mapping[str, float] | None = None,
    search: str | None = None,
    signature: str | None = None,
    limits: str = _LIMITS,
) -> str:
    """The text of README.md: facts for the Hub's catalogue, how to use the captioner, its data, scores and limits.

    Example:
        >>> card = model_card(title="Dogs", license="apache-2.0", scores={"BLEU-4": 0.2134}, search="beam:3")
        >>> print(card.split("---")[1].strip())
        library_name: showtell
        pipeline_tag: image-to-text
        language: ["en"]
        license: "apache-2.0"
        tags: ["image-captioning"]
        >>> "| BLEU-4 | 0.213 |" in card
        True

    Args:
        title: the heading.
        repo_id: the Hub id, for the example of use.
        license: as the Hub spells it, "apache-2.0" or "other" for instance.
        languages: two-letter codes.
        datasets: Hub ids of datasets.
        data: a paragraph on the data it was trained on.
        scores: metric -> value.
        search: how the scored captions were found, "beam:3".
        signature: what the scores depend on, `str(evaluation.signature)`; it is shown below them.
        limits: a paragraph on what it can't do.

    The same arguments give the same text.
    """
    facts: dict[str, object] = {"language": list(languages), "license": license, "datasets": list(datasets)}
    facts["tags"] = ["image-captioning"]
    front = [f"{key}: {_yaml(value)}" for key, value in facts.items() if value]
    parts = [
        "\n".join(["---", "library_name: showtell", "pipeline_tag: image-to-text", *front, "---"]),
        f"# {' '.join(title.split())}",
        "An image captioner: photo in, sentence out. Made with showtell (`pip install showtell`).",
        "## Use",
        "```python\nfrom showtell import Captioner\n\n"
        f'captioner = Captioner.from_pretrained("{repo_id or "path/to/this/folder"}")\n'
        'print(captioner.caption("photo.jpg"))\n```',
    ]
    if data:
        parts += ["## Data", data.strip()]
    if scores:
        table = ["| metric | value |", "|---|---|", *(f"| {name} | {value:.3f} |" for name, value in scores.items())]
        parts += ["## Scores", *([f"Captions found with `{search}`."] if search else []), "\n".join(table)]
        if signature:
            parts.append(f"Signature, to compare with scores that have the same one: `{signature}`")
    parts += ["## Limits", limits.strip()]
    return "\n\n".join(parts) + "\n"
