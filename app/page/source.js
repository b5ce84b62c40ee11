// The picture that a request is given: a file of the user, or a picture of a job. Each kind has its own.
import { request } from "./api.js";
import { find } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];
const LARGEST = 32 * 2 ** 20; // bytes, the server's limit
const WORDS = {
  picture: ["Begin with a picture", "If you like, drop a picture here, or choose one: PNG, JPEG or WebP."],
  video: ["First picture", "Drop a picture here, or choose one: PNG, JPEG or WebP."],
};
const held = { picture: null, video: null }; // { data, words }: a data URL, and what it is
let shown = "picture";
let asked = 0; // number of pictures that were asked for; only the last one is taken
export const sources = new EventTarget(); // "picture" or "video": the kind's picture has changed

export const sourceOf = (kind) => held[kind]?.data ?? null;

export function read(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("The file cannot be read. Choose another one."));
    reader.readAsDataURL(blob);
  });
}

// Shows the field for a kind.
export function showSource(kind) {
  shown = kind;
  const [label, empty] = WORDS[kind];
  const one = held[kind];
  find("source-label").textContent = label;
  find("source-words").textContent = one?.words ?? empty;
  find("source-layers").hidden = find("unchoose").hidden = !one;
  if (one) find("source-picture").src = one.data;
  else find("source-picture").removeAttribute("src");
  find("source-picture").alt = kind === "video" ? "The first picture of the video" : "The picture to begin with";
  find("beginning").hidden = kind === "video" || !one;
}

function use(kind, one) {
  held[kind] = one;
  if (kind === shown) showSource(kind);
  sources.dispatchEvent(new Event(kind));
}

// Takes the kind's picture away. The focus stays in the field.
export function forgetSource(kind = shown) {
  asked += 1;
  if (held[kind] === null) return;
  const focused = find("source").contains(document.activeElement);
  use(kind, null);
  if (focused) find("upload").focus();
}

// Reads a file that was chosen or dropped. Throws an Error if it is no picture that the server reads.
export async function readFile(file) {
  if (!KINDS.includes(file.type)) {
    throw new Error(`${file.name} is not a PNG, JPEG or WebP file. Choose one that is.`);
  }
  if (file.size > LARGEST) {
    throw new Error(`${file.name} has ${Math.round(file.size / 2 ** 20)} MiB. Choose a file of at most 32 MiB.`);
  }
  return read(file);
}

// Reads a picture of the server, as bytes: it is sent as it is, whichever of a job's pictures it is.
export async function readAddress(address) {
  const answer = await request(address);
  if (!answer.ok) throw new Error("The picture is no longer there. Choose another one.");
  return read(await answer.blob());
}

async function take(kind, reading, words) {
  const mine = ++asked;
  const data = await reading;
  if (mine === asked) use(kind, { data, words });
}

export const takeFile = (kind, file) => take(kind, readFile(file), file.name);
export const takeAddress = (kind, address, words) => take(kind, readAddress(address), words);

// Calls `taken` with a file that the user chooses, or drops anywhere on the page.
export function onFile(taken) {
  find("upload").addEventListener("change", () => {
    const [file] = find("upload").files;
    find("upload").value = ""; // so that the same file can be chosen again
    if (file) taken(file);
  });
  const over = (on) => document.body.classList.toggle("dropping", on);
  const holds = ({ dataTransfer }) => [...(dataTransfer?.types ?? [])].includes("Files");
  addEventListener("dragover", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    over(true);
  });
  addEventListener("dragleave", (event) => event.relatedTarget === null && over(false));
  addEventListener("drop", (event) => {
    if (!holds(event)) return;
    event.preventDefault();
    over(false);
    const [file] = event.dataTransfer.files;
    if (file) taken(file);
  });
}
