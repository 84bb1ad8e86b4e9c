"""The code version that a run records."""

import subprocess

from train import run_folder


def git(folder, *command):
    name = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *name, *command], check=True, capture_output=True)


def revision(monkeypatch, file):
    monkeypatch.setattr(run_folder, "__file__", str(file))
    return run_folder.git_revision.__wrapped__()


def test_another_projects_repository_does_not_count(tmp_path, monkeypatch):
    """Installed in a virtual environment inside another repository, which ignores it."""
    git(tmp_path, "init", "-q")
    (tmp_path / ".gitignore").write_text(".venv/\n")
    ours, theirs = tmp_path / "record.py", tmp_path / ".venv" / "record.py"
    theirs.parent.mkdir()
    for file in (ours, theirs):
        file.write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-qm", "1")
    assert revision(monkeypatch, theirs) is None
    commit = revision(monkeypatch, ours)
    assert len(commit) == 40
    ours.write_text("2\n")
    assert revision(monkeypatch, ours) == f"{commit}+"


def test_a_release_is_recorded():
    assert run_folder.code_version()[0] == run_folder.environment({})["versions"]["semanticmac"]
