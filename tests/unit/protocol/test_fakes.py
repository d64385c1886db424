from __future__ import annotations

from zope.interface.verify import verifyObject

from pexecd.ports import IDirectory, ISession, IUpload
from tests.unit.protocol.fakes import FakeDirectory, FakeSession, FakeUpload


def test_the_fakes_are_what_they_stand_for() -> None:
    session = FakeSession()
    verifyObject(IDirectory, FakeDirectory(session))
    verifyObject(ISession, session)
    verifyObject(IUpload, FakeUpload(session))
