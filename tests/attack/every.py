"""All scenarios by their names: hostile registries, hostile clients and bad days."""

from typing import Final

from tests.attack import clients, days, registries

ALL: Final = {
    scenario.name: scenario
    for scenario in (*registries.SCENARIOS, *clients.SCENARIOS, *days.SCENARIOS)
}
