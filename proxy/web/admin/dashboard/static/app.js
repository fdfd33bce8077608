// Starts the dashboard: chooses the page by the address, and shows the state of the connection.

import { ApiError } from "./api.js";
import { activity } from "./activity.js";
import { byId, h, render } from "./dom.js";
import { image } from "./image.js";
import { images } from "./images.js";
import { connection, onConnection, pause } from "./live.js";
import { overview } from "./overview.js";
import { begin, refresh } from "./session.js";

const STATES = { live: "Live", paused: "Paused", away: "The server does not answer. Trying again …" };
const PAGES = { overview, images, image, activity };

let current = new AbortController();

/** Return the name of the page that the address means, and the rest of the address. */
function route() {
  const [path, query] = location.hash.slice(1).split("?");
  const [, page = "", ...rest] = path.split("/");
  const name = rest.map(decodeURIComponent).join("/");
  const query_ = Object.fromEntries(new URLSearchParams(query));
  return { page: Object.hasOwn(PAGES, page) ? page : "overview", name, query: query_ };
}

/** Show the page of the address; a function of a page gets its parts started. */
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
  const title = PAGES[page](main, { name, query, signal: current.signal, start });
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

function showConnection() {
  const state = connection();
  render(byId("connection"), h("span", { class: `dot ${state}`, "aria-hidden": "true" }), STATES[state]);
  byId("pause").textContent = state === "paused" ? "Continue" : "Pause";
}

byId("pause").addEventListener("click", () => pause(connection() !== "paused"));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault(); // the fragment of the address is the page
  byId("main").focus();
});
onConnection(showConnection);
showConnection();
begin(() => open({ focus: false }))
  .catch(() => {})
  .finally(() => {
    window.addEventListener("hashchange", () => open({ focus: true }));
    open({ focus: false });
  });
