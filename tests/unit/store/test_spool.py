from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pexecd.errors import JournalError, StateError
from pexecd.store.spool import INLINE, MOST_WAITING, PIECE, Spool
from tests.pump import Pump
from tests.unit.store.conftest import Limit

LARGE = os.urandom(PIECE)


def files(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "spool"))


def test_small_results_touch_no_file_and_no_thread(tmp_path: Path, pump: Pump) -> None:
    upload = Spool(tmp_path / "spool", pump).upload(10000)
    upload.begin("output", None)
    assert upload.write(b"x" * INLINE) is None
    done = upload.finish()
    assert done.called
    (stored,) = pump.wait(done)
    assert (stored.data, stored.size, stored.spool) == (b"x" * INLINE, INLINE, None)
    assert files(tmp_path) == []


def test_a_byte_more_goes_to_a_file(tmp_path: Path, pump: Pump) -> None:
    spool = Spool(tmp_path / "spool", pump)
    upload = spool.upload(10000)
    upload.begin("output", INLINE + 1)
    upload.write(b"x" * INLINE)
    upload.write(b"y")
    (stored,) = pump.wait(upload.finish())
    assert stored.data is None
    path = spool.path(stored)
    assert path is not None
    assert path.read_bytes() == b"x" * INLINE + b"y"
    (name,) = files(tmp_path)
    assert stored.spool == f"spool/{name}"
    assert name.startswith("10000-")
    assert name.endswith("-output")


def test_until_it_is_finished_it_has_another_name(tmp_path: Path, pump: Pump) -> None:
    upload = Spool(tmp_path / "spool", pump).upload(10000)
    upload.begin("output", None)
    upload.write(LARGE)
    pump.step()
    (name,) = files(tmp_path)
    assert name.endswith(".part")
    pump.wait(upload.finish())
    assert files(tmp_path) == [name.removesuffix(".part")]


