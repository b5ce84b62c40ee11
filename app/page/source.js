// The pictures that a request is given: files of the user, or pictures of jobs. Each kind begins with its own.
import { request } from "./api.js";
import { find } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];
const LARGEST = 32 * 2 ** 20; // bytes, the server's limit
const LABELS = { picture: "Begin with a picture", video: "First picture" };
const held = { picture: null, video: null, last: null }; // { data, words }: a data URL, and what it is
const asked = { picture: 0, video: 0, last: 0 }; // numbers of pictures that were asked for; only the newest is taken
let [shown, optional] = ["picture", true]; // what the first field shows; "last", of videos, has the second one
export const sources = new EventTarget(); // "picture", "video" or "last": this picture has changed

export const sourceOf = (name) => held[name]?.data ?? null;

export function read(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("The file cannot be read. Choose another one."));
    reader.readAsDataURL(blob);
  });
}

// Shows the fields for a model: its first picture may be optional, and it may take a last one.
export function showSources(kind, alone, ends) {
  [shown, optional] = [kind, alone];
  find("source-label").textContent = LABELS[kind];
  find("source-picture").alt = kind === "video" ? "The first picture of the video" : "The picture to begin with";
  find("last").hidden = find("last-upload").disabled = !ends;
  fill("source", "unchoose", held[kind], alone);
  fill("last", "last-unchoose", held.last, true);
}

function fill(field, remove, one, spared) {
  const empty = `${spared ? "If you like, drop" : "Drop"} a picture here, or choose one: PNG, JPEG or WebP.`;
  find(`${field}-words`).textContent = one?.words ?? empty;
  find(`${field}-layers`).hidden = find(remove).hidden = !one;
  if (field === "source") find("beginning").hidden = shown === "video" || !one;
  if (one) find(`${field}-picture`).src = one.data;
  else find(`${field}-picture`).removeAttribute("src");
}

function use(name, one) {
  held[name] = one;
  if (name === "last") fill("last", "last-unchoose", one, true);
  else if (name === shown) fill("source", "unchoose", one, optional);
  sources.dispatchEvent(new Event(name));
}

// Takes a picture away. The focus stays in its field.
export function forgetSource(name = shown) {
  asked[name] += 1;
  if (held[name] === null) return;
  const [field, upload] = name === "last" ? ["last", "last-upload"] : ["source", "upload"];
  const focused = find(field).contains(document.activeElement);
  use(name, null);
  if (focused) find(upload).focus();
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

async function take(name, reading, words) {
  const mine = ++asked[name];
  const data = await reading;
  if (mine === asked[name]) use(name, { data, words });
}

export const takeFile = (name, file) => take(name, readFile(file), file.name);
export const takeAddress = (name, address, words) => take(name, readAddress(address), words);

// Calls `taken` with a file that the user chooses, or drops anywhere on the page, and whether it is the last picture.
export function onFile(taken) {
  for (const field of [find("upload"), find("last-upload")]) {
    field.addEventListener("change", () => {
      const [file] = field.files;
      field.value = ""; // so that the same file can be chosen again
      if (file) taken(file, field.id === "last-upload");
    });
  }
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
    if (file) taken(file, find("last").contains(event.target));
  });
}
