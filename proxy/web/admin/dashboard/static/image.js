// The page of one image: what is held of it, where its tag pointed, and what a pull would do now.

import { ApiError, get } from "./api.js";
import { badge, button, facts, h, render, table } from "./dom.js";
import { explained } from "./explained.js";
import * as format from "./format.js";
import { jobList } from "./jobs.js";
import { invitation, section } from "./overview.js";
import { poll } from "./live.js";
import { session } from "./session.js";

const AGAIN = 30; // seconds

/** Show the page; return its title. */
export function image(main, { name, signal, start, changed }) {
  main.append(h("h1", { class: "name" }, name));
  if (!session.may_administer) {
    main.append(invitation());
    return name;
  }
  const [tools, about, now, parts] = [
    h("div", { class: "buttons", role: "group", "aria-label": "Actions" }),
    h("div"),
    h("div"),
    h("div"),
  ];
  const jobs = jobList({
    signal,
    start,
    empty: "",
    isWanted: ({ what }) => what === name,
    ended: () => start(load()),
  });
  main.append(tools, about, jobs.element, section("What a pull would do now", {}, now), parts);

  const load = async () => {
    const [found, why] = await Promise.all([
      asked("image", { name }, signal),
      asked("explain", { image: name }, signal),
    ]);
    render(tools, buttons(name, found));
    render(about, found.error ? h("p", { class: "note" }, found.error) : facts(summary(found)));
    render(now, why.error ? h("p", { class: "note" }, why.error) : explained(why));
    render(parts, found.error ? [] : sections(found));
  };
  changed.addEventListener("change", () => (jobs.load(), start(load())));
  start(poll(AGAIN, load, signal));
  return name;
}

/** Return a document, or `{error}` with the server's words if there is none. */
async function asked(path, query, signal) {
  try {
    return await get(path, query, { signal });
  } catch (error) {
    if (!(error instanceof ApiError) || error.status === 401) throw error;
    return { error: error.message };
  }
}

function buttons(name, found) {
  const isTag = !name.includes("@");
  const isPinned = found.pinned_by?.includes(name);
  return [
    button("Pull", "pull", name, "primary"),
    isTag && button("Refresh", "refresh", name),
    isPinned ? button("Unpin", "unpin", name) : button("Pin", "pin", name),
    !found.error && button("Drop …", "drop", name, "danger"),
  ];
}

function summary(found) {
  return [
    ["Digest", h("code", {}, found.digest), "wide"],
    ["Held", format.bytes(found.held_bytes)],
    ["Last use", format.ago(found.last_used)],
    ["Checked", format.ago(found.checked_at)],
    ["Fresh until", found.fresh_until == null ? null : format.clock(found.fresh_until)],
    ["Pinned by", names(found.pinned_by)],
    ["In use by", names(found.in_use_by)],
    ["Type", found.media_type?.replace("application/vnd.", "")],
  ];
}

function names(list) {
  return list?.length ? list.join(", ") : "–";
}

function sections(found) {
  return [
    section("Platforms", {}, platformList(found.platforms ?? [])),
    section("Tag history", {}, historyTable(found.history ?? [])),
    section("Referrers", {}, referrerTable(found.referrers ?? [])),
  ];
}

function platformList(platforms) {
  if (platforms.length === 0) return h("p", { class: "empty" }, "No manifest is held.");
  return platforms.map((platform) => {
    const { digest, layers } = platform;
    return h(
      "details",
      { "data-key": digest, class: "platform", open: platforms.length === 1 },
      h(
        "summary",
        {},
        h("span", { class: "name" }, platform.platform),
        h("code", {}, format.short(digest)),
        h("span", { class: "note" }, platform.size == null ? "not held" : amount(layers)),
      ),
      layerTable(platform),
    );
  });
}

function amount(layers) {
  const sum = (list) => format.bytes(list.reduce((size, layer) => size + layer.size, 0));
  const held = layers.filter((layer) => layer.held);
  const words = held.length === layers.length ? sum(layers) : `${sum(held)} of ${sum(layers)} held`;
  return `${words}, ${format.count(layers.length, "layer")}`;
}

function layerTable({ platform, layers }) {
  return table(
    `Layers of ${platform}`,
    [
      {
        title: "Layer",
        kind: "digest",
        cell: (row) => h("code", { title: row.digest }, format.short(row.digest)),
      },
      { title: "Size", kind: "number", cell: (row) => format.bytes(row.size) },
      {
        title: "Held",
        cell: (row) => (row.held ? badge("held", "good") : badge("missing", "warn")),
      },
      {
        title: "Shared with",
        kind: "number",
        cell: (row) => (row.shared_with ? format.count(row.shared_with, "image") : "–"),
      },
    ],
    layers,
    { empty: "No layers are known." },
  );
}

function historyTable(history) {
  return table(
    "Digests that the tag pointed to, the latest first",
    [
      {
        title: "Digest",
        kind: "digest",
        cell: (row) => h("code", { title: row.digest }, format.short(row.digest)),
      },
      { title: "From", cell: (row) => format.moment(row.first_seen) },
      { title: "Until", cell: (row) => format.moment(row.last_seen) },
      {
        title: "Held",
        cell: (row) => (row.held ? badge("held", "good") : badge("missing", "warn")),
      },
    ],
    [...history].reverse(),
    { empty: "The tag has not been seen here." },
  );
}

function referrerTable(referrers) {
  return table(
    "Signatures, SBOMs and other content that refers to the image",
    [
      {
        title: "Digest",
        kind: "digest",
        cell: (row) => h("code", { title: row.digest }, format.short(row.digest)),
      },
      { title: "Type", cell: (row) => row.artifact_type ?? "–" },
      {
        title: "Held",
        cell: (row) => (row.held ? badge("held", "good") : badge("missing", "warn")),
      },
    ],
    referrers,
    { key: (row) => row.digest, empty: "None are known." },
  );
}
