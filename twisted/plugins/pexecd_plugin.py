"""Makes ``twistd pexecd`` known; everything else is in ``pexecd.tap``."""

from twisted.application.service import ServiceMaker

pexecd = ServiceMaker(
    "pexecd",
    "pexecd.tap",
    "Run a program once for every line of a table, on all computers at once.",
    "pexecd",
)
