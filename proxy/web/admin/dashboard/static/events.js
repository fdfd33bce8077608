// Lists events, the latest first.

import { badge, h, imageLink, render } from "./dom.js";
import * as format from "./format.js";

const TONES = {
  "upstream-down": "bad",
  corrupt: "bad",
  denied: "warn",
  "budget-low": "warn",
  "upstream-up": "good",
  "tag-moved": "warn",
};

/** All kinds of events. */
export const KINDS = [
  "pull",
  "cached",
  "tag-moved",
  "evicted",
  "corrupt",
  "upstream-down",
  "upstream-up",
  "budget-low",
  "denied",
];

/** All but the one kind that a busy cache has hundreds of in a second. */
export const NOT_PULLS = KINDS.filter((kind) => kind !== "pull").join(",");

/** Return a list of the latest events: an object with `element`, `add(message)` and `clear()`. */
export function eventList(most) {
  let events = [];
  let isScheduled = false;
  const element = h("div", { role: "log", "aria-label": "Events" });

  function show() {
    isScheduled = false;
    const items = events.map((event) => item(event));
    render(
      element,
      items.length ? h("ol", { class: "events" }, items) : h("p", { class: "empty" }, "None yet."),
    );
  }

  show();
  return {
    element,
    add({ data }) {
      if (!isEvent(data)) return;
      const isKnown = events.some(
        ({ serial, time }) => serial === data.serial && time === data.time,
      );
      if (!isKnown) events = [data, ...events].slice(0, most);
      if (!isScheduled) setTimeout(show, 100); // many come at once
      isScheduled = true;
    },
    clear() {
      events = [];
      show();
    },
  };
}

function isEvent(data) {
  return data?.serial !== undefined && data.kind !== undefined;
}

function item({ serial, time, kind, subject, data }) {
  return h(
    "li",
    { "data-key": `${serial} ${time}` },
    h(
      "time",
      { class: "note", datetime: new Date(time * 1000).toISOString() },
      format.instant(time),
    ),
    badge(kind, TONES[kind]),
    h("span", { class: "subject" }, subjectOf(kind, subject)),
    h("span", { class: "note detail" }, detail(kind, data)),
  );
}

function subjectOf(kind, subject) {
  const isImage = /^[^/]+\/.+[:@]/.test(subject) && ["pull", "tag-moved", "denied"].includes(kind);
  if (isImage) return imageLink(subject);
  return /^sha\d+:/.test(subject) ? h("code", { title: subject }, format.short(subject)) : subject;
}

/** Return the data of an event in words. */
function detail(kind, data) {
  switch (kind) {
    case "tag-moved":
      return `${data.from ? format.short(data.from) : "new"} → ${format.short(data.to)}`;
    case "cached":
      return `${data.upstream}/${data.repository}, ${format.bytes(data.bytes)} in ${(data.seconds ?? 0).toFixed(1)} s from ${data.source}`;
    case "pull":
      return [data.outcome, format.bytes(data.bytes), data.client, data.user_agent]
        .filter(Boolean)
        .join(", ");
    case "budget-low":
      return (
        `${data.remaining} of ${data.limit} left` +
        (data.refills_at ? `, refills ${format.clock(data.refills_at)}` : "")
      );
    case "denied":
      return [data.client, data.because].filter(Boolean).join(": ");
    case "upstream-up":
      return data.seconds_down == null ? "" : `after ${format.duration(data.seconds_down)}`;
    default:
      return Object.entries(data)
        .filter(([, value]) => value != null)
        .map(named)
        .join(", ");
  }
}

function named([name, value]) {
  if (name === "bytes") return format.bytes(value);
  if (name === "last_used") return `last used ${format.moment(value)}`;
  if (/^sha\d+:/.test(value)) return `${name} ${format.short(value)}`;
  return `${name.replaceAll("_", " ")} ${value}`;
}
