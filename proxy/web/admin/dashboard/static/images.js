// The page with all held images: search, order, and a form to pull another one.

import { act } from "./actions.js";
import { get } from "./api.js";
import { badge, h, imageLink, render, table } from "./dom.js";
import * as format from "./format.js";
import { invitation, section } from "./overview.js";
import { session } from "./session.js";

const PAGE = 50;
const TYPING = 250; // milliseconds without a key before a search
const SORTS = [
  ["Name", "name"],
  ["Last use", "used"],
  ["Size", "bytes"],
  ["Pulls", "pulls"],
];
const TONES = { whole: "good", partial: "warn", absent: "bad" };

/** Show the page; return its title. */
export function images(main, { query, signal, start }) {
  main.append(h("h1", {}, "Images"));
  if (!session.may_administer) {
    main.append(invitation());
    return "Images";
  }
  const [found, more] = [h("div"), h("button", { type: "button", hidden: true }, "Show more")];
  const form = searchForm(query);
  const state = { images: [], next: null };

  async function load({ isMore }) {
    const asked = wanted(form);
    const cursor = isMore ? state.next : null;
    const page = await get("images", { ...asked, limit: PAGE, cursor }, { signal });
    if (JSON.stringify(asked) !== JSON.stringify(wanted(form))) return; // somebody typed on
    state.images = isMore ? [...state.images, ...page.images] : page.images;
    state.next = page.next;
    more.hidden = page.next === null;
    render(found, imageTable(state.images, asked.q));
    const count = format.count(state.images.length, "image");
    form.querySelector("[role=status]").textContent = page.next === null ? count : `${count} shown`;
  }

  let timer = null;
  form.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(() => start(load({ isMore: false })), TYPING);
    remember(wanted(form));
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  more.addEventListener("click", () => start(load({ isMore: true })));
  signal.addEventListener("abort", () => clearTimeout(timer));
  main.append(form, found, more, section("Pull another image", {}, pullForm()));
  start(load({ isMore: false }));
  return "Images";
}

function searchForm({ q = "", sort = "used" }) {
  const options = SORTS.map(([text, value]) =>
    h("option", { value, selected: value === sort }, text),
  );
  return h(
    "form",
    { class: "search", role: "search" },
    h(
      "label",
      {},
      "Search",
      h("input", {
        type: "search",
        name: "q",
        value: q,
        placeholder: "for example nginx",
        spellcheck: "false",
        autocapitalize: "none",
        autocomplete: "off",
      }),
    ),
    h("label", {}, "Order", h("select", { name: "sort" }, options)),
    h("span", { class: "note", role: "status" }),
  );
}

function wanted(form) {
  return { q: form.elements.q.value.trim(), sort: form.elements.sort.value };
}

/** Keep the search in the address, so that it can be shared and survives a reload. */
function remember(asked) {
  history.replaceState(null, "", `#/images?${new URLSearchParams(asked)}`);
}

function imageTable(rows, q) {
  return table(
    "Images in this cache",
    [
      { title: "Image", kind: "name", cell: (row) => imageLink(row.name) },
      { title: "State", cell: marks },
      { title: "Size", kind: "number", cell: (row) => format.bytes(row.held_bytes) },
      { title: "Pulls", kind: "number", cell: (row) => format.number(row.pulls) },
      { title: "Last use", cell: (row) => format.ago(row.last_used) },
      {
        title: "Digest",
        kind: "digest",
        cell: (row) => h("code", { title: row.digest }, format.short(row.digest)),
      },
    ],
    rows,
    { key: (row) => row.name, empty: q ? "No image matches." : "This cache holds no image yet." },
  );
}

function marks(row) {
  return [
    badge(row.state, TONES[row.state]),
    row.pinned && [" ", badge("pinned")],
    row.in_use && [" ", badge("in use")],
  ];
}

function pullForm() {
  const platform = "linux/amd64, …";
  const form = h(
    "form",
    { class: "search" },
    h(
      "label",
      {},
      "Image",
      h("input", {
        name: "image",
        required: true,
        placeholder: "for example nginx:1.27",
        spellcheck: "false",
        autocapitalize: "none",
        autocomplete: "off",
      }),
    ),
    h(
      "label",
      {},
      "Platforms (all, if empty)",
      h("input", {
        name: "platforms",
        placeholder: platform,
        spellcheck: "false",
        autocapitalize: "none",
        autocomplete: "off",
      }),
    ),
    h(
      "label",
      { class: "check" },
      h("input", { type: "checkbox", name: "referrers" }),
      " With signatures and SBOMs",
    ),
    h("button", { type: "submit", class: "primary" }, "Pull"),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const { image, platforms, referrers } = form.elements;
    const list = platforms.value
      .split(",")
      .map((each) => each.trim())
      .filter(Boolean);
    const isDone = await act("pull-with", {
      image: image.value.trim(),
      platforms: list,
      referrers: referrers.checked,
    });
    if (isDone) location.hash = "#/activity";
  });
  return form;
}
