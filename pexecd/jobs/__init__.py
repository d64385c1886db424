"""What a user writes: job file, parameter table, cluster file, templates. Text to values."""

from pexecd.jobs.jobfile import read_job
from pexecd.jobs.render import Renderer
from pexecd.jobs.table import Table, check_table, read_columns, read_table

__all__ = ["Renderer", "Table", "check_table", "read_columns", "read_job", "read_table"]
