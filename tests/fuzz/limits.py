"""Run a function within limits of time and memory, and see whether it starts a process or writes elsewhere."""

import faulthandler
import os
import resource
import signal
import sys
import traceback

STARTS = ("os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "subprocess.Popen", "pty.spawn")
_watched = []  # the folder that may be written to, while an input is tried
_seen = []


class TooLong(BaseException):
    """No ``except Exception`` catches it."""


def _watch(event, arguments):
    if not _watched:
        return
    if event in STARTS:
        _seen.append(f"it starts a process: {event}{arguments!r:.200}")
    elif event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        path = os.fsdecode(arguments[0]) if isinstance(arguments[0], str | bytes) else ""
        if path and path != os.devnull and not os.path.abspath(path).startswith(_watched[0]):
            _seen.append(f"it opens {path!r:.200} for writing")


sys.addaudithook(_watch)


def attempt(use, folder, accepted, *, seconds, megabytes):
    """What happens to an input: "read", "refused" or the fault, with its traceback.

    Args:
        use: is given the folder.
        folder: of the input; only its parent may be written to.
        accepted: the exception that refuses an input.
        seconds: of the processor's time after which ``use`` is interrupted, or where it waits, of five times as many
            on the clock; where it cannot be interrupted, the process ends with its traceback.
        megabytes: of address space that it may take beyond what there is.
    """

    def stop(*_):
        signal.setitimer(signal.ITIMER_REAL, 1)  # again, should somebody catch it
        raise TooLong(f"it takes over {seconds} s")

    with open("/proc/self/statm") as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (present + megabytes * 2**20, before[1]))
    for timer, name, limit in (
        (signal.ITIMER_PROF, signal.SIGPROF, seconds),
        (signal.ITIMER_REAL, signal.SIGALRM, 5 * seconds),
    ):
        signal.signal(name, stop)
        signal.setitimer(timer, limit)
    faulthandler.dump_traceback_later(10 * seconds + 10, exit=True)
    _watched.append(os.path.abspath(os.path.dirname(folder)))
    try:
        use(folder)
        result = "read"
    except accepted:
        result = "refused"
    except (Exception, TooLong):
        result = traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        _watched.clear()
        faulthandler.cancel_dump_traceback_later()
        resource.setrlimit(resource.RLIMIT_AS, before)
    if _seen:
        result = "\n".join(_seen)
        _seen.clear()
    return result
