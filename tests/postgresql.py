"""A PostgreSQL server of a test's own: a throwaway cluster that listens on a socket in its folder alone."""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path


def binaries() -> Path | None:
    """Folder of the server's programs; None where they are not installed."""
    found = shutil.which("initdb") or shutil.which("postgres")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


def _owner() -> str | None:
    """Another user for the server, which refuses to run as root; None for this one."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def missing() -> str | None:
    """Why no server can be started here; None if one can."""
    if binaries() is None:
        return "PostgreSQL's server is not installed"
    try:
        import psycopg  # noqa: F401
    except ImportError:
        return 'psycopg is not installed: pip install "scall_jax[db]"'
    return None


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Start a server, and stop it in the end; its URL."""
    programs, owner = binaries(), _owner()
    assert programs is not None
    # Socket paths have a hundred characters at most, and the server's user must be able to go there.
    folder = Path(tempfile.mkdtemp(prefix="pg", dir="/tmp"))
    try:
        if owner is not None:
            shutil.chown(folder, owner)
        folder.chmod(0o755)
        cluster = folder / "cluster"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.STDOUT, "user": owner, "cwd": folder}
        initdb = [programs / "initdb", "-D", cluster, "-U", "tester", "-A", "trust", "--no-sync", "-E", "UTF8"]
        subprocess.run([*initdb, "--locale", "C"], check=True, **quiet)
        settings = ["listen_addresses=", f"unix_socket_directories={folder}", "fsync=off", "shared_buffers=2MB"]
        options = [part for setting in settings for part in ("-c", setting)]
        process = subprocess.Popen([programs / "postgres", "-D", cluster, *options], **quiet)
        try:
            url = f"postgresql://tester@/postgres?host={folder}"
            _wait(url, process)
            yield url
        finally:
            process.send_signal(signal.SIGINT)  # It does not wait for clients, as it would at SIGTERM.
            process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, process: subprocess.Popen) -> None:
    import psycopg

    for _ in range(300):
        assert process.poll() is None, "the server has ended"
        try:
            psycopg.connect(url).close()
            return
        except psycopg.OperationalError:
            time.sleep(0.1)
    raise AssertionError("the server does not answer")
