from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.pump import Pump


@pytest.fixture
def pump() -> Iterator[Pump]:
    pump = Pump()
    yield pump
    pump.stop()
