// What an operator can do, by buttons with `data-action` and `data-subject`.

import { ApiError, send } from "./api.js";
import { byId } from "./dom.js";
import * as format from "./format.js";
import { confirmed, logIn } from "./session.js";

const SHOWN = 8000; // milliseconds

let timer = null;

/** Show a short text at the end of the window, and to screen readers. */
export function notice(text, isError = false) {
  const place = byId("notice");
  place.textContent = text;
  place.className = isError ? "shown error" : "shown";
  clearTimeout(timer);
  timer = setTimeout(() => (place.className = ""), SHOWN);
}

const ACTIONS = {
  "log-in": () => logIn(),
  async pull(image) {
    await send("POST", "pull", { image });
    return `Pulling ${image}.`;
  },
  async "pull-with"(wanted) {
    await send("POST", "pull", wanted);
    return `Pulling ${wanted.image}.`;
  },
  async refresh(image) {
    const { changed, digest } = await send("POST", "refresh", { image });
    return changed ? `${image} points to ${format.short(digest)} now.` : `${image} has not moved.`;
  },
  async pin(image) {
    await send("PUT", "pins", { pin: image });
    return `${image} is pinned: it is never evicted.`;
  },
  async unpin(image) {
    await send("DELETE", "pins", undefined, { pin: image });
    return `${image} is no longer pinned.`;
  },
  async drop(image) {
    const preview = await send("POST", "drop", { match: image, dry_run: true });
    const yes = await confirmed(`Drop ${image}?`, consequence(preview), "Drop");
    if (!yes) return null;
    await send("POST", "drop", { match: image, dry_run: false });
    return `Dropping ${image}.`;
  },
  async "cancel-job"(id) {
    await send("DELETE", `jobs/${encodeURIComponent(id)}`);
    return "Cancelled.";
  },
};

/** Return what a drop would remove, in words. */
function consequence({ dropped, refused, blobs, bytes }) {
  if (refused > 0 && dropped === 0) return "It is pinned or in use, so nothing would be removed.";
  const sum = `${format.count(dropped, "image")}, ${format.count(blobs, "file")}, ${format.bytes(bytes)}`;
  return `This removes ${sum} from the cache. The next pull fetches the image again.`;
}

/** Do what the buttons inside an element say; `done(action)` is called after each success. */
export function listen(element, done, signal) {
  element.addEventListener(
    "click",
    (event) => {
      const pressed = event.target.closest("[data-action]");
      if (pressed)
        act(pressed.dataset.action, pressed.dataset.subject, pressed).then(
          (isDone) => isDone && done(pressed.dataset.action),
        );
    },
    { signal },
  );
}

/** Do one thing, and say how it went; return true if it was done. */
export async function act(action, subject, pressed) {
  if (pressed) pressed.setAttribute("aria-disabled", "true");
  try {
    const text = await ACTIONS[action](subject);
    if (text) notice(text);
    return text !== null;
  } catch (error) {
    const isAway = !(error instanceof ApiError);
    notice(isAway ? "The server does not answer." : error.message, true);
    return false;
  } finally {
    pressed?.removeAttribute("aria-disabled");
  }
}
