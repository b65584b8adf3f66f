"""What may be deleted below a job's folder."""

from __future__ import annotations

from pathlib import Path

from worker.pruning import NOTHING, prune


def tree(folder: Path, *paths: str) -> None:
    for path in paths:
        (folder / path).mkdir(parents=True)
        (folder / path / "model.safetensors").touch()


def left(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.glob("*/*"))


def test_the_running_attempt_keeps_what_is_on_its_way_into_the_log(tmp_path: Path) -> None:
    tree(tmp_path, "1/10", "1/20", "1/30", "1/.40.partial")
    prune(tmp_path, [tmp_path / "1/20"], attempt=1, committed="20")

    assert left(tmp_path) == ["1/.40.partial", "1/20", "1/30"]


def test_what_it_wrote_since_it_went_back_is_newer_than_any_step_before(tmp_path: Path) -> None:
    tree(tmp_path, "1/10", "1/20", "1/30", "1/15.1", "1/25.1", "1/12.2")
    prune(tmp_path, [tmp_path / "1/10"], attempt=1, committed="15.1")

    assert left(tmp_path) == ["1/10", "1/12.2", "1/25.1"]


def test_of_earlier_attempts_only_what_the_log_keeps_stays(tmp_path: Path) -> None:
    tree(tmp_path, "1/10", "1/20", "1/.30.partial", "2/25", "3/30")
    prune(tmp_path, [tmp_path / "1/20"], attempt=3, committed=NOTHING)

    assert left(tmp_path) == ["1/20", "3/30"]
    assert not (tmp_path / "2").exists()


def test_a_later_attempt_is_never_touched(tmp_path: Path) -> None:
    tree(tmp_path, "1/10", "2/20", "2/.30.partial")
    prune(tmp_path, [], attempt=1, committed=None)

    assert left(tmp_path) == ["2/.30.partial", "2/20"]


def test_once_an_attempt_is_over_its_halves_go_too(tmp_path: Path) -> None:
    tree(tmp_path, "1/10", "1/.20.partial")
    prune(tmp_path, [tmp_path / "1/10"], attempt=1, committed=None)

    assert left(tmp_path) == ["1/10"]


def test_what_is_no_attempt_and_what_a_link_points_to_is_left_alone(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    tree(tmp_path / "job", "notes/10", "1/10")
    outside.mkdir()
    (tmp_path / "job/1/20").symlink_to(outside)
    prune(tmp_path / "job", [], attempt=2, committed=NOTHING)

    assert (tmp_path / "job/notes/10/model.safetensors").exists()
    assert outside.exists()
