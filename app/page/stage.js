// The stage: the picture or the film that is shown, what it is, and what can be done with it.
import { find, make, still } from "./dom.js";
import { able, modelOf, taker } from "./form.js";
import { time } from "./plan.js";

let shown = null; // the job that is shown
let seen = ""; // the job whose picture or film is on the stage
let current = ""; // the address of the picture or film

export const over = ({ state }) => ["done", "failed", "cancelled"].includes(state);
export const shownJob = () => shown;
export const shownFile = () => current;

export function titleOf({ kind, request }) {
  return request.prompt || (kind === "video" ? "a video" : "a picture without a prompt");
}

export function say(text, fault = false) {
  find("status").textContent = text;
  find("status").classList.toggle("fault", fault);
  find("steps-done").textContent = "";
}

// Progress is only seen: a screen reader would read out every step.
export function advance(part, text) {
  find("progress").value = part;
  find("steps-done").textContent = text;
}

function only(id) {
  for (const one of ["empty", "blank", "picture", "film"]) find(one).hidden = one !== id;
  find("picture").classList.remove("old");
  if (id === "film") return;
  find("film").pause();
  find("film").removeAttribute("src");
}

export function picture(job, address, words = titleOf(job)) {
  only("picture");
  [seen, current] = [job.id, address];
  if (find("picture").getAttribute("src") !== address) find("picture").src = address;
  find("picture").alt = words;
}

export function film(job, address) {
  const player = find("film");
  if (!player.hidden && player.getAttribute("src") === address) return;
  const at = player.hidden || seen !== job.id ? 0 : player.currentTime; // the finished file continues the growing one
  only("film");
  [seen, current] = [job.id, address];
  player.setAttribute("aria-label", titleOf(job));
  player.src = address;
  player.currentTime = at;
  if (!still.matches) player.play().catch(() => {}); // the browser may forbid autoplay; the controls remain
}

function blank(words) {
  only("blank");
  find("blank-words").textContent = words;
  current = "";
}

// Shows the pictures of a job, to choose one. They may be fewer than asked for while the job runs.
export function strip(job, addresses) {
  const several = addresses.length > 1;
  find("strip").hidden = !several;
  find("strip").replaceChildren(...(several ? addresses : []).map((address, at) => {
    const button = make("button", { type: "button", ariaPressed: String(address === current) },
      make("img", { src: address, alt: `Picture ${at + 1}` }));
    button.addEventListener("click", () => {
      picture(job, address);
      download(job);
      for (const one of find("strip").querySelectorAll("button")) one.ariaPressed = String(one === button);
    });
    return make("li", {}, button);
  }));
}

function download(job) {
  const words = titleOf(job).normalize("NFC").replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60).replace(/^-|-$/g, "");
  const number = job.files.length > 1 ? `-${job.files.indexOf(current) + 1}` : "";
  find("download").href = current;
  find("download").download = `${words || job.kind}-${job.request.seed ?? 0}${number}.${current.split(".").at(-1)}`;
}

function facts({ kind, bundle, request, started, finished, state }) {
  const model = modelOf(bundle);
  const [height, width] = request.size ?? [model?.height, model?.width];
  const steps = request.steps ?? (kind === "picture" ? model?.steps : undefined);
  const frames = kind === "video" ? request.frames ?? model?.frames : undefined;
  return [
    bundle,
    width && `${width} × ${height}`,
    frames && `${frames} frames`,
    request.image && kind === "picture" && (request.mask ? "from a picture with a mask" : "from a picture"),
    kind === "video" && !request.image && "from text alone",
    request.last && "with a last picture",
    request.strength !== undefined && `strength ${request.strength}`,
    steps && `${steps} ${steps === 1 ? "step" : "steps"}`,
    request.guidance !== undefined && `guidance ${request.guidance}`,
    request.seed !== undefined && `seed ${request.seed}`,
    state === "done" && time(finished - started),
  ].filter(Boolean).join(" · ");
}

// Shows what can be done with the job. A focused button that goes away hands the focus on.
function offer(job) {
  const focused = document.activeElement;
  const done = job.state === "done";
  find("stop").disabled = over(job);
  find("download").hidden = !done;
  find("animate").hidden = !(done && job.kind === "picture" && able("video"));
  find("change").hidden = !(done && job.kind === "picture" && taker());
  find("keep").hidden = job.request.seed === undefined;
  find("again").hidden = done || !over(job);
  find("delete").hidden = !over(job);
  if (focused === find("stop") && over(job)) find("go").focus();
  if (focused === find("again") && !over(job)) find("stop").focus();
}

// Shows a job; null shows the empty stage.
export function show(job) {
  shown = job;
  find("about").hidden = job === null;
  find("going").hidden = job === null;
  find("strip").hidden = true;
  if (job === null) {
    only("empty");
    [seen, current] = ["", ""];
    find("stop").disabled = true;
    return;
  }
  find("going").classList.toggle("over", over(job));
  find("caption").textContent = find("caption").title = titleOf(job); // a long one is cut
  find("facts").textContent = facts(job);
  find("warnings").replaceChildren(...(job.warnings ?? []).map((text) => make("li", {}, text)));
  find("progress").value = job.state === "done" ? 1 : 0;
  offer(job);
  if (job.state === "done") finish(job);
  else if (over(job)) stopped(job);
  else wait(job);
}

function finish(job) {
  if (job.kind === "picture") picture(job, job.files[0]);
  else film(job, job.files[0]);
  strip(job, job.files);
  download(job);
  say("done");
}

function stopped(job) {
  if (seen !== job.id || find("picture").classList.contains("old")) blank(job.error ? "Failed" : "Cancelled");
  say(job.error?.message ?? "cancelled", job.state === "failed");
}

function wait(job) {
  say(job.state === "waiting" ? "waiting in the queue" : "running");
  if (seen === job.id) return;
  const begins = job.kind === "video" ? "The first picture of the video" : "The picture that it begins with";
  if (job.request.image) picture(job, `v1/jobs/${job.id}/files/input.png`, begins);
  else if (find("picture").hidden) blank("");
  else find("picture").alt = ""; // the picture of another job, dimmed, until the first preview
  find("picture").classList.add("old");
}
