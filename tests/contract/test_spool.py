"""One suite for every ``ISpool``: the folder, and the one in memory that other tests use."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import cast

import pytest
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.trial.unittest import TestCase
from zope.interface.verify import verifyObject

from pexecd.errors import JournalError
from pexecd.ports import ISpool, IUpload, StoredResult
from pexecd.store.batches import IReactor
from pexecd.store.spool import Spool
from tests.contract.memory import MemorySpool

LARGE = bytes(range(256)) * 1024


class SpoolContract:
    """What every spool does."""

    spool: ISpool

    def content(self, result: StoredResult) -> bytes:
        path = self.spool.path(result)
        if path is None:
            assert result.data is not None
            return result.data
        assert result.data is None
        return path.read_bytes()

    async def take(self, upload: IUpload, *results: tuple[str, bytes]) -> tuple[StoredResult, ...]:
        for name, data in results:
            upload.begin(name, None)
            for start in range(0, len(data), 50_000):
                pause = upload.write(data[start : start + 50_000])
                if pause is not None:
                    await pause
        return await upload.finish()

    def test_it_provides_the_port(self) -> None:
        verifyObject(ISpool, self.spool)
        upload = self.spool.upload(10000)
        verifyObject(IUpload, upload)
        upload.abort()

    async def test_results_come_back_in_order_with_their_bytes(self) -> None:
        given = (("a", b"small\n"), ("b", LARGE), ("c", b""), ("d", LARGE + b"!"))
        stored = await self.take(self.spool.upload(10000), *given)
        assert [result.name for result in stored] == ["a", "b", "c", "d"]
        assert [result.size for result in stored] == [len(data) for _, data in given]
        assert [self.content(result) for result in stored] == [data for _, data in given]

    async def test_an_upload_without_results(self) -> None:
        assert await self.spool.upload(10000).finish() == ()

    async def test_what_fits_into_the_journal_is_kept_there(self) -> None:
        edge = b"x" * 16 * 1024
        assert self.spool.fits({})
        assert self.spool.fits({"a": edge, "b": edge})
        assert not self.spool.fits({"a": edge, "b": edge + b"x"})
        if isinstance(self.spool, Spool):
            for data in (b"", edge, edge + b"x"):
                (stored,) = await self.take(self.spool.upload(10000), ("a", data))
                assert (stored.data is not None) == self.spool.fits({"a": data})

    async def test_two_uploads_of_one_ticket_do_no_harm(self) -> None:
        first, second = self.spool.upload(10000), self.spool.upload(10000)
        stored = await gatherResults(
            [
                Deferred.fromCoroutine(self.take(first, ("output", LARGE))),
                Deferred.fromCoroutine(self.take(second, ("output", LARGE[::-1]))),
            ]
        )
        assert [self.content(one[0]) for one in stored] == [LARGE, LARGE[::-1]]

    async def test_results_of_many_tickets_are_stored_together(self) -> None:
        given = {
            ticket: {"a": b"%d" % ticket, "b": LARGE + b"%d" % ticket, "c": b""}
            for ticket in range(10000, 10030)
        }
        stored = await self.spool.store(given)
        assert {
            ticket: {result.name: self.content(result) for result in results}
            for ticket, results in stored.items()
        } == given
        assert all(result.size for results in stored.values() for result in results[:2])
        assert await self.spool.store({}) == {}
        again = await self.spool.store({10000: {"b": LARGE}})
        self.spool.discard(again[10000])
        assert self.content(stored[10000][1]) == LARGE + b"10000"

    async def test_names_that_are_no_file_names(self) -> None:
        for name in ("../../x", "/etc/passwd", ".", "a" * 500, "é \n|", "a/b"):
            (stored,) = await self.take(self.spool.upload(10000), (name, LARGE))
            assert stored.name == name
            assert self.content(stored) == LARGE

    async def test_an_upload_that_was_aborted_cannot_be_finished(self) -> None:
        upload = self.spool.upload(10000)
        upload.begin("output", len(LARGE))
        upload.write(LARGE)
        upload.abort()
        upload.abort()
        assert upload.write(LARGE) is None
        with pytest.raises(JournalError):
            await upload.finish()


class FolderSpoolTests(SpoolContract, TestCase):
    def setUp(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.addCleanup(shutil.rmtree, self.folder)
        spool = Spool(self.folder / "spool", cast("IReactor", reactor))
        self.addCleanup(spool.close)
        self.spool = spool


class MemorySpoolTests(SpoolContract, TestCase):
    def setUp(self) -> None:
        self.spool = MemorySpool()
