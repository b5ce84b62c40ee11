// Names that the model knows: suggestions while the user types, and examples for the empty page.
import { call } from "./api.js";
import { find, make } from "./dom.js";

const SHOWN = 8; // suggestions at once
let offered = []; // [what the list shows, what the field then holds]
let active = -1; // the marked one
let asked = 0; // number of requested lists
let timer = 0;

const box = () => find("prompt");
const list = () => find("names");

async function known(bundle, query, limit = SHOWN) {
  return call(`v1/prompts?${new URLSearchParams({ bundle, query, limit })}`).catch(() => ({ names: [], styles: [] }));
}

// A prompt is a name, or a name, a comma and a style.
async function suggest(always = false) {
  const mine = ++asked;
  const [bundle, text] = [find("bundle").value, box().value];
  const comma = text.lastIndexOf(",");
  const [name, query] = [text.slice(0, Math.max(comma, 0)), text.slice(comma + 1).trim()];
  if (!bundle || !(text.trim() || always)) {
    show([]);
    return;
  }
  const { names, styles } = await known(bundle, comma < 0 ? query : name);
  if (mine !== asked || document.activeElement !== box()) return;
  const fitting = comma < 0
    ? names.map((one) => [one, one])
    : styles.filter((one) => one.startsWith(query)).map((one) => [one, `${name}, ${one}`]);
  show(fitting.filter(([, whole]) => whole !== text));
}

function show(found) {
  offered = found;
  list().replaceChildren(...offered.map(([words], at) => (
    make("li", { id: `name-${at}`, role: "option", "aria-selected": "false" }, words)
  )));
  list().hidden = !offered.length;
  box().setAttribute("aria-expanded", String(offered.length > 0));
  mark(-1);
}

function close() {
  clearTimeout(timer);
  asked++; // a list that is on its way is not shown
  show([]);
}

function mark(at) {
  active = at;
  for (const [index, row] of [...list().children].entries()) row.setAttribute("aria-selected", String(index === at));
  if (at < 0) {
    box().removeAttribute("aria-activedescendant");
    return;
  }
  box().setAttribute("aria-activedescendant", `name-${at}`);
  list().children[at].scrollIntoView({ block: "nearest" });
}

function choose(at) {
  box().value = offered[at][1];
  close();
  box().dispatchEvent(new Event("change", { bubbles: true }));
}

function press(event) {
  const states = offered.length + 1; // one more: nothing is marked
  if (event.isComposing) return;
  if (event.key === "ArrowDown" && !offered.length) suggest(true);
  else if (event.key === "ArrowDown") mark((active + 2) % states - 1);
  else if (event.key === "ArrowUp" && offered.length) mark((active + states) % states - 1);
  else if (event.key === "Enter" && active >= 0) choose(active);
  else if (event.key === "Escape" && offered.length) close();
  else {
    if (["Enter", "Escape"].includes(event.key)) close();
    return;
  }
  event.preventDefault();
}

export function listen() {
  box().addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(suggest, 120);
  });
  box().addEventListener("blur", close);
  box().addEventListener("keydown", press);
  list().addEventListener("mousedown", (event) => event.preventDefault()); // the focus stays in the field
  list().addEventListener("click", (event) => {
    const at = [...list().children].indexOf(event.target.closest("li"));
    if (at >= 0) choose(at);
  });
}

// Returns at most `count` names of the bundle, other ones at each call.
export async function examples(bundle, count) {
  const { names } = await known(bundle, "", 50);
  const picked = [];
  while (names.length && picked.length < count) {
    picked.push(...names.splice(Math.floor(Math.random() * names.length), 1));
  }
  return picked;
}
