"""Sources that grow: files of text, standard input and tables of databases, read from an offset on."""

from scall_jax.streams.following.database import connect, is_database
from scall_jax.streams.following.growing_file import GrowingFile
from scall_jax.streams.following.source import Batch, Offset, Source
from scall_jax.streams.following.standard_input import RESEND, StandardInput
from scall_jax.streams.following.table import GrowingTable

__all__ = [
    "RESEND",
    "Batch",
    "GrowingFile",
    "GrowingTable",
    "Offset",
    "Source",
    "StandardInput",
    "connect",
    "is_database",
]
