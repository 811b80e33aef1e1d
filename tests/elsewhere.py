"""Makes a Linux Python look like one on Windows to gatework: what POSIX alone has is not there, or breaks.

``sys.platform``, ``os.name`` and the missing names are seen by modules of gatework only, since the standard
library and PyTorch under them need what this machine has. What no process on Windows can do at all (fork, ask
with signal 0 whether a process lives, open a directory) fails for everyone. :func:`start` begins it; with
``sitecustomize.py`` on the path, see :func:`environment`, it holds in every child as well.
"""

from __future__ import annotations

import builtins
import ctypes
import multiprocessing
import os
import signal
import stat
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

_SWITCH = "GATEWORK_TESTS_ELSEWHERE"


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Modules that POSIX alone has.
MODULES = words("crypt fcntl grp nis posix posixpath pty pwd readline resource spwd syslog termios tty")
#: And names of modules that Windows has too.
NAMES = {
    "os": words(
        """
        chown chroot confstr ctermid fchdir fchmod fchown fork forkpty getegid geteuid getgid getgroups
        getloadavg getpgid getpgrp getpriority getresuid getsid getuid initgroups killpg lchown lockf major
        mkfifo mknod nice O_CLOEXEC O_DIRECTORY O_NOFOLLOW O_NONBLOCK O_SYNC O_TMPFILE openpty pathconf pipe2
        posix_fadvise posix_spawn posix_spawnp pread preadv pwrite pwritev register_at_fork sched_getaffinity
        sched_setaffinity sched_yield sendfile setgid setpgid setpriority setsid setuid statvfs sync sysconf
        sysconf_names tcgetpgrp tcsetpgrp ttyname uname wait wait3 wait4 waitid WIFEXITED WIFSIGNALED WNOHANG
        WTERMSIG
        """
    ),
    "signal": words(
        """
        alarm getitimer ITIMER_REAL pause pthread_kill pthread_sigmask setitimer SIG_BLOCK SIG_SETMASK
        SIG_UNBLOCK SIGALRM SIGBUS SIGCHLD SIGCONT siginterrupt SIGHUP SIGKILL sigpending SIGPIPE SIGQUIT
        SIGSTOP sigtimedwait SIGTSTP SIGUSR1 SIGUSR2 sigwait SIGXFSZ
        """
    ),
    "time": words(
        """
        CLOCK_BOOTTIME clock_getres clock_gettime CLOCK_MONOTONIC CLOCK_MONOTONIC_RAW CLOCK_PROCESS_CPUTIME_ID
        CLOCK_REALTIME clock_settime CLOCK_THREAD_CPUTIME_ID pthread_getcpuclockid tzset
        """
    ),
    "sys": frozenset(),
    "ctypes": frozenset(),
}


class _Kernel:
    """The part of ``kernel32.dll`` that says whether a process lives."""

    class OpenProcess:
        """A function object, on which callers set the type of the result."""

        def __new__(cls, access: int, inherit: bool, process: int) -> Any:
            return process if Path(f"/proc/{process}").exists() else 0

    @staticmethod
    def WaitForSingleObject(handle: ctypes.c_void_p, milliseconds: int) -> int:  # noqa: N802
        return 0x102 if Path(f"/proc/{handle.value}").exists() else 0

    @staticmethod
    def CloseHandle(handle: ctypes.c_void_p) -> int:  # noqa: N802
        return 1


#: What is there instead.
_VALUES: dict[str, dict[str, Any]] = {
    "os": {"name": "nt"},
    "sys": {"platform": "win32"},
    "signal": {"SIGBREAK": signal.SIGUSR1},
    "ctypes": {"WinDLL": lambda name, use_last_error=False: _Kernel, "get_last_error": lambda: 87},
}


class _Foreign(ModuleType):
    """A module as gatework would find it on Windows."""

    def __init__(self, name: str, real: ModuleType) -> None:
        super().__init__(name)
        self.__dict__["_real"] = real

    def __getattr__(self, name: str) -> Any:
        own = self.__name__
        if name in NAMES[own]:
            raise AttributeError(f"module {own!r} has no attribute {name!r} on Windows")
        values = _VALUES.get(own, {})
        return values[name] if name in values else getattr(self.__dict__["_real"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.__dict__["_real"], name, value)


def environment(folder: Path) -> dict[str, str]:
    """Return variables under which every Python starts elsewhere, with a file that is put into ``folder``."""
    text = (
        "import os\nif os.environ.get('"
        + _SWITCH
        + "'):\n    from tests.elsewhere import start\n    start()\n"
    )
    (folder / "sitecustomize.py").write_text(text, encoding="utf-8")
    root = str(Path(__file__).parents[1])
    paths = [str(folder), root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), _SWITCH: "1"}


def start() -> None:
    """Begin, before gatework is imported."""
    assert not any(name.startswith("gatework") for name in sys.modules)
    foreign = {name: _Foreign(name, __import__(name)) for name in NAMES}
    real_import = builtins.__import__

    def import_elsewhere(name: str, values: Any = None, *rest: Any, **more: Any) -> Any:
        importer = str((values or {}).get("__name__", ""))
        if importer.partition(".")[0] != "gatework":
            return real_import(name, values, *rest, **more)
        if name.partition(".")[0] in MODULES:
            raise ModuleNotFoundError(f"No module named {name!r} on Windows", name=name)
        return foreign[name] if name in foreign else real_import(name, values, *rest, **more)

    builtins.__import__ = import_elsewhere
    multiprocessing.set_start_method("spawn", force=True)
    _break_for_everyone()


def _break_for_everyone() -> None:
    kill, opened = os.kill, os.open

    def kill_elsewhere(process: int, number: int) -> None:
        assert number != 0, f"os.kill({process}, 0) ends process {process} on Windows"
        kill(process, number)

    def open_elsewhere(path: Any, *arguments: Any, **options: Any) -> int:
        descriptor = opened(path, *arguments, **options)
        if stat.S_ISDIR(os.fstat(descriptor).st_mode) and "dir_fd" not in options:
            os.close(descriptor)
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return descriptor

    def fork() -> int:
        raise AssertionError("there is no fork on Windows")

    os.kill, os.open, os.fork, os.forkpty = kill_elsewhere, open_elsewhere, fork, fork
