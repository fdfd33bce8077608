"""The settings of warm: valid values, and error messages."""

import pytest
from pydantic import ValidationError

from proxy.settings.warm import Warm


def test_an_entry_has_defaults() -> None:
    warm = Warm.model_validate({"images": ["nginx:1.27", "ghcr.io/acme/**"]})
    assert (warm.schedule, warm.platforms, warm.referrers) == ("0 3 * * *", (), True)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ({"images": []}, "at least 1 item"),
        ({"images": ["a//b"]}, "is no name"),
        ({"images": ["a"], "platforms": ["amd64"]}, "write linux/amd64, or [all]"),
        ({"images": ["a"], "platforms": ["all", "linux/amd64"]}, "'all' is no platform"),
        ({"images": ["a"], "schedule": "3 o'clock"}, "is not cron syntax"),
        ({"images": ["a"], "schedule": "0 0 31 4,6 *"}, "is not cron syntax"),
    ],
    ids=str,
)
def test_errors_say_what_is_wrong(entry: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as error:
        Warm.model_validate(entry)
    assert said in str(error.value)
