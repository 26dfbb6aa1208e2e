"""What both command lines share: errors as one line, progress, tables."""

from __future__ import annotations

import errno
import io
import os
import signal
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import typer

from hat_export.base.progress import Progress, progress_on_stderr
from hat_export.base.terminal import printable
from hat_export.cli.options import Engine
from hat_export.errors import HatError, InputError

if TYPE_CHECKING:
    from rich.console import Console

    from hat_export.base.ray import RayWorkers
    from hat_export.report.report import Report, Table
    from hat_export.spec import ModelSpec

#: Errors of a disk that is full, read-only or broken, and of exhausted descriptors.
_FULL = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EROFS,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
)

#: How libraries say that memory has run out, where they have no type for it.
_NO_MEMORY = (
    "bad allocation",
    "bad_alloc",
    "can't allocate memory",
    "cannot allocate memory",
    "failed to allocate memory",
    "failed to map segment",
    "can't start new thread",
    "resource temporarily unavailable",
)

#: Exit status of a process that Ctrl-C ended, as shells expect it.
INTERRUPTED = 130

#: What a command holds until it ends.
_AT_END = ExitStack()


def run_program(app: typer.Typer, name: str) -> None:
    """Run a command line; an error of ours becomes one line and an exit status.

    Args:
        app: The commands.
        name: Name of the program.
    """
    # A polite kill ends like Ctrl-C: through the handlers that clean up.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Half a surrogate pair in somebody's name is shown as an escape.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _AT_END:
            status = app(prog_name=name, standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # here, where a reader that has gone or a full disk can be told
    except HatError as error:
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _fail("interrupted; nothing was left behind", INTERRUPTED)
    except BrokenPipeError:
        # The reader of our output has gone: nothing to tell, and nobody to tell it to.
        _drop_output()
        sys.exit(1)
    except Exception as error:
        trouble = _trouble_of_machine(error)
        if trouble is not None:
            _fail(trouble, 1)
        if not hasattr(error, "format_message"):  # a usage error knows how to show itself
            raise
        error.show()  # type: ignore[attr-defined]
        sys.exit(getattr(error, "exit_code", 2))
    if status == INTERRUPTED:  # Typer has turned the interrupt into an exit status
        _fail("interrupted; nothing was left behind", INTERRUPTED)
    sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str, status: int) -> NoReturn:
    line = printable(" ".join(message.split()))
    print(f"error: {line}", file=sys.stderr)
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        _drop_output()
    sys.exit(status)


def _drop_output() -> None:
    """Send what is still to be printed nowhere; else the interpreter complains when it ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())


def _trouble_of_machine(error: Exception) -> str | None:
    """What to tell of an error that says something of the machine, wherever it comes from."""
    if isinstance(error, OSError) and error.errno in _FULL:
        place = f"{error.filename}: " if error.filename else ""
        return (
            f"{place}{error.strerror}; free some, or name another output, --cache or TMPDIR "
            f"(temporary files are in {tempfile.gettempdir()})"
        )
    text = str(error).lower()
    if isinstance(error, MemoryError) or any(sign in text for sign in _NO_MEMORY):
        return "out of memory; close other programs, or use fewer --threads or a smaller --batch"
    return None


def show_progress(quiet: bool) -> Progress:
    """Progress on standard error, given back when the command ends, however it ends."""
    shown = progress_on_stderr(quiet)
    _AT_END.callback(shown.close)
    return shown


def read_spec(path: Path | None) -> ModelSpec | None:
    """The spec that ``--spec`` names: a preset or a JSON file.

    Raises:
        InputError: if it is neither.
    """
    from hat_export.spec import PRESETS, ModelSpec

    if path is None:
        return None
    if str(path) in PRESETS:
        return PRESETS[str(path)]
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(PRESETS)
        raise InputError(
            f"{path}: neither a readable spec ({error}) nor a preset: {known}"
        ) from None
    return ModelSpec.parse(text, str(path))


def require_signature(public_key: Path | None, *targets: Path) -> None:
    """Refuse what isn't a bundle signed by a key, before anything of it is used.

    Args:
        public_key: What ``--require-signature`` names; None checks nothing.
        targets: Bundles; a checkpoint carries no signature and is refused.
    """
    if public_key is None:
        return
    from hat_export.bundle.bundle import Bundle
    from hat_export.bundle.signature import check_signature

    for target in targets:
        check_signature(target, public_key)
        Bundle.read(target)


def ray_workers(
    engine: Engine, workers: int, threads: int | None, address: str | None
) -> RayWorkers | None:
    """The workers that ``--engine ray`` asks for, of one thread each if nothing is said.

    Raises:
        InputError: if an address is given to another engine.
    """
    from hat_export.base.ray import RayWorkers

    if engine is Engine.ray:
        return RayWorkers(workers, threads or 1, address)
    if address is not None:
        raise InputError("--address is of --engine ray; give both")
    return None


def read_lines(paths: list[Path]) -> list[str]:
    """The lines of some text files that aren't blank.

    Raises:
        InputError: if a file can't be read as text.
    """
    lines: list[str] = []
    for path in paths:
        try:
            lines += path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"{path}: not a readable text file ({error})") from None
    return [line.strip() for line in lines if line.strip()]


def check_report_paths(paths: list[Path] | None) -> None:
    """Refuse a report that can't be written in its format or place, before any work is done."""
    from hat_export.base.files import check_writable
    from hat_export.report.report import check_report_path

    for path in paths or []:
        check_report_path(path)
        check_writable(path)


def deliver(report: Report, paths: list[Path] | None) -> None:
    """Print a report and write it to every path asked for."""
    from hat_export.report.report import write_report

    show(report)
    for path in paths or []:
        write_report(report, path)


def show(report: Report) -> None:
    """Print a report's summary and tables to the terminal."""
    from rich.text import Text

    console = _console()
    for table in report.tables:
        if table.rows:
            show_table(table)
    for line in report.summary:
        console.print(Text(printable(line)))


def show_table(table: Table, text_column: int = 0) -> None:
    """Print a table to the terminal; all columns but one hold figures."""
    from rich import table as rich_table
    from rich.text import Text

    shown = rich_table.Table(
        title=table.title or None, title_justify="left", caption=table.note or None
    )
    shown.caption_justify = "left"
    for number, column in enumerate(table.columns):
        justify: Literal["left", "right"] = "left" if number == text_column else "right"
        shown.add_column(Text(column), justify=justify)
    for row in table.rows:
        shown.add_row(*(Text(printable(cell)) for cell in row))
    _console().print(shown)


def _console() -> Console:
    from rich.console import Console

    # A pipe has no width of its own: 80 columns would cut figures off.
    return Console(width=None if sys.stdout.isatty() else 160)
