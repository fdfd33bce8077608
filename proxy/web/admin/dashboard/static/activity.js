// The page with events, clients and jobs.

import { get } from "./api.js";
import { h, render, table } from "./dom.js";
import { eventList, KINDS } from "./events.js";
import * as format from "./format.js";
import { jobList } from "./jobs.js";
import { follow, poll } from "./live.js";
import { invitation, section } from "./overview.js";
import { session } from "./session.js";

const MOST = 200;

/** Show the page; return its title. */
export function activity(main, { signal, start, changed }) {
  main.append(h("h1", {}, "Activity"));
  if (!session.may_administer) {
    main.append(invitation());
    return "Activity";
  }
  const jobs = jobList({ signal, start, empty: "Nothing has been started." });
  const clients = h("div");
  const showClients = async () =>
    render(clients, clientTable((await get("clients", {}, { signal })).clients));
  const kinds = kindChoice();
  const list = eventList(MOST);
  main.append(
    section("Jobs", {}, jobs.element),
    section("Clients", {}, clients),
    section("Events", { tools: kinds }, list.element),
  );
  changed.addEventListener("change", jobs.load);
  start(poll(10, showClients, signal));
  followEvents(kinds, list, { signal, start });
  return "Activity";
}

/** Follow the chosen kinds of events, and begin anew when the choice changes. */
function followEvents(kinds, list, { signal, start }) {
  let chosen = new AbortController();
  const begin = () => {
    chosen.abort();
    chosen = new AbortController();
    list.clear();
    const wanted = kinds.querySelector("select").value;
    start(follow("events", { kinds: wanted }, list.add, AbortSignal.any([signal, chosen.signal])));
  };
  kinds.addEventListener("change", begin);
  begin();
}

function kindChoice() {
  const all = KINDS.filter((kind) => kind !== "pull").join(",");
  const options = [["all but pulls", all], ["all", ""], ...KINDS.map((kind) => [kind, kind])];
  return h(
    "label",
    { class: "choice" },
    "Show ",
    h(
      "select",
      {},
      options.map(([text, value]) => h("option", { value }, text)),
    ),
  );
}

function clientTable(clients) {
  return table(
    "Clients with the most requests and bytes",
    [
      { title: "Client", kind: "name", cell: (row) => row.client },
      { title: "Requests", kind: "number", cell: (row) => format.number(row.requests) },
      { title: "Bytes", kind: "number", cell: (row) => format.bytes(row.bytes) },
      { title: "Receiving", kind: "number", cell: (row) => format.number(row.downloads) },
      { title: "Delayed", kind: "number", cell: (row) => format.number(row.delayed) },
      { title: "Refused", kind: "number", cell: (row) => format.number(row.refused) },
      {
        title: "Last request",
        cell: (row) => format.ago(Date.now() / 1000 - row.seen_seconds_ago),
      },
    ],
    clients,
    { key: (row) => row.client, empty: "None seen." },
  );
}
