"""Options: defaults, environment, checks, messages."""

from __future__ import annotations

from dataclasses import fields

import pytest

from zoomc.errors import OptionValueError, UnknownOptionError, ZoomcError
from zoomc.options import Options, describe


@pytest.fixture(autouse=True)
def own_defaults(monkeypatch):
    monkeypatch.delenv("ZOOMC_WEIGHTS")  # which tests of models set


def test_defaults_are_valid_and_described():
    options = Options.resolve()
    assert options == Options()
    described = {name: (default, env) for name, default, env, help in describe() if help}
    assert set(described) == {f.name for f in fields(Options)}
    assert described["dtype"] == ("model", "ZOOMC_DTYPE")


def test_unknown_option_names_the_nearest():
    with pytest.raises(UnknownOptionError, match="'wieghts'; did you mean 'weights'"):
        Options.resolve(options={"wieghts": "keep"})


def test_unknown_option_unlike_any_lists_them_all():
    with pytest.raises(UnknownOptionError, match="known: activations, attention, calibrate"):
        Options.resolve(options={"zzzzzz": 1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("dtype", "int"),
        ("target", "gpu!"),
        ("weights", "int5"),
        ("isa", "sse"),
        ("attention", "fp8"),
        ("scales", "fixed"),
        ("threads", -1),
        ("threads", "many"),
        ("threads", True),
        ("variants", 0),
        ("debug", 9),
        ("validate", "perhaps"),
        ("dump", 3),
        ("fuel", -2),
    ],
)
def test_values_are_checked_and_the_message_says_what_is_taken(name, value):
    with pytest.raises(OptionValueError, match=f"option {name}=.* takes "):
        Options.resolve(options={name: value})


def test_environment_is_read_and_options_win(monkeypatch):
    monkeypatch.setenv("ZOOMC_DTYPE", "bf16")
    monkeypatch.setenv("ZOOMC_DEBUG", "2")
    assert Options.resolve() == Options(dtype="bf16", debug=2)
    assert Options.resolve(options={"dtype": "fp32"}).dtype == "fp32"


def test_environment_typos_are_caught(monkeypatch):
    monkeypatch.setenv("ZOOMC_DYTPE", "bf16")
    with pytest.raises(UnknownOptionError, match="did you mean 'dtype'"):
        Options.resolve()


def test_modes_map_or_are_refused():
    assert Options.resolve("default") == Options.resolve("reduce-overhead") == Options()
    with pytest.raises(OptionValueError, match="mode='max-autotune'"):
        Options.resolve("max-autotune")


def test_every_error_is_one_users_can_catch():
    assert issubclass(OptionValueError, ZoomcError)
    assert issubclass(UnknownOptionError, ZoomcError)
