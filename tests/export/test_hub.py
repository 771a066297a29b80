"""Uploads: on request, after verification, private; nothing here touches a network, a stand-in for the hub's client records what it is told."""

from fnmatch import fnmatch
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalTokenNotFoundError, RepositoryNotFoundError

from gapclose.core.files import write_json
from gapclose.export.config import ExportConfig
from gapclose.export.hub import push
from gapclose.pipeline.cli import main


class Hub:
    """Repositories by name, whether each is private, and what was uploaded where."""

    def __init__(self) -> None:
        self.private: dict[str, bool] = {}
        self.uploaded: dict[str, Path] = {}
        self.down = False

    def repo_info(self, name: str, *, repo_type: str) -> SimpleNamespace:
        if name not in self.private:
            raise RepositoryNotFoundError(name, response=SimpleNamespace(headers={}, request=None))
        return SimpleNamespace(private=self.private[name])

    def create_repo(self, name: str, *, repo_type: str, private: bool, exist_ok: bool) -> None:
        assert repo_type == "model" and exist_ok
        self.private.setdefault(name, private)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str, delete_patterns: list[str]) -> None:
        stale = ("model-00001-of-00002.safetensors", "vllm/adapter_config.json", "monitor/monitor.json", "left_out.json")
        assert all(any(fnmatch(name, p) for p in delete_patterns) for name in stale)
        assert not any(fnmatch(name, p) for p in delete_patterns for name in ("notes.md", "figures/gap.png"))  # no export's
        if self.down or not folder_path.is_dir():
            raise LocalTokenNotFoundError("no token")
        self.uploaded[repo_id] = folder_path


@pytest.fixture
def hub(monkeypatch) -> Hub:
    found = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: found)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    return found


@pytest.fixture
def run(tmp_path) -> Path:
    """A run whose adapter and omni model were verified, and whose merged model was not."""
    for name in ("adapter", "merged", "omni"):
        (tmp_path / name).mkdir()
    write_json(tmp_path / "adapter" / "verified.json", {"adapter": {}, "omni": {}})
    return tmp_path


def test_what_was_verified_is_uploaded_privately(hub, run):
    """The adapter under the name, the others with theirs behind it."""
    assert push(run, ["adapter", "omni"], "me/mine", private=True) == [
        "https://huggingface.co/me/mine",
        "https://huggingface.co/me/mine-omni",
    ]
    assert hub.uploaded == {"me/mine": run / "adapter", "me/mine-omni": run / "omni"}
    assert hub.private == {"me/mine": True, "me/mine-omni": True}
    push(run, ["adapter"], "me/open", private=False)
    assert hub.private["me/open"] is False


def test_what_was_not_verified_stays_here(hub, run):
    with pytest.raises(ValueError, match="merged is not verified, so nothing was uploaded"):
        push(run, ["adapter", "merged"], "me/mine", private=True)
    assert not hub.uploaded and not hub.private


def test_nothing_private_goes_into_a_public_repository(hub, run):
    """Not even the part that would have had a private one."""
    hub.private["me/mine-omni"] = False
    with pytest.raises(ValueError, match=r"me/mine-omni exists and is public; set export\.private false, or name another"):
        push(run, ["adapter", "omni"], "me/mine", private=True)
    assert not hub.uploaded


def test_an_upload_that_fails_is_told_with_the_way_to_repeat_it(hub, run):
    hub.down = True
    with pytest.raises(ValueError, match=r"the hub did not take the upload to me/mine: no token\n`hf auth login` logs in; .* tries again"):
        push(run, ["adapter"], "me/mine", private=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"push": "mine"}, "export.push is 'mine'; write OWNER/NAME"),
        ({"push": "a/b/c"}, "export.push is 'a/b/c'; write OWNER/NAME"),
        ({"push": "me/mine", "verify": False}, "export.push uploads what was verified, and export.verify is false"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExportConfig(**settings)
    assert ExportConfig().push is None and ExportConfig().private


@pytest.mark.parametrize("command", ["close", "export"])
def test_offline_it_is_refused_before_anything_costly(command, tiny_run, tiny_config, capsys, tmp_path, monkeypatch):
    """By both commands, and neither a run nor an export is begun."""
    import gapclose.export.run

    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    monkeypatch.setattr(gapclose.export.run, "write_adapter", lambda *_: pytest.fail("written"))
    where = tmp_path / "run" if command == "close" else tiny_run
    assert (
        main([command, "--config", str(tiny_config), "--run_dir", str(where), "--export.push", "me/mine", "--export.verify", "true"]) == 2
    )
    message = capsys.readouterr().err
    assert message.startswith("error: export.push needs the network, and HF_HUB_OFFLINE") and not (tmp_path / "run").exists()


def test_the_command_uploads_after_it_has_verified(hub, tiny_run, tiny_config, tmp_path, monkeypatch):
    """Through `gapclose export`: the verification runs first, and its failure keeps everything here."""
    import shutil

    import gapclose.export.run

    directory, order = Path(shutil.copytree(tiny_run, tmp_path / "run")), []

    def verified(where: Path) -> None:
        order.append("verified" if not hub.uploaded else "too late")
        write_json(where / "adapter" / "verified.json", {"adapter": {}})

    command = ["export", "--config", str(tiny_config), "--run_dir", str(directory), "--export.push", "me/mine"]
    command += ["--export.verify", "true"]
    monkeypatch.setattr(gapclose.export.run, "verify_in_fresh_process", verified)
    assert main(command) == 0 and order == ["verified"] and hub.uploaded == {"me/mine": directory / "adapter"}
    hub.uploaded.clear()
    monkeypatch.setattr(gapclose.export.run, "verify_in_fresh_process", lambda where: (_ for _ in ()).throw(ValueError("differs")))
    assert main(command) == 2 and not hub.uploaded
