// Starts the dashboard: chooses the page by the address, and shows the state of the connection.

import { listen } from "./actions.js";
import { activity } from "./activity.js";
import { ApiError } from "./api.js";
import { byId, h, render } from "./dom.js";
import { image } from "./image.js";
import { images } from "./images.js";
import { connection, onConnection, pause } from "./live.js";
import { overview } from "./overview.js";
import { begin, refresh, session } from "./session.js";

const STATES = {
  live: "Live",
  paused: "Paused",
  away: "The server does not answer. Trying again …",
};
const PAGES = { overview, images, image, activity };

let current = new AbortController();

/** Return the name of the page that the address means, and the rest of the address. */
function route() {
  const [path, search] = location.hash.slice(1).split("?");
  const [, page = "", ...rest] = path.split("/");
  const query = Object.fromEntries(new URLSearchParams(search));
  return {
    page: Object.hasOwn(PAGES, page) ? page : "overview",
    name: decoded(rest.join("/")),
    query,
  };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // somebody typed it
  }
}

/** Show the page of the address. Its parts run until the next page begins. */
function open({ focus }) {
  current.abort();
  current = new AbortController();
  const { page, name, query } = route();
  const main = byId("main");
  for (const link of document.querySelectorAll("nav a")) {
    const isCurrent = link.dataset.page === page;
    if (isCurrent) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.replaceChildren();
  const start = (task) => task.catch(failed);
  const changed = new EventTarget();
  listen(main, () => changed.dispatchEvent(new Event("change")), current.signal);
  const title = PAGES[page](main, { name, query, signal: current.signal, start, changed });
  document.title = `${title} · Millpond`;
  if (focus) {
    main.focus({ preventScroll: true });
    window.scrollTo(0, 0);
  }
}

/** Handle the error that ended a part of a page. */
async function failed(error) {
  if (error.name === "AbortError") return;
  if (error instanceof ApiError && error.status === 401) {
    await refresh();
    open({ focus: false });
    return;
  }
  if (!(error instanceof ApiError)) throw error;
  console.info(error.message);
}

/** Ask who this client is if the server did not answer at the start. */
async function reconnected() {
  if (connection() !== "live" || session.version !== "") return;
  await refresh().catch(() => {});
  if (session.version !== "") open({ focus: false });
}

function showConnection() {
  const state = connection();
  render(
    byId("connection"),
    h("span", { class: `dot ${state}`, "aria-hidden": "true" }),
    STATES[state],
  );
  byId("pause").textContent = state === "paused" ? "Continue" : "Pause";
}

byId("pause").addEventListener("click", () => pause(connection() !== "paused"));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment of the address is the page
  byId("main").focus();
});
onConnection(showConnection);
showConnection();
onConnection(reconnected);
window.addEventListener("hashchange", () => open({ focus: true }));
begin(() => open({ focus: false }))
  .catch(() => {}) // the page says that the server does not answer
  .finally(() => open({ focus: false }));
