// The page of segue serve: submits jobs, follows their events, shows their results. No library, no build.
import { call, complain, fail, retry, server } from "./api.js";
import { given, onBeginning, restoreBeginning } from "./begin.js";
import { confirmed, find, make, remembered, still } from "./dom.js";
import { again, attach, follow, jobs, leave } from "./follow.js";
import {
  able, adapt, keepDraft, kind, model, restore, restoreDraft, setModels, taker, turn, wanted,
} from "./form.js";
import { forget, mark, more, refresh } from "./history.js";
import { takeMask } from "./mask.js";
import { examples, listen } from "./names.js";
import { plan } from "./plan.js";
import { onReferences, restoreReferences } from "./references.js";
import { forgetSource, onFile, sourceOf, takeAddress, takeFile } from "./source.js";
import { over, shownFile, shownJob, titleOf } from "./stage.js";

const EVERY = 5000; // milliseconds between two looks at the list: other programs submit jobs too
const EXAMPLES = 6;
const tabs = new BroadcastChannel("segue");
let begun = false;
let sending = false;

async function look() {
  const found = attach(await refresh(open, drop));
  mark(shownJob()?.id);
  return found;
}

// After a change by this tab: the other tabs look too.
function changed() {
  tabs.postMessage("changed");
  return look().catch(fail);
}

function edited() {
  keepDraft();
  plan();
}

// Says on the empty stage what to do, with examples of what the model can draw.
async function hint() {
  const one = model();
  const video = kind() === "video";
  find("empty-title").textContent = video ? "What shall move?" : "What would you like to see?";
  find("empty-words").textContent = !video
    ? "Type it as a prompt and press Draw. The picture appears here."
    : one?.takes_text_alone
    ? "Type it as a prompt, choose a first picture if you like, and press Animate."
    : "Choose a first picture, name the motion if you like, and press Animate.";
  const found = one && !video ? await examples(one.id, EXAMPLES) : [];
  if (model() !== one) return; // another model was chosen meanwhile
  find("examples").hidden = !found.length;
  find("examples").replaceChildren(...found.map((name) => {
    const button = make("button", { type: "button" }, name);
    button.addEventListener("click", () => {
      find("prompt").value = name;
      find("prompt").focus(); // the button goes away
      edited();
      submit();
    });
    return make("li", {}, button);
  }));
}

async function submit() {
  complain("");
  const body = wanted();
  const video = body.kind === "video";
  const alone = model()?.takes_text_alone;
  if (video && sourceOf("video") === null && !(alone && body.prompt)) {
    complain(`A video needs ${alone ? "a prompt or " : ""}a first picture. Choose one.`);
    find(alone ? "prompt" : "upload").focus();
    return;
  }
  if (sending) return;
  sending = true;
  try {
    const pictures = video || body.strength ? given(body.kind, model()) : {};
    follow(await call("v1/jobs", { ...body, ...pictures, ...(video ? {} : { previews: true }) }), true);
    find("result").scrollIntoView({ block: "nearest", behavior: still.matches ? "auto" : "smooth" });
    await changed();
  } catch (error) {
    fail(error);
  } finally {
    sending = false;
  }
}

async function takeJob(wanted, address, job) {
  const which = wanted === "last" ? "last picture" : "picture";
  await takeAddress(wanted, address, `the ${which} of “${titleOf(job)}”`).catch(fail);
}

// Puts a job's request into the form, with its pictures.
async function restoreAll(job) {
  complain(restore(job));
  if (!able(job.kind)) return;
  const { image, last, mask, references = [] } = job.request;
  const file = (name) => `v1/jobs/${job.id}/files/${name}`;
  const bring = (name, given) => (given ? takeJob(name, file(given), job) : forgetSource(name));
  if (job.kind === "video") return Promise.all([bring("video", image), bring("last", last)]);
  await bring("picture", image);
  const data = sourceOf("picture");
  if (mask && data) await takeMask(file(mask)).catch(fail);
  if (data === sourceOf("picture")) restoreBeginning(job.request); // no other job was opened meanwhile
  await restoreReferences(references.map(file)).catch(fail);
}

// Shows a job of the history and puts its request into the form.
async function open(job) {
  try {
    const now = await call(`v1/jobs/${job.id}`);
    follow(now, true);
    mark(now.id);
    await restoreAll(now);
    edited();
  } catch (error) {
    fail(error);
    look().catch(fail); // it may have been deleted
  }
}

