// Asks the admin API. The login is kept in this tab only, and sent in a header only.

const ROOT = new URL("api/v1/", document.baseURI);
const KEY = "millpond-authorization";
const SILENCE = 30_000; // milliseconds; a stream sends something every 15 s

/** An answer that is an error. */
export class ApiError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Return the login of this tab, or null. */
export function authorization() {
  return sessionStorage.getItem(KEY);
}

/** Keep a login for this tab; null forgets it. */
export function keep(login) {
  if (login === null) sessionStorage.removeItem(KEY);
  else sessionStorage.setItem(KEY, login);
}

/** Return what is sent for a token. */
export function bearer(token) {
  return `Bearer ${token}`;
}

/** Return what is sent for a user and a password (RFC 7617, in UTF-8). */
export function basic(user, password) {
  const octets = new TextEncoder().encode(`${user}:${password}`);
  return `Basic ${btoa(String.fromCharCode(...octets))}`;
}

/** Return a document. Throws ApiError, or TypeError if the server does not answer. */
export async function get(path, query, { signal, login } = {}) {
  return (await ask("GET", path, { query, signal, login })).json();
}

/** Change something, and return the answer's document. Throws as `get`. */
export async function send(method, path, body, query) {
  const answer = await ask(method, path, { query, body });
  return answer.status === 204 ? null : answer.json();
}

/** Yield the events of a stream (text/event-stream) until it ends. Throws as `get`. */
export async function* stream(path, query, last, signal) {
  const silence = new AbortController();
  const stop = AbortSignal.any([signal, silence.signal]);
  let timer = setTimeout(() => silence.abort(), SILENCE);
  try {
    const headers = { Accept: "text/event-stream", ...(last && { "Last-Event-ID": last }) };
    const answer = await ask("GET", path, { query, signal: stop, headers });
    const text = answer.body.pipeThrough(new TextDecoderStream());
    let rest = "";
    for await (const piece of pieces(text)) {
      clearTimeout(timer);
      timer = setTimeout(() => silence.abort(), SILENCE);
      const blocks = (rest + piece.replaceAll("\r\n", "\n")).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parsed(block);
        if (event.data) yield { ...event, data: JSON.parse(event.data) };
      }
    }
  } finally {
    clearTimeout(timer);
    silence.abort(); // closes the connection if the reader left
  }
}

async function* pieces(text) {
  const reader = text.getReader(); // Safari cannot iterate over a stream
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    yield value;
  }
}

function parsed(block) {
  const event = { id: "", event: "message", data: "" };
  for (const line of block.split("\n")) {
    const colon = line.indexOf(":");
    const name = line.slice(0, colon);
    const value = line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") event.data += value;
    else if (name in event) event[name] = value;
  }
  return event;
}

async function ask(method, path, { query = {}, body, headers = {}, signal, login } = {}) {
  const url = new URL(path, ROOT);
  for (const [name, value] of Object.entries(query)) {
    if (value != null && value !== "") url.searchParams.set(name, value);
  }
  const secret = login ?? authorization();
  const answer = await fetch(url, {
    method,
    signal,
    cache: "no-store",
    redirect: "error",
    headers: {
      Accept: "application/json",
      ...(secret && { Authorization: secret }),
      ...(body && { "Content-Type": "application/json" }),
      ...headers,
    },
    body: body && JSON.stringify(body),
  });
  if (!answer.ok) throw new ApiError(answer.status, await reason(answer));
  return answer;
}

async function reason(answer) {
  try {
    const { errors } = await answer.json();
    return errors.map(({ message }) => message).join("; ");
  } catch {
    return `the server answered ${answer.status}`;
  }
}
