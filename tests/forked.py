"""Runs the real `fercache` command line many times without paying for its imports each time.

Run as a program this file imports all of fercache once and then forks a process of its own for each run; the tests talk
to it through `Runner`. A run is a process like any other: it can be killed, limited, made another user.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import resource
import subprocess
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

SMALL = {"SEGMENT": 8, "CHUNK": 8, "DETECT_BLOCK": 8}
"""What `small` runs make of the constants of these names, so that a clip of 20 frames has several segments."""
SMALL_BATCH = 4


@dataclass
class Run:
    """One process; `code` is its exit code, negative the signal that ended it."""

    runner: Runner
    pid: int
    log: Path
    code: int | None = None

    def alive(self) -> bool:
        """Return whether it still goes on."""
        if self.code is None:
            self.code = self.runner.ask({"poll": self.pid})
        return self.code is None

    def wait(self, timeout_s: float = 300.0) -> Run:
        """Return when it has ended; after `timeout_s` it is killed and the test fails."""
        ends = time.monotonic() + timeout_s
        while self.alive():
            if time.monotonic() > ends:
                os.kill(self.pid, 9)
                raise AssertionError(f"it hangs: {self.err()}")
            time.sleep(.02)
        return self

    def kill(self, number: int) -> None:
        """Send a signal."""
        os.kill(self.pid, number)

    def out(self) -> str:
        return self.log.with_suffix(".out").read_text(encoding="utf-8", errors="surrogateescape")

    def err(self) -> str:
        path = self.log.with_suffix(".err")
        return path.read_text(encoding="utf-8", errors="surrogateescape") if path.exists() else ""

    def steps(self) -> list[str]:
        """Return the durable steps that it passed, in order."""
        path = self.log.with_suffix(".steps")
        return path.read_text().split() if path.exists() else []


class Runner:
    """The program below, ready to fork."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0
        folder.chmod(0o777)
        root = str(Path(__file__).resolve().parents[1])
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        text=True, env={**os.environ, "PYTHONPATH": root}, cwd=folder)
        assert self.ask({"ready": True}) is True

    def ask(self, order: dict[str, Any]) -> Any:
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *words: object, cwd: Path, kill_at: str = "", small: bool = True, user: int = 0,
              file_bytes: int = 0, memory: int = 0, tiny: Sequence[str] = (), session: bool = False,
              program: str = "fercache.cli") -> Run:
        """Begin `fercache WORDS` in `cwd`, with this process's environment.

        Parameters
        ----------
        tiny : nets that are those of `tiny_nets`.
        session : in a session of its own, as a terminal's Ctrl-C for the process and its children needs.
        program : the module whose `main` is called with the words.
        """
        self.count += 1
        log = self.folder / f"run{self.count}"
        pid = self.ask({"words": [str(word) for word in words], "cwd": str(cwd), "log": str(log), "kill_at": kill_at,
                        "small": small, "user": user, "file_bytes": file_bytes, "memory": memory, "tiny": list(tiny),
                        "session": session, "program": program,
                        "environment": dict(os.environ)})
        return Run(self, pid, log)

    def run(self, *words: object, cwd: Path, timeout_s: float = 300.0, **how: Any) -> Run:
        """Return the finished run of `fercache WORDS`; see `Run.wait`."""
        return self.start(*words, cwd=cwd, **how).wait(timeout_s)

    def typed(self, *words: object, cwd: Path, **how: Any) -> subprocess.CompletedProcess[str]:
        """Return the finished run of `fercache WORDS` with the constants that users have."""
        run = self.run(*words, cwd=cwd, small=False, **how)
        assert run.code is not None
        return subprocess.CompletedProcess(words, run.code, run.out(), run.err())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()
        if self.process.stdout is not None:
            self.process.stdout.close()


def main() -> None:
    """Answer orders, a line of JSON each."""
    gc.disable()  # while much is imported that never goes away again
    import h5py  # noqa: F401
    import tiny_nets  # noqa: F401
    import torch  # noqa: F401

    import fercache.backbones.backbone
    import fercache.cli.maintenance
    import fercache.extraction.clip
    import fercache.faces.detector
    import fercache.stacking.stack
    import fercache.training.train  # noqa: F401

    gc.freeze()  # or each run would look through it, and copy the memory that it shares with this process
    gc.enable()
    for line in sys.stdin:
        order = json.loads(line)
        if "ready" in order:
            answer: Any = True
        elif "poll" in order:
            pid, status = os.waitpid(order["poll"], os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if pid else None
        else:
            answer = os.fork()
            if not answer:
                be(order)
        print(json.dumps(answer), flush=True)


def be(order: dict[str, Any]) -> NoReturn:
    """Be the process that was asked for."""
    import tiny_nets

    from fercache.runtime import atomic_io

    code = 70
    try:
        os.environ.clear()
        os.environ.update(order["environment"])
        if order["session"]:
            os.setsid()
        limit(order, atomic_io)
        tiny_nets.install(order["tiny"])
        os.chdir(order["cwd"])
        code = importlib.import_module(order["program"]).main(order["words"]) or 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001 - what the interpreter would do
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def limit(order: dict[str, Any], durable: Any) -> None:
    """Set up files, limits, user and kill point of a run."""
    log = Path(order["log"])
    for number, ending in ((0, None), (1, ".out"), (2, ".err")):
        flags = os.O_RDONLY if ending is None else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        os.dup2(os.open(os.devnull if ending is None else log.with_suffix(ending), flags, 0o666), number)
    steps = os.open(log.with_suffix(".steps"), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    step = durable.durable_step

    def note(name: str) -> None:
        os.write(steps, f"{name}\n".encode())
        step(name)

    durable.durable_step, durable.KILL_AT = note, order["kill_at"]
    if order["small"]:
        for name, module in list(sys.modules.items()):
            for constant, value in SMALL.items():
                if name.startswith("fercache.") and hasattr(module, constant):
                    setattr(module, constant, value)
        sys.modules["fercache.backbones.backbone"].BATCHES["cpu"] = SMALL_BATCH  # type: ignore[attr-defined]
    if order["file_bytes"]:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["file_bytes"],) * 2)
    if order["memory"]:
        resource.setrlimit(resource.RLIMIT_AS, (order["memory"],) * 2)
    if order["user"]:
        os.setgid(order["user"])
        os.setuid(order["user"])


if __name__ == "__main__":
    main()
