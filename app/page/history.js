// The list of jobs. A row changes only if its job did, so that clips keep playing and the focus stays.
import { call } from "./api.js";
import { confirmed, find, make, still } from "./dom.js";
import { over, titleOf } from "./stage.js";

const PAGE = 12; // jobs that "Show more" adds
const MOST = 200; // the server's limit
const rows = new Map(); // id -> [signature, row]
let limit = PAGE;
let reads = 0; // number of reads of the list

const short = (text) => (text.length > 60 ? `${text.slice(0, 59)}…` : text);

function when(seconds) {
  const [then, now] = [new Date(seconds * 1000), new Date()];
  if (then.toDateString() !== now.toDateString()) return then.toLocaleDateString();
  return then.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
}

function thumb({ id, kind, request, files: [file] }) {
  if (!file && !request.image) return make("span", { className: "thumb" });
  if (kind === "picture" || !file) {
    return make("img", { className: "thumb", src: file ?? `v1/jobs/${id}/files/input.png`, alt: "", loading: "lazy" });
  }
  const clip = make("video", {
    className: "thumb", loop: true, muted: true, defaultMuted: true, playsInline: true, preload: "metadata",
    autoplay: !still.matches, tabIndex: -1, ariaHidden: "true",
  });
  clip.src = file;
  return clip;
}

function row(job, open, drop) {
  const title = titleOf(job);
  const state = job.state === "done" ? when(job.created) : job.state;
  const words = make("span", { className: "words" }, make("span", { className: "title" }, title),
    make("small", {}, `${job.kind}, ${state}`));
  const entry = make("button", { type: "button", className: "entry" }, thumb(job), words);
  entry.addEventListener("click", () => open(job));
  const made = make("li", { className: job.state }, entry);
  made.dataset.id = job.id;
  if (over(job)) {
    const what = `Delete ${short(title)}`;
    const remove = make("button", { type: "button", className: "remove", "aria-label": what }, "×");
    confirmed(remove, `${what} for good: press again`, () => drop(job));
    made.append(remove);
  }
  return made;
}

// Takes a row away. The focus moves to its neighbour.
export function forget(id) {
  const [, made] = rows.get(id) ?? [];
  if (!made) return;
  const neighbour = made.nextElementSibling ?? made.previousElementSibling;
  const held = made.contains(document.activeElement);
  rows.delete(id);
  made.remove();
  if (held) (neighbour?.querySelector(".entry") ?? find("prompt")).focus();
}

function put(job, at, open, drop) {
  const signature = `${job.state} ${job.files.length}`;
  const [known, old] = rows.get(job.id) ?? [];
  const made = known === signature ? old : row(job, open, drop);
  if (old && old !== made) {
    const held = old.contains(document.activeElement);
    old.replaceWith(made);
    if (held) made.querySelector("button").focus();
  }
  rows.set(job.id, [signature, made]);
  const there = find("history").children[at] ?? null;
  if (there !== made) find("history").insertBefore(made, there);
}

// Reads the list and shows it; returns the jobs, newest first.
export async function refresh(open, drop) {
  const mine = ++reads;
  const { jobs } = await call(`v1/jobs?limit=${limit}`);
  if (mine !== reads) return jobs; // a later read may be newer
  const kept = new Set(jobs.map(({ id }) => id));
  for (const id of [...rows.keys()]) if (!kept.has(id)) forget(id);
  for (const [at, job] of jobs.entries()) put(job, at, open, drop);
  find("none").hidden = jobs.length > 0;
  find("older").hidden = jobs.length < limit || limit >= MOST;
  return jobs;
}

export function more() {
  limit = Math.min(limit + PAGE, MOST);
}

// Marks the job that is shown.
export function mark(id) {
  for (const one of find("history").children) {
    const entry = one.querySelector(".entry");
    if (one.dataset.id === id) entry.setAttribute("aria-current", "true");
    else entry.removeAttribute("aria-current");
  }
}
