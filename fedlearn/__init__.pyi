from fedlearn.api.connection import Connection, connect
from fedlearn.api.job import Job
from fedlearn.api.result import Result
from fedlearn.api.run import Run

__all__ = ["Connection", "Job", "Result", "Run", "__version__", "connect"]

__version__: str
