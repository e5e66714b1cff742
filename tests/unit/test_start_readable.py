"""Whether code can be read by whom we become."""

from __future__ import annotations

from pathlib import Path

from passt.userspace.startup import open_to_all


def test_open_to_all(tmp_path: Path) -> None:
    """Every folder on the way may be entered, and the last one listed."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    for folder in (inner, *inner.parents):
        if folder.is_relative_to(tmp_path.parent.parent):
            folder.chmod(0o755)
    assert open_to_all("/usr")
    assert open_to_all(str(inner)) == open_to_all(str(tmp_path))
    link = tmp_path / "link"
    link.symlink_to(inner)
    inner.chmod(0o751)
    assert not open_to_all(str(inner))
    assert not open_to_all(str(link))
    inner.chmod(0o755)
    (tmp_path / "a").chmod(0o700)
    assert not open_to_all(str(inner))
