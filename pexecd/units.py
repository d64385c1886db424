"""The two quantities that everything here is told in.

Both are floats of seconds; the names say which zero they count from.
"""

from __future__ import annotations

from typing import TypeAlias

#: A length of time.
Seconds: TypeAlias = float

#: A point on the monotonic clock of this process (``reactor.seconds()`` after
#: ``makeService`` has set it): good for deadlines, meaningless after a restart.
Instant: TypeAlias = float

#: A point on the wall clock, seconds since 1970 UTC: for journals and people.
Stamp: TypeAlias = float
