"""Calls between rooms are traced right, and a way's returns and climbs are counted."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import typer

from places import BENCH, ROOT, on_path

with on_path(BENCH):
    import way
    from call_tracer import NOBODY, Call, Tracer
    from rooms import read_house

FLOORS = {"low": 1, "middle": 2, "high": 3}


def trace(run: str = "run", **sources: str) -> list[Call]:
    """What is called while `run` of the room ``high`` runs; every room sees all names."""
    names: dict[str, Any] = {"ThreadPoolExecutor": ThreadPoolExecutor}
    for room, text in sources.items():
        exec(compile(text, f"/rooms/{room}.py", "exec"), names)
    tracer = Tracer({f"/rooms/{room}.py": (room, f"{room}.module") for room in sources})
    tracer.run(names[run])
    return list(tracer.calls.values())


def pairs(calls: list[Call]) -> list[tuple[str, str]]:
    return [(call.caller, call.called) for call in calls]


def test_a_call_counts_once_however_often_it_is_made() -> None:
    calls = trace(low="def f(): pass", high="def run():\n    for _ in range(9):\n        f()")
    assert calls == [
        Call(NOBODY, "high", NOBODY, "high.module:1 run"),
        Call("high", "low", "high.module:3 run", "low.module:1 f"),
    ]


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("def f(g):\n    g()", "def run():\n    f(lambda: 0)"),
        # Through a library, here threading and the machinery of executors.
        (
            "def f(g):\n    with ThreadPoolExecutor(1) as pool:\n        pool.submit(g).result()",
            "def g(): pass\ndef run():\n    f(g)",
        ),
        ("def f(items):\n    return next(items)", "def g():\n    yield 1\ndef run():\n    f(g())"),
        ("def f(items):\n    sum(items)", "def run():\n    f(x for x in range(3))"),
        (
            "class Base:\n    def verb(self):\n        self.hook()",
            "class Own(Base):\n    def hook(self): pass\ndef run():\n    Own().verb()",
        ),
        (
            "class Closing:\n    def __enter__(self): pass\n"
            "    def __exit__(self, *_):\n        self.close()",
            "class Own(Closing):\n    def close(self): pass\n"
            "def run():\n    with Own():\n        pass",
        ),
    ],
    ids=["lambda", "thread", "generator", "generator expression", "hook", "closing"],
)
def test_who_calls_back_climbs(low: str, high: str) -> None:
    calls = trace(low=low, high=high)
    assert ("low", "high") in pairs(calls)
    (climb,) = way.way_of(calls, FLOORS).climbs
    assert climb.where.startswith("low.module:")
    assert climb.function.startswith("high.module:")


def test_a_callback_to_a_library_belongs_to_the_room_that_hands_it_over() -> None:
    calls = trace(low="def f(x): return -x", high="def run():\n    sorted([2, 1], key=f)")
    assert pairs(calls) == [(NOBODY, "high"), ("high", "low")]


def test_an_error_leads_back_to_who_catches_it() -> None:
    calls = trace(
        low="def fail():\n    raise ValueError",
        middle="def other(): fail()",
        high="def run():\n    try:\n        other()\n    except ValueError:\n        again()\n"
        "def again():\n    try:\n        fail()\n    except ValueError:\n        pass",
    )
    assert pairs(calls) == [
        (NOBODY, "high"),
        ("high", "middle"),
        ("middle", "low"),
        ("high", "low"),
    ]


def test_what_runs_at_import_and_finalizers_are_no_steps() -> None:
    module = "compile('f()\\nclass A:\\n    f()', '/rooms/middle.py', 'exec')"
    calls = trace(
        low="def f(): pass",
        middle="class B:\n    def __del__(self):\n        f()",
        high=f"def run():\n    exec({module}, globals())\n    b = B()\n    del b\n",
    )
    assert pairs(calls) == [(NOBODY, "high")]


def test_tracing_ends_with_the_function() -> None:
    calls = trace(low="def f(): pass", high="def run(): pass")
    assert sys.getprofile() is None
    assert pairs(calls) == [(NOBODY, "high")]


def call(caller: str, called: str, function: str = "") -> Call:
    function = function or f"{called} f"
    return Call(caller, called, f"{caller}, before {function}", function)


def test_returns_are_steps_into_rooms_that_were_entered_before() -> None:
    calls = [
        call(NOBODY, "high"),
        call("high", "low"),
        call("high", "low", "another of low"),
        call("high", "middle"),
        call("middle", "low"),
        call("middle", "low", "a third of low"),
    ]
    found = way.way_of(calls, FLOORS)
    assert found.rooms == ("high", "low", "middle")
    assert found.steps == (calls[0], calls[1], calls[3], calls[4])
    assert found.returns == (calls[4],)
    assert found.climbs == ()


def test_every_climbing_pair_of_functions_counts() -> None:
    calls = [
        call(NOBODY, "high"),
        call("high", "low"),
        call("low", "high", "first"),
        call("low", "high", "second"),
        call("high", "middle"),
        call("middle", "high", "third"),
    ]
    found = way.way_of(calls, FLOORS)
    assert found.returns == (calls[2], calls[5])
    assert found.climbs == (calls[2], calls[3], calls[5])


@pytest.mark.parametrize(
    ("returns", "climbs", "beyond"), [(10, 0, True), (9, 0, False), (0, 1, True), (0, 0, False)]
)
def test_climbs_and_many_returns_exceed_the_limits(returns: int, climbs: int, beyond: bool) -> None:
    steps = [call(NOBODY, "low"), *(call(f"room {number}", "low") for number in range(returns))]
    made = way.Way(tuple(steps), climbs * (call("low", "high"),), ())
    assert len(made.returns) == returns
    assert way.beyond("search --image", made) is beyond


def test_options_are_spelled_as_the_checkout_has_them() -> None:
    line = ["onnx", "--limit|--image-count", "8", "-q"]
    assert way.spell(line, {"--image-count", "-q"}) == ["onnx", "--image-count", "8", "-q"]
    with pytest.raises(SystemExit, match=r"no option --limit\|--image-count"):
        way.spell(line, {"-q"})


@pytest.mark.parametrize("line", [*way.COMMANDS.values(), *way.NEEDED.values()], ids=" ".join)
def test_every_command_line_is_one_of_this_checkout(line: tuple[str, ...]) -> None:
    program, name, *rest = line
    app = importlib.import_module(way.entry_point(ROOT, program)).app
    command = typer.main.get_command(app).commands[name]
    known = {option for parameter in command.params for option in parameter.opts}
    assert len(way.spell(rest, known)) == len(rest)


def test_every_command_has_its_limit() -> None:
    assert way.MOST_RETURNS.keys() == way.COMMANDS.keys()


def test_a_real_command_is_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(way.COMMANDS, "keygen", ("hat-export", "keygen", "{out}"))
    house = read_house(ROOT)
    found = way.Runner(ROOT, tmp_path).follow("keygen", house)
    assert found.rooms[0].startswith("hat_export.cli")
    assert {"hat_export.bundle", "hat_export.base"} <= set(found.rooms)
    assert all(call.called in house.floors for call in found.calls)


def test_a_command_that_fails_ends_the_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(way.COMMANDS, "inspect", ("hat-export", "inspect", "{out}"))
    with pytest.raises(SystemExit, match=r"ended with 1:\nerror: .*out of inspect"):
        way.Runner(ROOT, tmp_path).follow("inspect", read_house(ROOT))


def run_main(monkeypatch: pytest.MonkeyPatch, follow: Callable[..., Any], *options: str) -> int:
    monkeypatch.setattr(way.Runner, "follow", follow)
    monkeypatch.setattr(sys, "argv", ["way.py", *options])
    return way.main()


def test_the_exit_status_tells_of_a_climb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    errors, cli = "hat_export.errors", "hat_export.cli"
    climb = Call(errors, cli, "hat_export.errors:1 f", "hat_export.cli.common:2 g")

    def follow(calls: list[Call]) -> Callable[..., Any]:
        return lambda runner, name, house: way.way_of(calls, house.floors)

    straight = [Call(NOBODY, cli, NOBODY, "g"), Call(cli, errors, "g", "f")]
    assert run_main(monkeypatch, follow(straight), "--check") == 0
    assert "EXCEEDED" not in capsys.readouterr().out
    assert run_main(monkeypatch, follow([*straight, climb]), "onnx") == 0
    shown = capsys.readouterr().out
    assert "EXCEEDED" in shown
    assert "errors:1 f -> cli.common:2 g" in shown
    assert run_main(monkeypatch, follow([*straight, climb]), "onnx", "--check", "--json") == 1
    assert json.loads(capsys.readouterr().out)["onnx"]["counts"]["climbs"] == 1


def test_another_checkout_needs_its_own_interpreter(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text("utf-8"), "utf-8")
    with pytest.raises(SystemExit, match=f"run this by the interpreter of {tmp_path}"):
        way.work(tmp_path, "", "hat-export", "inspect")
