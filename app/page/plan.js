// The planned memory and time: one quiet line that opens to the phases.
import { call, Gone } from "./api.js";
import { find, later, make } from "./dom.js";
import { model, wanted } from "./form.js";

let asked = ""; // the plan that was requested last

const mib = (bytes) => `${Math.round(bytes / 2 ** 20).toLocaleString("en")} MiB`;

export function time(seconds) {
  if (seconds < 0.1) return `${Math.max(Math.round(seconds * 1000), 1)} ms`;
  if (seconds < 10) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 100) return `${Math.round(seconds)} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${Number((seconds / 3600).toPrecision(2))} h`;
}

// Asks for a plan of what the form holds, once the form is quiet.
export const plan = later(async () => {
  const fields = ["count", "frames", "steps", "guidance"];
  if (!model() || !fields.every((name) => find(name).validity.valid)) return;
  const { seed, ...body } = { ...wanted(), prompt: "" }; // neither changes a plan
  const mine = JSON.stringify(body);
  if (mine === asked) return;
  asked = mine;
  try {
    const made = await call("v1/plan", body);
    if (mine === asked) show(made);
  } catch (error) {
    if (mine !== asked) return;
    asked = "";
    if (!(error instanceof Gone)) refuse(error.message);
  }
}, 250);

function show({ peak, server, budget, seconds, phases }) {
  find("plan").hidden = false;
  find("plan-words").textContent = `the model takes at most ${mib(peak)}, about ${time(seconds)}`;
  find("phases").replaceChildren(...phases.map((phase) => {
    const bar = make("span", { className: "bar", ariaHidden: "true" });
    bar.style.setProperty("--part", phase.peak / peak);
    const words = phase.component.replaceAll("_", " ") + (phase.calls > 1 ? `, ${phase.calls} calls` : "");
    return make("tr", {}, make("th", { scope: "row" }, words), make("td", {}, bar, mib(phase.peak)),
      make("td", {}, time(phase.seconds)));
  }));
  const besides = server ? `The server itself takes ${mib(server)}, and each other loaded model adds its own. ` : "";
  find("budget").textContent = besides + (budget === null ? "" : `The model's budget is ${mib(budget)}.`);
}

function refuse(words) {
  find("plan").hidden = false;
  find("plan-words").textContent = words;
  find("phases").replaceChildren();
  find("budget").textContent = "";
}
