// Follows the events of one job, and finds a running one after a reload or from another tab.
import { call, Gone } from "./api.js";
import { remember } from "./dom.js";
import { advance, film, over, picture, say, show, shownJob, strip, titleOf } from "./stage.js";

let source = null; // the events of the shown job
let pinned = false; // the user chose the shown job, so no other one takes its place
export const jobs = new EventTarget(); // "change": a job has started or ended

export function leave() {
  source?.close();
  source = null;
}

// Shows a job, and follows it if it waits or runs.
export function follow(job, chosen = false) {
  leave();
  pinned = chosen;
  remember("shown", job && job.id);
  show(job);
  if (job !== null && !over(job) && !document.hidden) listen(job);
}

function listen(job) {
  const mine = new EventSource(`v1/jobs/${job.id}/events`);
  source = mine;
  const on = (name, act) => mine.addEventListener(name, (event) => mine === source && act(JSON.parse(event.data)));
  on("state", () => {
    say(job.kind === "video" ? "animating" : "drawing");
    jobs.dispatchEvent(new Event("change"));
  });

  on("step", ({ done, total }) => advance(done / total, `step ${done} of ${total}`));
  on("preview", ({ image }) => picture(job, image, `${titleOf(job)}, unfinished`));
  const files = [];
  on("picture", ({ file }) => {
    files.push(`v1/jobs/${job.id}/files/${file}`);
    if (files.length < (job.request.count ?? 1)) picture(job, files.at(-1));
    strip(job, files);
  });

  let [part, frames] = [0, ""];
  on("call", ({ stage, done, total }) => advance(part, `${frames}${stage}, step ${done} of ${total}`));
  on("frames", ({ done, total }) => {
    part = done / total;
    frames = `${done} of ${total} frames · `;
    advance(part, `${done} of ${total} frames`);
    film(job, `v1/jobs/${job.id}/video`);
  });

  for (const end of ["done", "failed", "cancelled"]) on(end, () => again(job));
  mine.onerror = () => mine === source && again(job); // also if the server is gone
}

// Asks what has become of a shown job, and shows it or goes on following it.
export async function again(job) {
  leave();
  try {
    const now = await call(`v1/jobs/${job.id}`);
    jobs.dispatchEvent(new Event("change"));
    const current = () => shownJob()?.id === job.id && source === null;
    if (over(now) && current()) follow(now, pinned);
    else setTimeout(() => current() && follow(now, pinned), 500);
  } catch (error) {
    if (error instanceof Gone) say("waiting for the server");
    else if (shownJob()?.id === job.id) follow(null); // it was deleted
  }
}

// Follows a running job of this list, unless the user has chosen what is shown; returns the job or null.
export function attach(list) {
  const shown = shownJob();
  if (shown && (pinned || !over(shown))) return null;
  const going = list.filter((job) => !over(job));
  const job = going.find(({ state }) => state === "running") ?? going.at(-1) ?? null;
  if (job) follow(job);
  return job;
}
