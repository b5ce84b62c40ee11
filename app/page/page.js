// The page of segue serve: submits jobs, follows their events, shows their results. No library, no build.
const find = (id) => document.getElementById(id);
const MIB = 2 ** 20;
let models = [];
let shown = null; // the job that is shown
let source = null; // the events of that job
let plans = 0; // number of requested plans

async function call(path, body) {
  const options = body === undefined ? {} : {
    method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  };
  const answer = await fetch(path, options);
  if (answer.status === 401 && path !== "v1/session") {
    await enter();
    return call(path, body);
  }
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
      return;
    } catch (error) {
      find("door-words").textContent = error.message;
    }
  }
}

function say(text) {
  find("status").textContent = text;
}

function busy(running) {
  find("stop").disabled = !running;
}

function picture(address, words) {
  find("film").hidden = true;
  find("film").removeAttribute("src");
  Object.assign(find("picture"), { src: address, alt: words, hidden: false });
}

function film(address) {
  const player = find("film");
  if (player.getAttribute("src") === address) return;
  const at = player.hidden ? 0 : player.currentTime; // the finished file continues where the growing file was
  find("picture").hidden = true;
  player.hidden = false;
  player.src = address;
  player.currentTime = at;
  player.play().catch(() => {}); // the browser may forbid autoplay; the controls remain
}

function show(job) {
  const words = job.request.prompt || "an animated picture";
  const video = models.some((model) => model.kind === "video");
  find("again").hidden = !["failed", "cancelled"].includes(job.state);
  find("animate").hidden = !(job.kind === "picture" && job.state === "done" && video);
  if (job.state === "done" && job.kind === "picture") picture(job.files[0], words);
  if (job.state === "done" && job.kind === "video") film(job.files[0]);
}

function follow(job) {
  source?.close();
  shown = job;
  show(job);
  if (["done", "failed", "cancelled"].includes(job.state)) {
    find("progress").value = job.state === "done" ? 1 : 0;
    say(job.error ? job.error.message : job.state);
    busy(false);
    return;
  }
  busy(true);
  say("waiting in the queue");
  find("progress").value = 0;
  const words = job.request.prompt || "an animated picture";
  const mine = new EventSource(`v1/jobs/${job.id}/events`);
  source = mine;
  const on = (name, act) => mine.addEventListener(name, (event) => act(JSON.parse(event.data)));
  on("state", () => say("started"));
  on("step", ({ done, total }) => {
    find("progress").value = done / total;
    say(`step ${done} of ${total}`);
  });
  on("preview", ({ image }) => picture(image, `${words}, unfinished`));
  on("call", ({ stage, window, done, total }) => say(`window ${window + 1}: ${stage} ${done} of ${total}`));
  on("frames", ({ done, total }) => {
    find("progress").value = done / total;
    say(`${done} of ${total} frames`);
    film(`v1/jobs/${job.id}/video`);
  });
  for (const end of ["done", "failed", "cancelled"]) {
    on(end, async ({ error }) => {
      mine.close();
      try {
        const over = await call(`v1/jobs/${job.id}`);
        history();
        if (shown.id !== job.id) return; // the user has opened another job
        busy(false);
        say(error ? error.message : end);
        shown = over;
        show(over);
      } catch (fault) {
        say(fault.message);
      }
    });
  }
  mine.onerror = () => { // the browser reconnects unless the stream is closed
    if (shown.id !== job.id) return;
    say(mine.readyState === EventSource.CLOSED ? "the server no longer knows this job; draw again" : "the server does not answer; trying again");
  };
}

async function ask(body) {
  try {
    follow(await call("v1/jobs", body));
    history();
  } catch (error) {
    say(error.message);
  }
}

function wanted() {
  const [width, height] = find("size").value.split("x").map(Number);
  return {
    kind: "picture", bundle: find("bundle").value, prompt: find("prompt").value, seed: Number(find("seed").value), width, height,
  };
}

function moving() {
  return { kind: "video", bundle: models.find((one) => one.kind === "video").id, frames: Number(find("frames").value) };
}

