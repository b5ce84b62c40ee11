// The form as a request, and a request as the form.
import { beginning } from "./begin.js";
import { find, remember, remembered } from "./dom.js";
import { offerReferences, referencesOf } from "./references.js";
import { showSources } from "./source.js";

const NUMBERS = ["count", "frames", "seed", "steps", "guidance"];
const TEXTS = ["prompt", "negative"];
let models = [];
let turned = "picture"; // the kind whose values the form shows
const others = {}; // the values of the other kind

export const kind = () => document.querySelector("[name=kind]:checked").value;
export const model = () => models.find((one) => one.id === find("bundle").value);
export const modelOf = (id) => models.find((one) => one.id === id);
export const able = (wanted) => models.some((one) => one.kind === wanted);
// The model that a picture can be given to: the chosen one if it takes any.
export const taker = () => [model(), ...models].find((one) => one?.kind === "picture" && one.takes_image);

export function setModels(found) {
  models = found;
  const kinds = ["picture", "video"].filter(able);
  find("kinds").hidden = kinds.length < 2;
  const chosen = kinds.includes(kind()) ? kind() : kinds[0];
  const bundle = find("bundle").value;
  if (chosen) turn(chosen, bundle);
  find("go").disabled = !chosen;
}

// Shows the fields of a kind. Each kind keeps its own values.
export function turn(wanted, bundle) {
  if (wanted !== turned) {
    others[turned] = values();
    document.querySelector(`[name=kind][value=${wanted}]`).checked = true;
    turned = wanted;
    offer(bundle ?? others[wanted]?.bundle);
    set(others[wanted] ?? {});
  } else {
    offer(bundle);
  }
  const video = wanted === "video";
  const [prompt, source] = [find("prompt-field"), find("source")];
  const moved = (prompt.nextElementSibling === source) === video;
  if (moved && video) find("last").before(source);
  else if (moved) prompt.after(source);
  find("prompt").required = !video;
  find("go").textContent = video ? "Animate" : "Draw";
}

function offer(bundle) {
  const fitting = models.filter((one) => one.kind === turned);
  find("bundle").replaceChildren(...fitting.map((one) => new Option(one.id)));
  find("bundle").value = fitting.some((one) => one.id === bundle) ? bundle : fitting[0]?.id ?? "";
  adapt();
}

// Offers what the chosen model can do.
export function adapt() {
  const one = model();
  if (!one) return;
  const size = find("size").value;
  const options = sizesOf(one).map(([width, height]) => option(width, height));
  find("size").replaceChildren(...options);
  const usual = `${one.width}x${one.height}`;
  find("size").value = options.some(({ value }) => value === size) ? size : usual;
  if (!find("size").value) find("size").selectedIndex = 0;
  const picture = one.kind === "picture";
  const shown = {
    count: picture, steps: picture, guidance: picture && one.guided, negative: one.negative, frames: !picture,
  };
  for (const [name, visible] of Object.entries(shown)) {
    find(name).disabled = !visible;
    find(name).closest(".field").hidden = !visible;
  }
  find("source").hidden = find("upload").disabled = !one.takes_image;
  showSources(one.kind, one.takes_text_alone, one.takes_last);
  find("prompt-label").textContent = one.takes_text_alone ? "Prompt" : "Motion";
  offerReferences(picture ? one.references : 0);
  find("more").hidden = !(shown.steps || shown.guidance || shown.negative);
  find("steps").placeholder = one.steps ?? "";
  find("frames").placeholder = one.frames ?? "";
}

const sizesOf = (one) => (one.sizes?.length ? one.sizes : [[one.width, one.height]]);

function option(width, height, words = "") {
  return new Option(`${width} × ${height}${words}`, `${width}x${height}`);
}

function values() {
  const names = [...NUMBERS, ...TEXTS, "bundle", "size"];
  return Object.fromEntries(names.map((name) => [name, find(name).value]));
}

function set(given) {
  for (const name of [...NUMBERS, ...TEXTS]) find(name).value = given[name] ?? "";
  const named = ["steps", "guidance", "negative"].filter((name) => find(name).value !== "" && !find(name).disabled);
  if (named.length) find("more").open = true;
  if (given.size) choose(...given.size.split("x"));
}

function choose(width, height) {
  const value = `${width}x${height}`;
  const known = [...find("size").options].some((one) => one.value === value);
  if (!known) find("size").append(option(width, height, ", not trained"));
  find("size").value = value;
}

// The body of POST /v1/jobs, without the picture that it begins with and its mask.
export function wanted() {
  const body = { kind: turned, bundle: find("bundle").value, prompt: find("prompt").value };
  for (const name of NUMBERS) {
    const field = find(name);
    if (!field.disabled && field.value !== "") body[name] = Number(field.value);
  }
  if (!find("negative").disabled && find("negative").value) body.negative = find("negative").value;
  [body.width, body.height] = find("size").value.split("x").map(Number);
  return { ...body, ...beginning(turned, model()), ...referencesOf(turned, model()) };
}

// Puts a job's request into the form; returns what could not be restored, or "".
export function restore({ kind: made, bundle, request }) {
  if (!able(made)) return `This server has no model that makes a ${made}.`;
  turn(made, bundle);
  const [height, width] = request.size ?? [];
  const given = Object.fromEntries([...NUMBERS, ...TEXTS].map((name) => [name, request[name]?.toString()]));
  if (given.count === "1") delete given.count; // it is the default
  const one = model();
  set({ ...given, size: width ? `${width}x${height}` : one && `${one.width}x${one.height}` });
  return one?.id === bundle ? "" : `This server has no model ${bundle}. The form keeps ${one?.id}.`;
}

export function keepDraft() {
  remember("draft", { kind: turned, values: values(), others });
}

// Returns whether this tab had a draft.
export function restoreDraft() {
  const draft = remembered("draft");
  if (!draft || !able(draft.kind)) return false;
  turn(draft.kind, draft.values.bundle);
  set(draft.values);
  Object.assign(others, draft.others);
  return true;
}
