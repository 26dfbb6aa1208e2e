"""What a door is, and how what came out of it is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

from hat_export.errors import HatError

#: A payload that runs makes this file, beside the folder of its input.
CANARY = "canary"
#: Beside the folder of an input, too; nothing may read or change it.
SECRET = Path("outside") / "secret.txt"


class Door(ABC):
    """A way in for files of strangers.

    Attributes:
        name: In the table.
        attack: What is done, in a few words.
        needs: Packages without which it isn't there.
    """

    name: str
    attack: str
    needs: Sequence[str] = ()

    @abstractmethod
    def prepare(self, work: Path) -> None:
        """Make the sound files that malformed ones are made of; called once in each process."""

    @abstractmethod
    def make(self, rng: Random, folder: Path) -> str:
        """Write one malformed input into an empty folder; gives the name of the attack."""

    @abstractmethod
    def open(self, folder: Path) -> None:
        """Read the input by the functions that the commands call."""

    @abstractmethod
    def command(self, folder: Path) -> list[str]:
        """The command line that a user would give, without the program's folder."""


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        attack: Name of the attack.
        kind: ``accepted``, ``refused``, or what must not happen: ``traceback``, ``hang``,
            ``crash``, ``memory``, ``executed``, ``escaped``.
        detail: The message.
    """

    attack: str
    kind: str
    detail: str = ""

    @property
    def bad(self) -> bool:
        """Whether it must not happen."""
        return self.kind not in ("accepted", "refused")


def attempt(door: Door, attack: str, folder: Path) -> Outcome:
    """Open an input that is there, and judge what happens."""
    try:
        door.open(folder)
        outcome = Outcome(attack, "accepted")
    except HatError as error:
        outcome = Outcome(attack, "refused", str(error))
    except MemoryError:
        outcome = Outcome(attack, "memory", "more than was allowed")
    except Exception as error:
        frames, trace = [], error.__traceback__
        while trace is not None:
            code = trace.tb_frame.f_code
            if "hat_export" in code.co_filename or "/cli/" in code.co_filename:
                frames.append(f"{Path(code.co_filename).name}:{trace.tb_lineno}")
            trace = trace.tb_next
        detail = f"{type(error).__name__}: {str(error)[:200]} at {' '.join(frames[-3:])}"
        outcome = Outcome(attack, "traceback", detail)
    return _watched(outcome, folder)


def surroundings(folder: Path) -> None:
    """What lies around an input: a secret that it must not reach."""
    secret = folder.parent / SECRET
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("secret\n")


def _watched(outcome: Outcome, folder: Path) -> Outcome:
    canary, secret = folder.parent / CANARY, folder.parent / SECRET
    if canary.exists():
        canary.unlink()
        return Outcome(outcome.attack, "executed", "a payload ran")
    there = {path.name for path in secret.parent.iterdir()}
    if there != {secret.name} or secret.read_text() != "secret\n":
        return Outcome(outcome.attack, "escaped", "a file outside was changed")
    return outcome
