// The first page: what the cache does now, and has done.

import { get } from "./api.js";
import { hitRatio, total, traffic } from "./charts.js";
import { badge, bar, button, h, imageLink, render, table } from "./dom.js";
import { eventList, NOT_PULLS } from "./events.js";
import * as format from "./format.js";
import { follow, poll } from "./live.js";
import { session } from "./session.js";

const RANGES = [
  ["1 hour", 3600],
  ["24 hours", 86400],
  ["7 days", 7 * 86400],
  ["30 days", 30 * 86400],
];
const POINTS = 180;
const KEY = "millpond-range";

/** Show the page; return its title. */
export function overview(main, { signal, start }) {
  const [tiles, upstreams, downloads] = [h("div", { class: "tiles" }), h("div"), h("div")];
  const [ratio, bytes] = [hitRatio(), traffic()];
  const range = rangeChoice();
  main.append(
    h("h1", {}, "Overview"),
    tiles,
    section(
      "Over time",
      { tools: range.element },
      h("div", { class: "charts" }, ratio.element, bytes.element),
    ),
    section("Registries", {}, upstreams),
    section("Downloads in progress", {}, downloads),
  );
  signal.addEventListener("abort", () => (ratio.close(), bytes.close()));

  const state = { now: null, before: null, series: null };
  const showTiles = () => render(tiles, tileList(state));
  const loadSeries = async () => {
    const seconds = range.seconds();
    const until = Math.floor(Date.now() / 1000);
    const since = until - seconds;
    const found = await get("series", { since, points: POINTS }, { signal });
    state.series = { ...found, since, until, seconds };
    ratio.show(state.series);
    bytes.show(state.series);
    showTiles();
  };
  const receive = ({ data }) => {
    Object.assign(state, { before: state.now, now: data });
    showTiles();
    render(upstreams, upstreamTable(data));
    render(downloads, downloadList(data.downloads));
  };
  range.element.addEventListener("change", () => start(loadSeries()));
  showTiles();
  start(follow("live", {}, receive, signal));
  start(poll(() => (range.seconds() > 3600 ? 60 : 20), loadSeries, signal));
  if (session.may_administer) privateParts(main, { signal, start });
  else main.append(invitation());
  return "Overview";
}

/** Return a section with a heading and optional tools beside it. */
export function section(title, { tools, id } = {}, ...children) {
  const head = h("div", { class: "head" }, h("h2", { id }, title), tools);
  return h("section", {}, head, children);
}

/** Return what is shown in place of what only the operator may see. */
export function invitation() {
  const text = "Images, events, clients and jobs are visible to administrators of this cache.";
  return h("p", { class: "note invitation" }, text, " ", button("Log in", "log-in", null));
}

function privateParts(main, { signal, start }) {
  const [images, recent] = [h("div"), h("div")];
  const by = choice(
    "By",
    [
      ["pulls", "pulls"],
      ["bytes", "bytes"],
    ],
    "pulls",
  );
  const all = h("a", { href: "#/activity" }, "All events");
  main.append(
    h(
      "div",
      { class: "columns" },
      section("Top images", { tools: by }, images),
      section("Recent events", { tools: all }, recent),
    ),
  );
  const load = async () => {
    const query = { by: by.querySelector("select").value, limit: 10 };
    render(images, topTable((await get("top", query, { signal })).images, query.by));
  };
  by.addEventListener("change", () => start(load()));
  start(poll(20, load, signal));
  const list = eventList(8);
  recent.append(list.element);
  start(follow("events", { kinds: NOT_PULLS }, list.add, signal));
}

function choice(label, options, chosen) {
  const select = h(
    "select",
    {},
    options.map(([name, value]) => h("option", { value, selected: value === chosen }, name)),
  );
  return h("label", { class: "choice" }, label, " ", select);
}

function rangeChoice() {
  const stored = Number(sessionStorage.getItem(KEY)) || 86400;
  const element = choice("Last", RANGES, stored);
  const select = element.querySelector("select");
  select.addEventListener("change", () => sessionStorage.setItem(KEY, select.value));
  return { element, seconds: () => Number(select.value) };
}

function tileList({ now, before, series }) {
  const sum = series && total(series.points);
  const range = series && RANGES.find(([, seconds]) => seconds === series.seconds)[0];
  const saved = sum && sum.client_bytes - sum.upstream_bytes;
  return [
    tile(
      "Hit ratio",
      sum ? format.percent(sum.hits, sum.requests) : "–",
      sum && `of ${format.count(sum.requests, "request")} in ${range}`,
    ),
    tile(
      "Bytes saved",
      format.bytes(saved),
      sum && `of ${format.bytes(sum.client_bytes)} to clients in ${range}`,
    ),
    rateTile(now, before),
    cacheTile(now?.cache),
  ];
}

