// Requests to the server. If it is gone, the page is told once, and once more when the server is back.
import { find } from "./dom.js";

export class Gone extends Error {}
export const server = new EventTarget(); // "gone", "back"
let gone = false;
let wake = () => {};
let entering = null; // one door for all requests that wait at it

// Fetches; a browser's "Failed to fetch" becomes Gone.
export async function request(path, options = {}) {
  const answer = await fetch(path, options).catch(() => {
    lose();
    throw new Gone("the server does not answer");
  });
  if (answer.status !== 401 || path === "v1/session") return answer;
  entering ??= enter().finally(() => {
    entering = null;
  });
  await entering;
  return request(path, options);
}

// Sends and receives JSON. Throws an Error with the server's message.
export async function call(path, body, method = body === undefined ? "GET" : "POST") {
  const answer = await request(path, body === undefined ? { method } : {
    method, headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  });
  if (answer.status === 204) return null;
  const found = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(found.error?.message ?? `the server answered ${answer.status}`);
  return found;
}

async function enter() {
  const door = find("door");
  for (;;) {
    door.showModal();
    await new Promise((done) => door.addEventListener("close", done, { once: true }));
    try {
      await call("v1/session", { token: find("token").value });
      find("token").value = "";
      return;
    } catch (error) {
      find("door-words").textContent = error.message;
    }
  }
}

async function lose() {
  if (gone) return;
  gone = true;
  server.dispatchEvent(new Event("gone"));
  for (let wait = 1000; gone; wait = Math.min(wait * 1.5, 5000)) {
    await new Promise((done) => {
      wake = done;
      setTimeout(done, wait);
    });
    gone = !(await fetch("health").then(() => true, () => false));
  }
  server.dispatchEvent(new Event("back"));
}

export function retry() {
  wake();
}

// Says what went wrong. While the server is gone, the page says so by itself.
export function complain(text) {
  find("form-words").textContent = text;
}

export function fail(error) {
  if (!(error instanceof Gone)) complain(error.message);
}
