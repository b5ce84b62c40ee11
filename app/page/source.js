// The first picture of a video: a file of the user, or a picture of a job.
import { request } from "./api.js";
import { find } from "./dom.js";

const KINDS = ["image/png", "image/jpeg", "image/webp"];
const LARGEST = 32 * 2 ** 20; // bytes, the server's limit
let image = null; // a data URL, or null

export const sourceOf = () => image;

function read(blob) {
  return new Promise((done, fail) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => fail(new Error("The file cannot be read. Choose another one."));
    reader.readAsDataURL(blob);
  });
}

function use(data, words) {
  image = data;
  find("source-picture").src = data;
  find("source-picture").hidden = false;
  find("source-words").textContent = words;
}

// Takes a file that was chosen or dropped. Throws an Error if it is no picture that the server reads.
export async function takeFile(file) {
  if (!KINDS.includes(file.type)) {
    throw new Error(`${file.name} is not a PNG, JPEG or WebP file. Choose one that is.`);
  }
  if (file.size > LARGEST) {
    throw new Error(`${file.name} has ${Math.round(file.size / 2 ** 20)} MiB. Choose a file of at most 32 MiB.`);
  }
  use(await read(file), file.name);
}

// Takes a picture of the server, as bytes: it is sent as it is, whichever of a job's pictures it is.
export async function takeAddress(address, words) {
  const answer = await request(address);
  if (!answer.ok) throw new Error("The picture is no longer there. Choose another one.");
  use(await read(await answer.blob()), words);
}

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
