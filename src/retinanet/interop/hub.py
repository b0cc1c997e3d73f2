"""A hub of models: a model folder is downloaded from it by name, and uploaded to it with its card.

Who one is there, the hub's own library knows (``HF_TOKEN``, or what ``hf auth login`` stored); no token passes through
this code, and none gets into a message.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from retinanet.card import CARD, write_card
from retinanet.errors import UserError
from retinanet.files import check_writable, write_folder
from retinanet.model.backbone import silence_hub
from retinanet.model_folder import read_model
from retinanet.options import explain_unknown_options
from retinanet.spec import CONFIG, TENSORS

REPOSITORY = re.compile(r"\w[\w.-]*/\w[\w.-]*")
REVISION = re.compile(r"\w[\w./-]*")
FILES = (CARD, CONFIG, TENSORS)  # what is uploaded, and nothing else


@dataclass(frozen=True)
class PushResult:
    """A model on a hub, or what would be there.

    Attributes:
        repository: ``owner/name``.
        revision: the commit, or the tag where one was given; None after a dry run.
        sizes: bytes by name of the file.
        folder: of a dry run.
    """

    repository: str
    revision: str | None
    sizes: dict[str, int]
    folder: Path | None = None

    def __str__(self) -> str:
        if self.folder is not None:
            return f"nothing was uploaded; what {self.repository} would hold is in {self.folder}"
        name = f"{self.repository}@{self.revision}"
        return f"{name}\nfind objects with it: retinanet predict {name} IMAGE"


@explain_unknown_options
def push(
    model: str,
    repository: str,
    *,
    license: str | None = None,
    reports: list[str] | None = None,
    private: bool = False,
    tag: str | None = None,
    dry_run: str | None = None,
) -> PushResult:
    """Upload a model to the Hugging Face hub: its two files and a card, README.md, made from what the folder knows.

    Nothing else of the folder is uploaded: no training state, no pictures, no results with paths of this machine. The
    card is written into the folder as well. Whose account it is, ``HF_TOKEN`` or ``hf auth login`` says.

    Args:
        model: a model folder.
        repository: owner/name on the hub; it is made if need be.
        license: under which you publish the model, as the hub spells it, such as apache-2.0 or cc-by-4.0; by default
            the one that the folder's card names, if any.
        reports: folders that ``evaluate``, ``diagnose`` and ``benchmark`` wrote of this model, for the card.
        private: make a new repository visible to its owner only.
        tag: name this state, so that owner/name@tag is always this model.
        dry_run: write what would be uploaded into this new folder, and ask no network.

    Raises:
        UserError: there is no whole model, a report is of another, a name is none, or the hub refuses.
    """
    folder = Path(model)
    _check(repository, license, tag, dry_run)
    read_model(folder)  # so that nothing damaged is published
    write_card(folder, repository=repository, license=license, reports=reports or ())
    sizes = {name: (folder / name).stat().st_size for name in FILES}
    left_out = sorted(set(os.listdir(folder)) - set(FILES))
    _say(f"{repository}: {', '.join(f'{name} {_format_size(size)}' for name, size in sizes.items())}")
    if left_out:
        _say(f"not uploaded: {', '.join(left_out)}")
    if license is None and "\nlicense: " not in (folder / CARD).read_text(encoding="utf-8"):
        _say("the card states no licence; --license names one")
    if dry_run is not None:
        with write_folder(Path(dry_run), replace=False) as draft:
            for name in FILES:
                shutil.copy(folder / name, draft / name)
        return PushResult(repository, None, sizes, Path(dry_run))
    return PushResult(repository, _upload(folder, repository, private, tag), sizes)


def _upload(folder: Path, repository: str, private: bool, tag: str | None) -> str:
    """The commit, or the tag of it."""
    from huggingface_hub import CommitOperationAdd, HfApi

    hub = HfApi()
    files = [CommitOperationAdd(name, folder / name) for name in FILES]
    try:
        with silence_hub():
            hub.create_repo(repository, private=private or None, exist_ok=True)
            commit = hub.create_commit(repository, files, commit_message="Upload a RetinaNet model").oid
    except Exception as error:
        raise UserError(
            f"{repository} could not be uploaded ({_explain(error)}). Check the name, the network, and that you are "
            "known to the hub: set HF_TOKEN to a token that may write, or: hf auth login"
        ) from None
    if tag is None:
        return commit
    try:
        with silence_hub():
            hub.create_tag(repository, tag=tag, revision=commit)
    except Exception as error:
        raise UserError(
            f"{repository}@{commit} is uploaded, but it could not be named {tag} ({_explain(error)}). A tag that "
            "is there already stays where it is: choose another --tag"
        ) from None
    return tag


def download(name: str) -> Path:
    """The local copy of a hub repository that holds a model folder, downloaded if need be.

    Args:
        name: ``owner/name``, or ``owner/name@revision`` for a branch, a tag or a commit.

    Raises:
        UserError: it cannot be had, or holds no model of this format.
    """
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    try:
        with silence_hub():
            folder = Path(snapshot_download(repository, revision=revision or None, allow_patterns=[CONFIG, TENSORS]))
    except Exception as error:  # the hub's library, its transport and the file system have dozens between them
        raise UserError(
            f"no model in {name}: it is no local folder, and as a hub repository it could not be fetched "
            f"({_explain(error)}). Check the name; without a network, copy its {CONFIG} and {TENSORS} "
            "into a folder and name that"
        ) from None
    if not os.path.isfile(folder / CONFIG):
        raise UserError(f"the hub repository {name} holds no {CONFIG}: it is no model of this package")
    return folder


def is_repository(name: str) -> bool:
    """Whether a name could be that of a hub repository, with or without a revision."""
    repository, at, revision = name.partition("@")
    return bool(REPOSITORY.fullmatch(repository) and (REVISION.fullmatch(revision) or not at))


def _check(repository: str, license: str | None, tag: str | None, dry_run: str | None) -> None:
    if not REPOSITORY.fullmatch(repository):
        raise UserError(f"repository {repository!r}: expected owner/name, such as me/cells; a revision is --tag")
    if license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", license):
        raise UserError(f"license {license!r}: expected the hub's spelling, such as apache-2.0, mit, cc-by-4.0, other")
    if tag is not None and not REVISION.fullmatch(tag):
        raise UserError(f"tag {tag!r}: expected letters, digits, dots and dashes, such as v1.0")
    if dry_run is not None:
        check_writable(Path(dry_run))
        if os.path.exists(dry_run) and (not os.path.isdir(dry_run) or os.listdir(dry_run)):
            raise UserError(f"--dry_run {dry_run}: expected a new or empty folder")


def _explain(error: Exception) -> str:
    """An error in a line, without the token, should a server repeat it."""
    from huggingface_hub import get_token

    text = " ".join(f"{type(error).__name__}: {error}".split())
    token = get_token()
    return text.replace(token, "...") if token else text


def _format_size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.1f} kB"


def _say(text: str) -> None:
    print(f"push: {text}", file=sys.stderr, flush=True)
