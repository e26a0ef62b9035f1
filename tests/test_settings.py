"""Settings: flags, environment, and what a mistake says."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from server.errors import SettingsError
from server.settings import Settings, flag_of, read_settings


def test_flags_win_over_the_environment_over_defaults() -> None:
    settings = read_settings(
        {"adapters": "a", "port": "1", "host": None}, {"ADAPTERMUX_PORT": "2", "ADAPTERMUX_HOST": "h"}
    )
    assert (settings.adapters, settings.port, settings.host, settings.dtype) == ("a", 1, "h", "auto")


@pytest.mark.parametrize(
    ("flags", "environment", "word"),
    [
        ({}, {}, "--adapters"),
        ({"adapters": "a", "port": "eighty"}, {}, "--port"),
        ({"adapters": "a", "port": "65536"}, {}, "--port"),
        ({"adapters": "a", "max_inputs": "11", "max_waiting": "10"}, {}, "--max-waiting 10"),
        ({"adapters": "a", "dtype": "int4"}, {}, "--dtype"),
        ({"adapters": "a"}, {"ADAPTERMUX_PROT": "1"}, "did you mean ADAPTERMUX_PORT"),
        ({"adapters": "a"}, {"ADAPTERMUX_MAX_INPUTS": "0"}, "ADAPTERMUX_MAX_INPUTS"),
    ],
)
def test_mistakes_name_the_flag_or_variable(flags: dict[str, str], environment: dict[str, str], word: str) -> None:
    with pytest.raises(SettingsError, match=word):
        read_settings(flags, environment)


def test_other_variables_are_not_ours() -> None:
    assert read_settings({"adapters": "a"}, {"ADAPTERS": "b", "PATH": "c"}).adapters == "a"


def test_the_key_of_a_client_beside_it_does_not_stop_a_server() -> None:
    assert read_settings({"adapters": "a"}, {"ADAPTERMUX_API_KEY": "k"}).adapters == "a"


def test_every_setting_has_a_help_text() -> None:
    assert all(field.description for field in Settings.model_fields.values())


@pytest.mark.parametrize(
    "verb",
    ["server", "server serve", "server check", "server fetch-base", "server classify", "training", "training run"],
)
def test_help_comes_at_once_and_ends_with_an_example(verb: str) -> None:
    command = verb.split()[0]
    began = time.process_time()
    done = subprocess.run([sys.executable, "-m", *verb.split(), "--help"], capture_output=True, text=True, check=True)
    assert "example:" in done.stdout
    loaded = subprocess.run(
        [sys.executable, "-c", f"import sys, {command}.command; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "False", "the help text waits for torch"
    assert time.process_time() - began < 10
    if verb == "server serve":
        assert all(flag_of(name) in done.stdout for name in Settings.model_fields)
