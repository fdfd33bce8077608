// Keeps what is shown up to date: streams and polls, which rest while nobody looks.

import { ApiError, stream } from "./api.js";

const LONGEST_PAUSE = 30; // seconds between two attempts to reach the server

const changes = new EventTarget();
let paused = false;
let away = false;

document.addEventListener("visibilitychange", () => changes.dispatchEvent(new Event("change")));
window.addEventListener("online", () => changes.dispatchEvent(new Event("retry")));

/** Return what goes on: live, paused or away. */
export function connection() {
  if (paused) return "paused";
  return away ? "away" : "live";
}

/** Call a function when `connection` may have changed. */
export function onConnection(listener) {
  changes.addEventListener("change", listener);
}

/** Return true if somebody may be looking and updates are not paused. */
export function isWatched() {
  return !paused && !document.hidden;
}

/** Pause or continue all updates. */
export function pause(wanted) {
  paused = wanted;
  changes.dispatchEvent(new Event("change"));
}

/**
 * Hand each event of a stream to `receive` until the signal ends it. A stream that breaks off is
 * opened again, after the last event. Throws ApiError if the server refuses it.
 */
export async function follow(path, query, receive, signal) {
  let wait = 1;
  let last = "";
  while (await isActive(signal)) {
    try {
      for await (const event of stream(path, query, last, whileActive(signal))) {
        wait = 1;
        last = event.id || last;
        reached(true);
        receive(event);
      }
    } catch (error) {
      if (error instanceof ApiError && error.status < 500 && error.status !== 429) throw error;
    }
    if (signal.aborted || !isWatched()) continue;
    reached(false);
    await sleep(wait * (0.75 + Math.random() / 2), signal);
    wait = Math.min(wait * 2, LONGEST_PAUSE);
  }
}

/** Run a task now and every so many seconds until the signal ends it. */
export async function poll(seconds, task, signal) {
  while (await isActive(signal)) {
    try {
      await task();
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof ApiError && error.status < 500 && error.status !== 429) throw error;
      if (!(error instanceof ApiError)) reached(false);
    }
    await sleep(typeof seconds === "function" ? seconds() : seconds, signal);
  }
}

function reached(isReached) {
  if (away !== isReached) return;
  away = !isReached;
  changes.dispatchEvent(new Event("change"));
}

/** Wait while the tab is hidden or paused; return false once the signal ended it. */
async function isActive(signal) {
  while (!signal.aborted && !isWatched()) await change(signal);
  return !signal.aborted;
}

/** Return a signal that also ends when the tab is hidden or paused. */
function whileActive(signal) {
  const controller = new AbortController();
  const check = () => !isWatched() && controller.abort();
  changes.addEventListener("change", check, {
    signal: AbortSignal.any([signal, controller.signal]),
  });
  return AbortSignal.any([signal, controller.signal]);
}

function change(signal) {
  return new Promise((resolve) => {
    changes.addEventListener("change", resolve, { once: true, signal });
    signal.addEventListener("abort", resolve, { once: true });
  });
}

function sleep(seconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, seconds * 1000);
    for (const [target, name] of [
      [signal, "abort"],
      [changes, "retry"],
    ]) {
      target.addEventListener(name, () => (clearTimeout(timer), resolve()), { once: true });
    }
  });
}
