// How numbers, times and digests are written.

const UNITS = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
const AGES = [
  [86400, "day"],
  [3600, "hour"],
  [60, "minute"],
];
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const SECONDS = new Intl.DateTimeFormat("en-GB", { timeStyle: "medium" });
const DAY = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short" });
const MOMENT = new Intl.DateTimeFormat("en-GB", { dateStyle: "medium", timeStyle: "short" });
const NUMBER = new Intl.NumberFormat("en");

/** Return a size as `12.3 GiB`. */
export function bytes(size) {
  if (size == null) return "–";
  let value = Math.abs(size);
  let unit = 0;
  while (value >= 1023.5 && unit < UNITS.length - 1) {
    value /= 1024;
    unit += 1;
  }
  const digits = unit === 0 || value >= 99.95 ? 0 : 1;
  return `${size < 0 ? "−" : ""}${value.toFixed(digits)} ${UNITS[unit]}`;
}

/** Return `12,345`. */
export function number(value) {
  return value == null ? "–" : NUMBER.format(value);
}

/** Return `1 image` or `3 images`. */
export function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** Return a share as `93.4 %`; no total: `–`. */
export function percent(part, total) {
  if (!total) return "–";
  const share = (100 * part) / total;
  return `${share > 0 && share < 100 ? share.toFixed(1) : share.toFixed(0)} %`;
}

/** Return a rate as `12.3 requests/s`. */
export function rate(value, noun) {
  return `${value.toFixed(value >= 9.95 ? 0 : 1)} ${noun}/s`;
}

/** Return a length of time as `3 hours`, in its largest unit. */
export function duration(seconds) {
  for (const [length, unit] of AGES) {
    if (seconds >= length) return count(Math.floor(seconds / length), unit);
  }
  return count(Math.max(0, Math.round(seconds)), "second");
}

/** Return how long ago a Unix time was, as an element that has the exact time too. */
export function ago(then, now = Date.now() / 1000) {
  if (then == null) return "never";
  const element = document.createElement("time");
  element.dateTime = new Date(then * 1000).toISOString();
  element.title = moment(then);
  element.textContent = now - then < 10 ? "just now" : `${duration(now - then)} ago`;
  return element;
}

/** Return a Unix time of this day or soon as `14:10`, else with the date. */
export function clock(then, now = Date.now() / 1000) {
  const [date, today] = [new Date(then * 1000), new Date(now * 1000)];
  return date.toDateString() === today.toDateString() ? CLOCK.format(date) : MOMENT.format(date);
}

/** Return a Unix time as `22 Nov 2026, 14:10`. */
export function moment(then) {
  return then == null ? "–" : MOMENT.format(new Date(then * 1000));
}

/** Return the time of an event, with seconds; with the day if that is not today. */
export function instant(then) {
  const date = new Date(then * 1000);
  const time = SECONDS.format(date);
  return date.toDateString() === new Date().toDateString() ? time : `${DAY.format(date)}, ${time}`;
}

/** Return the label of a chart's time axis. */
export function tick(then, range) {
  const date = new Date(then * 1000);
  return range <= 2 * 86400 ? CLOCK.format(date) : DAY.format(date);
}

/** Return a digest as `sha256:0123456789ab`. */
export function short(digest) {
  if (digest == null) return "–";
  const [algorithm, hash] = digest.split(":");
  return hash === undefined ? digest : `${algorithm}:${hash.slice(0, 12)}`;
}
