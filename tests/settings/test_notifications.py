"""The settings of notifications: valid values, and error messages without secrets."""

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import ValidationError

from proxy.app.notifications import receivers
from proxy.core.errors import ConfigError
from proxy.core.routing import Router
from proxy.runtime.events import EventKind
from proxy.settings import Settings, loading
from proxy.settings.notifications import EventName, Notification

URL = "https://ci.example.com/hooks/t0ken"


def settings(*notifications: dict[str, Any]) -> Settings:
    return Settings.model_validate(
        {"upstreams": {"docker.io": {}}, "notifications": [*notifications]}
    )


def test_every_kind_of_event_has_its_name() -> None:
    assert set(get_args(EventName)) == set(EventKind)


def test_what_is_left_out_has_a_default() -> None:
    plain = Notification.model_validate({"url": URL})
    assert plain.label == "ci.example.com"
    assert set(plain.kinds) == set(EventKind) - {"pull"}
    assert (plain.format, plain.timeout, plain.retry_for) == ("cloudevents", 10.0, 3 * 86400.0)
    other = Notification.model_validate({"url": URL, "format": "distribution", "name": "ci"})
    assert (other.label, set(other.kinds)) == ("ci", {"cached", "tag-moved"})


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"url": "ci.example.com/t0ken"}, ["not the address of a receiver"]),
        ({"url": "ftp://ci.example.com/t0ken"}, ["not the address of a receiver"]),
        ({"url": "https:///t0ken"}, ["not the address of a receiver"]),
        ({"url": "https://ci.example.com:x/t0ken"}, ["not the address of a receiver"]),
        ({"url": "https://me:t0ken@ci.example.com/"}, ["use authorization_file"]),
        ({"events": ["pulled"]}, ["tag-moved"]),
        (
            {"format": "distribution", "events": ["pull", "corrupt"]},
            ["distribution cannot express corrupt", "pull, cached, tag-moved", "use cloudevents"],
        ),
        ({"images": ["a//b"]}, ["is no name"]),
        ({"name": "two words"}, ["should match pattern"]),
        ({"max_queue": 0}, ["greater than or equal to 1"]),
        ({"timeout": "0s"}, ["greater than 0"]),
    ],
)
def test_an_error_says_what_to_do(tmp_path: Path, wrong: dict[str, Any], words: list[str]) -> None:
    file = tmp_path / "millpond.yaml"
    file.write_text(json.dumps({"notifications": [{"url": URL} | wrong]}))
    with pytest.raises(ConfigError, match="notifications") as refused:
        loading.load(file)
    text = str(refused.value)
    for word in words:
        assert word in text
    assert "t0ken" not in text


def test_two_receivers_need_two_names() -> None:
    with pytest.raises(ValidationError, match=r"two receivers are called ci\.example\.com"):
        settings({"url": URL}, {"url": "http://ci.example.com:8080/other"})
    assert len(settings({"url": URL}, {"url": URL, "name": "other"}).notifications) == 2


def test_the_address_is_not_shown() -> None:
    assert "t0ken" not in repr(settings({"url": URL}))
    [receiver] = receivers(settings({"url": URL}), Router(settings({"url": URL})))
    assert "t0ken" not in repr(receiver)


@pytest.mark.parametrize(
    ("key", "text", "words"),
    [
        ("secret_file", None, "cannot be read: No such file"),
        ("secret_file", "", "there is no secret in it"),
        ("secret_file", "# nothing\n\n", "there is no secret in it"),
        ("secret_file", "s3cret", "line 1 is no secret; write whsec_"),
        ("secret_file", "#\nwhsec_s3cr", "line 2 is no secret"),
        ("secret_file", "whsec_s3cret!!", "line 1 is no secret"),
        ("authorization_file", "", "it must have one line"),
        ("authorization_file", "Bearer s3cret\nX-Other: 1", "it must have one line"),
        ("ca_file", "s3cret", "cannot be used"),
        ("ca_file", None, "cannot be used: No such file"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, key: str, text: str | None, words: str
) -> None:
    file = tmp_path / "file"
    if text is not None:
        file.write_text(text)
    wanted = settings({"url": URL, key: str(file)})
    with pytest.raises(ConfigError) as refused:
        receivers(wanted, Router(wanted))
    message = str(refused.value)
    assert message.startswith(f"notifications.0.{key}: {file}")
    assert words in message
    assert "s3c" not in message
