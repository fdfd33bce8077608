// Shows why a pull would go the way it goes.

import { facts } from "./dom.js";

/** Return the document of `explain` as a list of names and values. */
export function explained(document) {
  return facts(Object.entries(document).map(([name, value]) => [words(name), shown(value)]));
}

function shown(value) {
  if (value === null || value === "") return null;
  if (Array.isArray(value)) return value.length ? value.map(String).join(", ") : null;
  if (typeof value === "object") return facts(Object.entries(value).map(([name, inner]) => [words(name), shown(inner)]));
  return typeof value === "boolean" ? (value ? "yes" : "no") : String(value);
}

function words(name) {
  const text = name.replaceAll("_", " ");
  return text[0].toUpperCase() + text.slice(1);
}