def test_what_is_shorter_than_a_piece_takes_one_turn_of_a_thread(
    tmp_path: Path, pump: Pump
) -> None:
    upload = Spool(tmp_path / "spool", pump).upload(10000)
    upload.begin("first", None)
    upload.write(LARGE[: PIECE // 2])
    upload.begin("second", None)
    upload.write(LARGE[: PIECE // 2 - 1])
    assert files(tmp_path) == []
    done = upload.finish()
    pump.step()
    assert {name.rpartition("-")[2] for name in files(tmp_path)} == {"first", "second"}
    pump.step()  # the folder
    assert done.called


def test_who_is_faster_than_the_disk_is_told_to_pause(tmp_path: Path, pump: Pump) -> None:
    upload = Spool(tmp_path / "spool", pump).upload(10000)
    upload.begin("output", None)
    assert upload.write(b"x" * (MOST_WAITING - 1)) is None
    pause = upload.write(b"xx")
    assert pause is not None
    assert not pause.called
    again = upload.write(b"x")
    assert again is not None
    pump.wait(pause)
    pump.wait(again)
    assert upload.write(b"x") is None
    (stored,) = pump.wait(upload.finish())
    assert stored.size == MOST_WAITING + 3


def test_a_full_disk_fails_the_upload_and_leaves_nothing(
    tmp_path: Path, pump: Pump, largest_file: Limit
) -> None:
    spool = Spool(tmp_path / "spool", pump)
    upload = spool.upload(10000)
    upload.begin("output", None)
    with largest_file(PIECE * 3 // 2):
        upload.write(LARGE)
        pause = upload.write(b"x" * MOST_WAITING)
        assert pause is not None
        pump.wait(pause)
        assert upload.write(LARGE) is None
        with pytest.raises(JournalError, match="File too large"):
            pump.wait(upload.finish())
    pump.wait(spool.close())
    assert files(tmp_path) == []


def test_a_full_disk_is_found_at_the_end_too(
    tmp_path: Path, pump: Pump, largest_file: Limit
) -> None:
    spool = Spool(tmp_path / "spool", pump)
    upload = spool.upload(10000)
    upload.begin("output", None)
    with largest_file(PIECE // 2):
        upload.write(LARGE)
        done = upload.finish()
        with pytest.raises(JournalError):
            pump.wait(done)
    pump.wait(spool.close())
    assert files(tmp_path) == []


@pytest.mark.parametrize(
    "moment", ["at once", "while writing", "before renaming", "while renaming", "at the end"]
)
def test_an_aborted_upload_leaves_nothing(tmp_path: Path, pump: Pump, moment: str) -> None:
    spool = Spool(tmp_path / "spool", pump)
    upload = spool.upload(10000)
    upload.begin("first", None)
    upload.write(LARGE)
    upload.begin("second", None)
    upload.write(LARGE)
    if moment == "while writing":
        pump.step()
        upload.abort()
        pump.step()
    elif moment in ("before renaming", "while renaming"):
        done = upload.finish()
        pump.step()
        if moment == "while renaming":
            pump.step()
        upload.abort()
        with pytest.raises(JournalError, match="given up"):
            pump.wait(done)
    elif moment == "at the end":
        assert len(pump.wait(upload.finish())) == 2
        upload.abort()
    else:
        upload.abort()
        pump.step()
    pump.wait(spool.close())
    assert files(tmp_path) == []


def test_where_not_all_have_room_none_is_stored(
    tmp_path: Path, pump: Pump, largest_file: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool", pump)
    with largest_file(PIECE * 3 // 2):
        stored = spool.store({10000: {"a": LARGE, "b": b"1"}, 10001: {"a": LARGE * 2}})
        with pytest.raises(JournalError, match="spool: File too large"):
            pump.wait(stored)
    assert files(tmp_path) == []
    pump.wait(spool.close())
    monkeypatch.setattr("pexecd.store.spool.SLOW", -1.0)
    with pytest.raises(JournalError, match="shutdown"):
        pump.wait(spool.store({10000: {"a": LARGE}, 10001: {"a": LARGE}}))
    assert files(tmp_path) == []


def test_where_nothing_can_be_deleted_either_who_waits_is_told(
    tmp_path: Path, pump: Pump, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(tmp_path / "spool", pump)

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", fail)
        broken.setattr(Path, "unlink", fail)
        with pytest.raises(JournalError, match="spool: Read-only file system"):
            pump.wait(spool.store({10000: {"a": LARGE}, 10001: {"a": LARGE}}))
        assert len(files(tmp_path)) == 2
    pump.wait(spool.close())
    assert files(tmp_path) == []


def test_an_upload_that_was_given_up_lets_its_peer_go(tmp_path: Path, pump: Pump) -> None:
    spool = Spool(tmp_path / "spool", pump)
    upload = spool.upload(10000)
    upload.begin("output", None)
    pause = upload.write(b"x" * (MOST_WAITING + 1))
    assert pause is not None
    upload.abort()
    assert pause.called
    pump.step()
    pump.wait(spool.close())


def test_discarded_results_are_deleted_once_or_twice(tmp_path: Path, pump: Pump) -> None:
    spool = Spool(tmp_path / "spool", pump)
    upload = spool.upload(10000)
    upload.begin("small", None)
    upload.write(b"1")
    upload.begin("large", None)
    upload.write(LARGE)
    stored = pump.wait(upload.finish())
    spool.discard(stored)
    spool.discard(stored)
    pump.wait(spool.close())
    assert files(tmp_path) == []


def test_what_a_crash_left_is_swept(tmp_path: Path, pump: Pump) -> None:
    spool = Spool(tmp_path / "spool", pump)
    for name in ("10000-aa-x", "10001-bb-x", "10002-cc-x.part"):
        (tmp_path / "spool" / name).write_bytes(LARGE)
    assert spool.sweep({"spool/10000-aa-x", "spool/10009-dd-gone"}) == 2
    assert files(tmp_path) == ["10000-aa-x"]


def test_other_peoples_folders_are_not_swept(tmp_path: Path, pump: Pump) -> None:
    spool = Spool(tmp_path / "spool", pump)
    (tmp_path / "spool" / "mine").mkdir()
    (tmp_path / "spool" / "10000-aa-x.part").touch()
    assert spool.sweep(()) == 1
    assert files(tmp_path) == ["mine"]


def test_a_file_in_the_place_of_the_spool(tmp_path: Path, pump: Pump) -> None:
    (tmp_path / "spool").touch()
    with pytest.raises(StateError, match="spool: cannot be used for results: File exists; repair"):
        Spool(tmp_path / "spool", pump)


def test_whether_there_is_room_is_tried(tmp_path: Path, pump: Pump, largest_file: Limit) -> None:
    spool = Spool(tmp_path / "spool", pump)
    assert pump.wait(spool.probe()) == ""
    with largest_file(10_000):
        assert pump.wait(spool.probe()) == f"{tmp_path}/spool: File too large"
    assert files(tmp_path) == []


def test_who_hears_of_a_full_disk_finds_the_room_given_back(
    tmp_path: Path, pump: Pump, largest_file: Limit
) -> None:
    upload = Spool(tmp_path / "spool", pump).upload(10000)
    upload.begin("first", None)
    upload.write(LARGE)
    upload.begin("second", None)
    with largest_file(PIECE * 3 // 2):
        upload.write(LARGE * 2)
        with pytest.raises(JournalError, match="spool: File too large"):
            pump.wait(upload.finish())
    assert files(tmp_path) == []
