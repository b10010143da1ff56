"""One Java program at a time: started, spoken to by lines, never waited for without end, always closed."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self, cast

from ..errors import RunError

__all__ = ["JavaProgram", "java_problem"]

_SHOWN = 600  # characters of what the program complained of
_PROBE_SECONDS = 60.0
_ENGLISH = ("-Duser.language=en", "-Duser.country=US")  # a German Java reads and writes 0,5 instead of 0.5


def java_problem() -> str | None:
    """What is wrong with the `java` on the PATH; None if it answers.

    Example:
        >>> problem = java_problem()
        >>> problem is None or "Java runtime" in problem
        True
    """
    if shutil.which("java") is None:
        return 'there is no "java" on the PATH; install a Java runtime (version 8 or newer)'
    try:
        with JavaProgram("java -version", ["-version"], Path.cwd(), patience=_PROBE_SECONDS) as program:
            program.wait()
    except RunError as error:
        return f'the "java" on the PATH doesn\'t work ({error}); install a Java runtime (version 8 or newer)'
    return None


class JavaProgram:
    """A running `java`, a context manager that kills it at the end, whatever happened.

    Example:
        >>> with JavaProgram("java -version", ["-version"], Path.cwd(), patience=60) as program:  # doctest: +SKIP
        ...     program.wait()
    """

    def __init__(
        self,
        name: str,
        arguments: Sequence[str],
        folder: Path,
        *,
        patience: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; raises RunError when that is impossible.

        name: what messages call it. arguments: those after `java`. folder: where it runs. patience: how many seconds
        it may be silent. environment: more variables.
        """
        self.name = name
        self.patience = patience
        # A file and not a pipe: a program that complains a lot must not stop because nobody reads it.
        self._complaints = tempfile.TemporaryFile()  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                ["java", *_ENGLISH, *arguments],
                cwd=folder,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._complaints,
                start_new_session=True,  # "java" may be a script that starts the real one: both are to be killed
            )
        except OSError as error:
            self._complaints.close()
            raise RunError(f"{name} can't be started: {error.strerror or error}") from error
        self._output, self._input = cast(BinaryIO, self._process.stdout), cast(BinaryIO, self._process.stdin)
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._questions: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        # Both pipes have their own thread, so that neither side ever waits for the other with a full pipe.
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._read, self._write)]
        for thread in self._threads:
            thread.start()

    def __enter__(self) -> Self:
        """The program, already running."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Kill it, if it still runs, and everything it started."""
        if self._process.returncode is None:
            self._kill()
        self._questions.put(None)
        for thread in self._threads:
            thread.join(timeout=10)
        if not self._threads[0].is_alive():
            self._output.close()
        self._complaints.close()

    def send(self, lines: Iterable[str]) -> None:
        """Hand over some lines; they are written while the program works."""
        for line in lines:
            self._questions.put(f"{line}\n".encode(errors="replace"))

    def answer(self, question: str) -> str:
        """The next line the program prints; raises RunError when it has ended or is silent for too long.

        question: what it was asked, for the message.
        """
        try:
            line = self._answers.get(timeout=self.patience)
        except queue.Empty as error:
            raise RunError(
                f"{self.name} gave no answer to {question} for {self.patience:g} seconds and was stopped"
            ) from error
        if line is None:
            raise RunError(f"{self.name} ended before it answered {question} {self._last_words()}")
        return line.decode(errors="replace").strip()

    def wait(self) -> None:
        """Wait for the end of a program that is told nothing; raises RunError when it fails or takes too long."""
        self._questions.put(None)
        try:
            code = self._process.wait(timeout=self.patience)
        except subprocess.TimeoutExpired as error:
            raise RunError(f"{self.name} didn't end within {self.patience:g} seconds and was stopped") from error
        if code:
            raise RunError(f"{self.name} failed {self._last_words()}")

    def _last_words(self) -> str:
        """How it ended and what it said on standard error."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout=10)
        self._complaints.seek(0)
        said = " ".join(self._complaints.read(100 * _SHOWN).decode(errors="replace").split())
        code = self._process.poll()
        return f"(exit code {code}): {said[:_SHOWN]}" if said else f"(exit code {code}) without a message"

    def _read(self) -> None:
        with suppress(OSError, ValueError):
            for line in self._output:
                self._answers.put(line)
        self._answers.put(None)

    def _write(self) -> None:
        with suppress(OSError, ValueError):  # a dead program: `answer` says so
            while (data := self._questions.get()) is not None:
                self._input.write(data)
                self._input.flush()
        with suppress(OSError, ValueError):
            self._input.close()

    def _kill(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            if sys.platform == "win32":
                self._process.kill()
            else:
                os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
