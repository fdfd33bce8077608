// Who uses the dashboard, the form to log in, and the dialog that asks for confirmation.

import { ApiError, basic, bearer, get, keep, authorization } from "./api.js";
import { byId } from "./dom.js";

/** What the server says about this client: `who`, `may_administer`, `how_to_log_in`, `version`. */
export let session = { who: null, may_administer: false, how_to_log_in: [], version: "" };

let changed = () => {};

/** Ask the server who this client is. Throws as `get`. `listener` hears of changes later. */
export async function begin(listener) {
  changed = listener;
  byId("log").addEventListener("click", () => (authorization() ? logOut() : logIn()));
  byId("login-cancel").addEventListener("click", () => byId("login").close());
  byId("login-form").addEventListener("submit", submit);
  for (const way of ways()) way.addEventListener("change", choose);
  await refresh();
}

/** Ask again who this client is; a login that is no longer valid is forgotten. */
export async function refresh() {
  try {
    session = await get("session");
  } catch (error) {
    if (!(error instanceof ApiError) || error.status >= 500 || !authorization()) throw error;
    keep(null);
    session = await get("session");
  }
  if (authorization() && !session.may_administer) keep(null);
  show();
}

/** Show the form to log in. */
export function logIn() {
  const how = session.how_to_log_in;
  byId("login-ways").hidden = how.length < 2;
  byId("login-note").hidden = how.length > 0;
  byId("login-note").textContent =
    "No login is configured. Set admin.token_file, or add a rule with “allow: admin”.";
  byId("login-plain").hidden = window.isSecureContext;
  for (const way of ways()) way.checked = way.value === (how[0] ?? "token");
  for (const id of ["login-secret", "login-submit"]) byId(id).hidden = how.length === 0;
  choose();
  byId("login").showModal();
  const { user, secret } = byId("login-form").elements;
  if (how.length) (byId("login-user").hidden ? secret : user).focus();
}

/** Ask for confirmation; return true if it is given. */
export function confirmed(title, text, yes) {
  const dialog = byId("confirm");
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function ways() {
  return [...byId("login-form").elements.way];
}

function way() {
  return byId("login-form").elements.way.value;
}

function choose() {
  const isToken = way() === "token";
  byId("login-user").hidden = isToken || session.how_to_log_in.length === 0;
  byId("login-secret").firstElementChild.textContent = isToken ? "Admin token" : "Password";
  byId("login-error").textContent = "";
}

async function submit(event) {
  event.preventDefault();
  const { user, secret } = byId("login-form").elements;
  const login = way() === "token" ? bearer(secret.value.trim()) : basic(user.value, secret.value);
  const problem = await refused(login);
  byId("login-error").textContent = problem ?? "";
  if (problem !== null) {
    secret.select();
    return;
  }
  secret.value = "";
  keep(login);
  byId("login").close();
  await refresh();
  changed();
}

/** Return why a login is not accepted, or null. */
async function refused(login) {
  try {
    const found = await get("session", {}, { login });
    if (found.may_administer) return null;
    return way() === "token"
      ? "This is not the admin token."
      : "This user may not administer, or the password is wrong.";
  } catch (error) {
    return error instanceof ApiError
      ? `Not accepted: ${error.message}`
      : "The server does not answer.";
  }
}

async function logOut() {
  keep(null);
  await refresh();
  changed();
}

function show() {
  byId("who").textContent = session.may_administer ? (session.who ?? "operator") : "";
  byId("log").textContent = authorization() ? "Log out" : "Log in";
  byId("log").hidden = session.may_administer && !authorization(); // by address or certificate
  byId("version").textContent = `Millpond ${session.version}`;
}
