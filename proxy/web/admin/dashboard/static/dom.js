// Builds and updates elements. Text always becomes text nodes: nothing that comes from a registry
// is ever parsed as HTML.

/** Return an element; attributes that are null, undefined or false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, String(value));
  }
  element.append(...shown(children));
  return element;
}

/** Make these the children of an element. Equal ones stay, so focus and open details survive. */
export function render(parent, ...children) {
  const wanted = document.createDocumentFragment();
  wanted.append(...shown(children));
  const focused = document.activeElement;
  updateChildren(parent, wanted);
  if (focused !== document.activeElement && parent.contains(focused)) {
    focused.focus({ preventScroll: true }); // it was moved
  }
}

/** Return the element with an id. */
export function byId(id) {
  return document.getElementById(id);
}

function shown(children) {
  return children.flat(Infinity).filter((child) => child != null && child !== false);
}

function updateChildren(old, wanted) {
  const keys = new Set([...wanted.children].map((child) => child.dataset.key));
  for (const child of [...old.children]) {
    if (child.dataset.key !== undefined && !keys.has(child.dataset.key)) child.remove();
  }
  const known = new Map([...old.children].map((child) => [child.dataset.key, child]));
  let place = old.firstChild;
  for (const next of [...wanted.childNodes]) {
    const key = next.dataset?.key;
    const match = key === undefined ? place : known.get(key);
    if (!match || !isAlike(match, next)) {
      old.insertBefore(next, place);
      continue;
    }
    if (match === place) place = place.nextSibling;
    else old.insertBefore(match, place);
    update(match, next);
  }
  while (place) {
    const gone = place;
    place = place.nextSibling;
    gone.remove();
  }
}

function isAlike(one, other) {
  return one.nodeName === other.nodeName && one.dataset?.key === other.dataset?.key;
}

function update(old, next) {
  if (old.nodeType === Node.TEXT_NODE) {
    if (old.data !== next.data) old.data = next.data;
    return;
  }
  if (old.dataset.keep !== undefined) return; // a chart or a form looks after itself
  for (const { name } of [...old.attributes]) {
    if (name !== "open" && !next.hasAttribute(name)) old.removeAttribute(name);
  }
  for (const { name, value } of next.attributes) {
    if (old.getAttribute(name) !== value) old.setAttribute(name, value);
  }
  updateChildren(old, next);
}

/**
 * Return a table that a phone shows as a list of cards. A column is `{title, cell, kind}`; the
 * first one is the header of its row. The roles are written out because CSS changes `display`.
 */
export function table(caption, columns, rows, { key, empty } = {}) {
  if (rows.length === 0) return h("p", { class: "empty" }, empty);
  const head = columns.map(({ title, kind }) =>
    h("th", { role: "columnheader", scope: "col", class: kind }, title),
  );
  const body = rows.map((row) =>
    h("tr", { role: "row", "data-key": key?.(row) }, cells(columns, row)),
  );
  return h(
    "table",
    { role: "table" },
    h("caption", {}, caption),
    h("thead", { role: "rowgroup" }, h("tr", { role: "row" }, head)),
    h("tbody", { role: "rowgroup" }, body),
  );
}

function cells(columns, row) {
  return columns.map(({ title, cell, kind }, number) =>
    number === 0
      ? h("th", { role: "rowheader", scope: "row", class: kind }, cell(row))
      : h("td", { role: "cell", class: kind, "data-label": title }, cell(row)),
  );
}

/** Return a list of `[name, value, class]`; those whose value is null are left out. */
export function facts(list) {
  const known = list.filter(([, value]) => value != null);
  const items = known.map(([name, value, kind]) =>
    h("div", { class: kind }, h("dt", {}, name), h("dd", {}, value)),
  );
  return h("dl", { class: "facts" }, items);
}

/** Return a coloured word; `tone` is good, warn, bad or plain. The word says it without colour. */
export function badge(text, tone = "plain") {
  return h("span", { class: `badge ${tone}` }, text);
}

/** Return a button that the page's listener of actions handles. */
export function button(text, action, subject, kind) {
  return h(
    "button",
    { type: "button", class: kind, "data-action": action, "data-subject": subject },
    text,
  );
}

/** Return a bar; without a total it shows that something goes on. */
export function bar(label, value, total) {
  return h("progress", {
    "aria-label": label,
    value: total > 0 ? value : null,
    max: total > 0 ? total : null,
  });
}

/** Return a link to the page of an image. */
export function imageLink(name, text = name) {
  const path = name.split("/").map(encodeURIComponent).join("/");
  return h("a", { href: `#/image/${path}` }, text);
}
