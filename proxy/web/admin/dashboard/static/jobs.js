// Lists long work with its progress, and can cancel it.

import { get } from "./api.js";
import { badge, bar, button, h, render, table } from "./dom.js";
import * as format from "./format.js";
import { isWatched, poll } from "./live.js";

const TONES = { running: "plain", done: "good", failed: "bad", cancelled: "warn" };

const MOST = 20;
const BUSY = 1500; // milliseconds until jobs that run are asked for again
const QUIET = 10; // seconds

/**
 * Return a list of jobs that keeps itself up to date; `isWanted` selects some of them, `empty` is
 * said if there are none, and `ended` is called when one has ended.
 */
export function jobList({ signal, start, empty, isWanted = () => true, ended = () => {} }) {
  const element = h("div", { class: empty ? null : "card" });
  let timer = null;
  let over = null;
  const load = async () => {
    clearTimeout(timer);
    const jobs = (await get("jobs", {}, { signal })).jobs.filter(isWanted);
    jobs.sort((one, other) => other.started - one.started);
    render(element, jobs.length || empty ? jobTable(jobs.slice(0, MOST), empty) : []);
    const running = jobs.filter(({ state }) => state === "running").length;
    if (running && isWatched()) timer = setTimeout(() => start(load()), BUSY);
    if (over !== null && jobs.length - running > over) ended();
    over = jobs.length - running;
  };
  signal.addEventListener("abort", () => clearTimeout(timer));
  start(poll(QUIET, load, signal));
  return { element, load: () => start(load()) };
}

function jobTable(jobs, empty) {
  return table(
    "Long work",
    [
      { title: "Work", kind: "name", cell: (job) => `${job.kind} ${job.what ?? ""}` },
      { title: "State", cell: (job) => badge(job.state, TONES[job.state]) },
      { title: "Progress", kind: "wide", cell: progress },
      { title: "Began", cell: (job) => format.ago(job.started) },
      {
        title: "Action",
        kind: "tool",
        cell: (job) => job.state === "running" && button("Cancel", "cancel-job", job.id),
      },
    ],
    jobs,
    { key: (job) => job.id, empty },
  );
}

function progress({ state, kind, what, progress: done, error, result }) {
  if (state === "failed") return h("span", { class: "error" }, error ?? "failed");
  if (state !== "running") return h("span", { class: "note" }, outcome(result));
  const isKnown = done?.total > 0;
  const text = isKnown ? format.percent(done.done, done.total) : "";
  return [bar(`${kind} ${what ?? ""}: ${text}`, done?.done, done?.total), h("span", {}, text)];
}

/** Return the numbers of a job's result in words, without those that are zero. */
function outcome(result) {
  const known = Object.entries(result ?? {}).filter(([name, value]) => value > 0 && name !== "total");
  return known.map(([name, value]) => named(name.replaceAll("_", " "), value)).join(", ");
}

function named(words, value) {
  if (words === "bytes") return format.bytes(value);
  if (words.endsWith(" bytes")) return `${format.bytes(value)} ${words.slice(0, -6)}`;
  return `${format.number(value)} ${words}`;
}
