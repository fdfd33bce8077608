"""Compares a run with an earlier one. Pure: rows in, sentences out."""

from collections.abc import Iterable

from benchmarks.rows import Row, Sense

LOSS = 0.15
"""A ratio that is worse by this share of what it was is a loss."""


def losses(before: Iterable[Row], now: Iterable[Row]) -> dict[str, str]:
    """Return what has become worse: a sentence for each row's key.

    A row with a rival is worse when its ratio lost 15 % or more in the direction that matters; a
    row without one when it no longer reaches a target that it used to reach, because milliseconds
    and megabytes of two machines do not compare. A row that was not measured counts as lost. Rows
    without a target only inform.
    """
    measured = {row.key: row for row in now}
    found = {}
    for old in before:
        if old.target is None:
            continue
        new = measured.get(old.key)
        sentence = f"{old.work}: not measured" if new is None else _loss(old, new)
        if sentence:
            found[old.key] = sentence
    return found


def _loss(old: Row, new: Row) -> str | None:
    said = f"{old.work}: {old.value:.3g} → {new.value:.3g}"
    if not old.is_ratio:
        lost = old.is_reached and not (old.target and old.target.holds(new.value))
        return f"{said} {old.unit}, target {old.target}" if lost else None
    if not new.is_ratio:
        return f"{old.work}: {old.rival} was not measured"
    more_is_better = old.target is None or old.target.sense is Sense.AT_LEAST
    change = new.value / old.value - 1
    loss = -change if more_is_better else change
    return f"{said} × {old.rival}, {loss:.0%} worse" if loss >= LOSS - 1e-9 else None
