// Shows what a pull would do now, and why: the document of `explain`, in words.

import { badge, facts, h } from "./dom.js";
import * as format from "./format.js";

const ANSWERS = {
  serve: ["served from the cache", "good"],
  "serve-then-check": ["served from the cache, then checked in the background", "good"],
  check: ["checked at the registry first", "plain"],
  confirm: ["confirmed by the registry first", "plain"],
  fetch: ["fetched from the registry", "warn"],
  stale: ["served from the cache, out of date", "warn"],
  refuse: ["answered with an error", "bad"],
};
const CHOSEN = {
  ns: (text) => `chosen by ns=${text}`,
  host: (text) => `chosen by the host name ${text}`,
  name: (text) => `the name begins with ${text}`,
  default: () => "default_upstream: the name has no registry",
};
const LOGINS = { none: "anonymous", caller: "the login of each client" };

/** Return an explanation as elements; parts that the server leaves out are left out. */
export function explained({
  pull,
  route,
  registry,
  held,
  freshness,
  offline,
  access,
  policies,
  keeping,
}) {
  const [text, tone] = ANSWERS[pull.answer] ?? [pull.answer, "plain"];
  const costs = pull.costs.length
    ? ` Requests to the registry: ${pull.costs.join(", ")}.`
    : " No request to the registry.";
  return [
    h("p", {}, badge(text, tone), " ", sentence(pull.because), costs),
    facts([
      [
        "Comes from",
        route &&
          `${route.upstream}, repository ${route.repository} (${CHOSEN[route.by]?.(route.text) ?? route.by})`,
      ],
      [
        "Registry is asked",
        registry &&
          `with scope ${registry.scope}, credentials: ${LOGINS[registry.credentials] ?? registry.credentials}`,
      ],
      ["Held", held && holding(held)],
      ["Fresh until", freshness && until(freshness.fresh_until)],
      ["Served while it is checked until", freshness && until(freshness.served_until)],
      ["Served if the registry fails until", freshness && until(freshness.kept_until)],
      [
        "Held back",
        freshness?.held_back_until &&
          `${format.short(freshness.newest)} until ${format.moment(freshness.held_back_until)}`,
      ],
      ["Offline", offline && `${offline.is_served ? "served" : "refused"}: ${offline.because}`],
      ["Who may pull it", access && lines(access.map(verdict))],
      ["Policies", policies?.length ? lines(policies.map(policy)) : null],
      ["Eviction", keeping && evictions(keeping)],
    ]),
  ];
}

function sentence(text) {
  return `${text[0].toUpperCase()}${text.slice(1)}.`;
}

function lines(list) {
  return list.map((text) => h("div", {}, text));
}

function until(time) {
  return time == null ? "no limit" : format.clock(time);
}

function holding({ digest, state, held_bytes: size, parts }) {
  if (digest === null) return "nothing";
  const missing = parts.reduce((sum, part) => sum + part.missing_bytes, 0);
  return `${state}, ${format.bytes(size)}` + (missing ? `, ${format.bytes(missing)} missing` : "");
}

function verdict({ user, address, allowed, rule, text, login_helps: helps }) {
  const who =
    (user == null ? "anonymous clients" : `user ${user}`) +
    (address == null ? "" : ` from ${address}`);
  const why = rule == null ? text : `rule ${rule}: ${text}`;
  return `${who}: ${allowed ? "allowed" : "denied"} (${why})${helps ? "; a login may help" : ""}`;
}

function policy({ name, denied, audit, reason }) {
  const outcome = denied == null ? "not checked yet" : denied ? "denied" : "allowed";
  return `${name}: ${outcome}${audit ? ", only logged" : ""}${reason ? `: ${reason}` : ""}`;
}

function evictions(keeping) {
  if (keeping.last_used == null) return "nothing to evict";
  if (keeping.is_protected) return "protected: it is not evicted";
  const next = keeping.is_next ? "the next eviction removes it" : "older content goes first";
  const end =
    keeping.expires_at == null
      ? ""
      : `; unused, it is evicted ${format.moment(keeping.expires_at)}`;
  return next + end;
}
