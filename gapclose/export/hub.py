"""Upload verified exports to the hub, only if configured, and private by default."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, RepositoryNotFoundError

from gapclose.core.files import read_json
from gapclose.core.logging import get_logger

logger = get_logger(__name__)

STALE = [
    "*.safetensors",
    "*.safetensors.index.json",
    "vllm/*",
    "monitor/*",
    "evidence.json",
    "left_out.json",
    "serving.json",
    "verified.json",
]
"""files that an earlier push may have left in a repository"""


def check_push() -> None:
    """Raises: ValueError when this process may not use the network."""
    if huggingface_hub.is_offline_mode():
        raise ValueError(
            "export.push needs the network, and HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set; leave it out, and upload a finished run "
            "from where there is one with `gapclose export --config FILE --export.push OWNER/NAME`"
        )


def push(directory: Path, wanted: Sequence[str], name: str, *, private: bool) -> list[str]:
    """Upload the exports in ``directory`` to the hub.

    ``adapter`` goes to the repository ``name``, ``merged`` and ``omni`` to ``name-merged`` and
    ``name-omni``.

    Weights and evidence of an earlier push that this one does not replace are deleted, because they
    would be taken for its own.

    Args:
        wanted: exports to upload: ``adapter``, ``merged``, ``omni``.

    Returns:
        The addresses of the repositories.

    Raises:
        ValueError: when an export is not verified, a repository is public although ``private`` is
            set, or the hub refuses.
    """
    check_push()
    path = directory / "adapter" / "verified.json"
    unproven = sorted(set(wanted) - set(read_json(path) if path.is_file() else {}))
    if unproven:
        raise ValueError(f"{directory}: {', '.join(unproven)} is not verified, so nothing was uploaded; set export.verify true")
    api, found = huggingface_hub.HfApi(), []
    repositories = {kind: name if kind == "adapter" else f"{name}-{kind}" for kind in wanted}
    try:
        for repository in repositories.values():  # check all of them before the first upload
            _refuse_public(api, repository, private)
        for kind, repository in repositories.items():
            api.create_repo(repository, repo_type="model", private=private, exist_ok=True)
            folder, message = directory / kind, f"gapclose: {kind}"
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message=message, delete_patterns=STALE)
            found.append(f"https://huggingface.co/{repository}")
            logger.info(f"uploaded {directory / kind} to {found[-1]} ({'private' if private else 'public'})")
    except (HfHubHTTPError, LocalTokenNotFoundError, OSError) as error:
        done = f" ({', '.join(found)} went through)" if found else ""
        raise ValueError(
            f"{directory}: the hub did not take the upload to {name}{done}: {error}\n`hf auth login` logs in; the exports are whole, and "
            "`gapclose export` with the same settings tries again"
        ) from error
    return found


def _refuse_public(api: huggingface_hub.HfApi, repository: str, private: bool) -> None:
    """Raises: ValueError when a private upload would go to a public repository."""
    try:
        known = api.repo_info(repository, repo_type="model")
    except RepositoryNotFoundError:
        return
    if private and not known.private:
        raise ValueError(f"export.push: {repository} exists and is public; set export.private false, or name another repository")