function tile(name, value, text, ...more) {
  return h(
    "div",
    { class: "tile" },
    h("h2", {}, name),
    h("p", { class: "value" }, value),
    more,
    h("p", { class: "note" }, text ?? "\u00a0"),
  );
}

function rateTile(now, before) {
  const seconds = before && now.time - before.time;
  if (!seconds || now.uptime_seconds < before.uptime_seconds)
    return tile("Now", "–", now && `up for ${format.duration(now.uptime_seconds)}`);
  const each = (name) => Math.max(0, now[name] - before[name]) / seconds;
  return tile(
    "Now",
    `${format.bytes(each("client_bytes"))}/s`,
    `${format.rate(each("requests"), "requests")}, up for ${format.duration(now.uptime_seconds)}`,
  );
}

function cacheTile(cache) {
  if (!cache) return tile("Cache", "–");
  const { bytes, limit_bytes: limit, oldest_use: oldest, pinned_bytes: pinned } = cache;
  const words = [format.count(cache.files, "file")];
  if (pinned) words.push(`${format.bytes(pinned)} pinned`);
  words.push(oldest == null ? "nothing to evict" : ["oldest use ", format.ago(oldest)]);
  const text = words.flatMap((word, number) => (number ? [", ", word] : [word]));
  return tile(
    "Cache",
    [format.bytes(bytes), h("small", {}, ` of ${format.bytes(limit)}`)],
    h("span", {}, text),
    bar(`Cache: ${format.percent(bytes, limit)} full`, bytes, limit),
  );
}

function upstreamTable({ upstreams, time }) {
  const rows = Object.entries(upstreams).map(([name, upstream]) => ({ name, ...upstream }));
  return table(
    "Registries that this cache asks",
    [
      { title: "Registry", cell: (row) => row.name },
      { title: "Health", cell: health },
      {
        title: "Latency",
        kind: "number",
        cell: (row) => (row.latency_ms == null ? "–" : `${Math.round(row.latency_ms)} ms`),
      },
      { title: "Errors", kind: "number", cell: (row) => format.number(row.errors) },
      {
        title: "Circuit",
        cell: (row) =>
          badge(row.circuit, { closed: "plain", probing: "warn" }[row.circuit] ?? "bad"),
      },
      { title: "Rate limit", kind: "wide", cell: (row) => budget(row.rate_limit, time) },
    ],
    rows,
    { key: (row) => row.name, empty: "No registry is configured." },
  );
}

function health({ up, offline }) {
  if (offline) return badge("offline", "warn");
  return up ? badge("up", "good") : badge("down", "bad");
}

/** Return `37 of 100 left, refills 14:10` with a bar. */
function budget(limit, now) {
  if (limit?.limit == null || limit.remaining == null)
    return h("span", { class: "note" }, "none stated");
  const { remaining, limit: most, refills_at: refills } = limit;
  const text = `${format.number(remaining)} of ${format.number(most)} left`;
  const when = refills == null ? "" : `, refills ${format.clock(refills, now)}`;
  return [bar(text, remaining, most), h("span", {}, text + when)];
}

function downloadList(downloads) {
  if (downloads.length === 0) return h("p", { class: "empty" }, "None.");
  const known = downloads.map((download, number) => ({
    key: download.digest ?? number,
    ...download,
  }));
  return h("ul", { class: "downloads" }, known.map(downloadItem));
}

function downloadItem({ key, repository, upstream, digest, bytes, size, readers }) {
  const name = repository ? `${upstream}/${repository}` : upstream;
  const done = size ? `${format.bytes(bytes)} of ${format.bytes(size)}` : format.bytes(bytes);
  return h(
    "li",
    { "data-key": key },
    h("span", { class: "name" }, name, digest && [" ", h("code", {}, format.short(digest))]),
    bar(`${name}: ${done}`, bytes, size),
    h(
      "span",
      { class: "note" },
      readers == null ? done : `${done}, ${format.count(readers, "reader")}`,
    ),
  );
}

function topTable(images, by) {
  return table(
    by === "pulls" ? "Images with the most pulls" : "Images with the most bytes sent",
    [
      { title: "Image", kind: "name", cell: (row) => imageLink(row.name) },
      { title: "Pulls", kind: "number", cell: (row) => format.number(row.pulls) },
      { title: "Bytes", kind: "number", cell: (row) => format.bytes(row.bytes) },
      { title: "Last pull", cell: (row) => format.ago(row.last_pull) },
    ],
    images,
    { key: (row) => row.name, empty: "Nothing has been pulled yet." },
  );
}