async function drop(job) {
  try {
    await call(`v1/jobs/${job.id}`, undefined, "DELETE");
  } catch (error) {
    fail(error);
    return;
  }
  if (find("about").contains(document.activeElement)) find("prompt").focus();
  if (shownJob()?.id === job.id) follow(null);
  forget(job.id);
  await changed();
}

async function animate() {
  const [job, address] = [shownJob(), shownFile()];
  complain("");
  turn("video");
  if (!find("prompt").value) find("prompt").value = job.request.prompt;
  find("prompt").focus();
  edited();
  hint();
  await takeJob("video", address, job);
}

// Lets the next picture begin with the one that is shown.
async function change() {
  const [job, address] = [shownJob(), shownFile()];
  complain("");
  turn("picture", taker().id);
  find("prompt").focus();
  hint();
  await takeJob("picture", address, job);
  edited();
}

async function take(file, ends) {
  complain("");
  const begins = kind() === "picture" && model()?.takes_image ? "picture" : able("video") ? "video" : "picture";
  const wanted = ends ? "video" : begins;
  if (wanted === "picture" && !model()?.takes_image) {
    complain("The model takes no pictures. Choose one that does.");
    return;
  }
  try {
    await takeFile(ends ? "last" : wanted, file);
    if (wanted !== kind()) turn(wanted);
    edited();
    hint();
  } catch (error) {
    complain(error.message);
  }
}

// Shows what runs, or what this tab showed before its reload.
async function resume() {
  const drafted = restoreDraft();
  const [running] = (await call("v1/jobs?state=running&limit=1")).jobs; // it may be older than the list reaches
  if (running) follow(running);
  const found = (await look()) ?? running;
  const last = remembered("shown");
  if (found && !drafted) await restoreAll(found);
  if (!found && last) await call(`v1/jobs/${last}`).then((job) => follow(job, true), () => follow(null));
}

async function begin() {
  const { data } = await call("v1/models");
  setModels(data);
  find("machine").textContent = data.map(({ id }) => id).join(" · ");
  if (!begun) await resume();
  else if (shownJob()) await again(shownJob());
  else await look();
  begun = true;
  mark(shownJob()?.id);
  plan();
  await hint();
}

listen();
onFile(take);
onBeginning(edited);
onReferences(edited);
find("draw").addEventListener("submit", (event) => {
  event.preventDefault();
  submit();
});
find("draw").addEventListener("change", ({ target }) => {
  if (target.name === "kind") turn(target.value);
  if (target.name === "bundle") adapt();
  if (["kind", "bundle"].includes(target.name)) hint();
  edited();
});
find("draw").addEventListener("input", edited);
find("dice").addEventListener("click", () => {
  find("seed").value = "";
  edited();
});
find("keep").addEventListener("click", () => {
  find("seed").value = shownJob().request.seed;
  edited();
});
find("stop").addEventListener("click", () => {
  call(`v1/jobs/${shownJob().id}/cancel`, {}).then(changed).catch(fail);
});
find("again").addEventListener("click", () => {
  call(`v1/jobs/${shownJob().id}/resume`, {}).then((job) => follow(job, true)).then(changed).catch(fail);
});
find("animate").addEventListener("click", animate);
find("change").addEventListener("click", change);
confirmed(find("delete"), "Delete this job for good: press again", () => drop(shownJob()));
find("older").addEventListener("click", () => {
  more();
  look().catch(fail);
});
find("retry").addEventListener("click", retry);
server.addEventListener("gone", () => {
  leave();
  find("gone").hidden = false;
  find("go").disabled = true;
});
server.addEventListener("back", () => {
  find("gone").hidden = true;
  begin().catch(fail);
});
jobs.addEventListener("change", () => look().catch(fail));
tabs.addEventListener("message", () => look().catch(fail));
document.addEventListener("visibilitychange", () => {
  if (document.hidden) leave(); // a browser opens few connections to one server
  else if (shownJob() && !over(shownJob())) again(shownJob());
  else look().catch(fail);
});
setInterval(() => {
  if (begun && !document.hidden && find("gone").hidden) look().catch(fail);
}, EVERY);
begin().catch(fail);