async function history() {
  const { jobs } = await call("v1/jobs?limit=12").catch((error) => say(error.message) ?? { jobs: [] });
  find("history").replaceChildren(...jobs.map((job) => {
    const row = document.createElement("li");
    const button = document.createElement("button");
    const thumb = job.kind === "picture" && job.files.length ? new Image() : document.createElement("div");
    if (thumb instanceof Image) Object.assign(thumb, { src: job.files[0], alt: "" });
    else thumb.className = "blank";
    const words = document.createElement("span");
    const state = document.createElement("small");
    state.textContent = `${job.kind}, ${job.state}`;
    words.append(job.request.prompt || "(no prompt)", state);
    button.append(thumb, words);
    button.addEventListener("click", () => call(`v1/jobs/${job.id}`).then(follow).catch((error) => say(error.message)));
    row.append(button);
    return row;
  }));
}

async function plan(body, of) {
  const words = find("plan-words");
  const mine = ++plans;
  try {
    const made = await call("v1/plan", body);
    if (mine === plans) draw(made, of); // a later plan may have been requested
  } catch (error) {
    if (mine !== plans) return;
    words.textContent = error.message;
    find("plan").replaceChildren();
  }
}

function draw({ peak, budget, seconds, phases }, of) {
  const limit = budget === null ? "" : ` of ${Math.round(budget / MIB)} MiB`;
  find("plan-words").textContent = `${of}: at most ${Math.round(peak / MIB)} MiB${limit}, about ${seconds.toPrecision(2)} s.`;
  const [width, height, foot] = [320, 150, 34];
  const top = Math.max(peak, budget ?? 0) * 1.1;
  const make = (name, values, text = "") => {
    const made = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [key, value] of Object.entries(values)) made.setAttribute(key, value);
    made.textContent = text;
    return made;
  };
  const drawn = [];
  const least = seconds * 0.04; // a very short phase stays visible
  const whole = phases.reduce((sum, phase) => sum + Math.max(phase.seconds, least), 0);
  let left = 0;
  for (const [index, phase] of phases.entries()) {
    const wide = (Math.max(phase.seconds, least) / whole) * width;
    const high = (phase.peak / top) * height;
    const bar = make("rect", { x: left, y: height - high, width: Math.max(wide - 1, 1), height: high });
    bar.append(make("title", {}, `${phase.component}: ${Math.round(phase.peak / MIB)} MiB, ${phase.seconds.toPrecision(2)} s`));
    drawn.push(bar);
    if (wide > 40) drawn.push(make("text", { x: left + 2, y: height + 13 + (index % 2) * 13 }, phase.component));
    left += wide;
  }
  if (budget !== null) {
    const at = height - (budget / top) * height;
    drawn.push(make("line", { x1: 0, x2: width, y1: at, y2: at }), make("text", { x: 2, y: at - 4 }, "budget"));
  }
  find("plan").setAttribute("viewBox", `0 0 ${width} ${height + foot}`);
  find("plan").replaceChildren(...drawn);
}

function sizes() {
  const model = models.find((one) => one.id === find("bundle").value);
  const options = [1, 0.5, 1.5, 2].map((factor) => {
    const side = (pixels) => Math.round((pixels * factor) / model.multiple) * model.multiple;
    return new Option(`${side(model.width)}x${side(model.height)}`);
  });
  find("size").replaceChildren(...options);
}

async function begin() {
  models = (await call("v1/models")).data;
  const drawing = models.filter((model) => model.kind === "picture");
  find("machine").textContent = models.map((model) => model.id).join(", ");
  find("bundle").replaceChildren(...drawing.map((model) => new Option(model.id)));
  if (drawing.length) {
    sizes();
    await plan(wanted(), "A picture");
  }
  await history();
}

find("draw").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ ...wanted(), previews: true });
});
find("draw").addEventListener("change", (event) => {
  if (event.target.id === "bundle") sizes();
  plan(wanted(), "A picture");
});
find("dice").addEventListener("click", () => {
  find("seed").value = Math.floor(Math.random() * 2 ** 32);
});
find("stop").addEventListener("click", () => {
  if (shown) call(`v1/jobs/${shown.id}/cancel`, {}).catch((error) => say(error.message));
});
find("again").addEventListener("click", async () => {
  try {
    follow(await call(`v1/jobs/${shown.id}/resume`, {}));
  } catch (error) {
    say(error.message);
  }
});
find("animate").addEventListener("submit", (event) => {
  event.preventDefault();
  ask({ ...moving(), image_job: shown.id, prompt: find("motion").value || shown.request.prompt });
});
for (const moment of ["focusin", "change"]) {
  find("animate").addEventListener(moment, () => plan(moving(), `A video of ${moving().frames} frames`));
}
find("draw").addEventListener("focusin", () => plan(wanted(), "A picture"));
begin().catch((error) => say(error.message));
