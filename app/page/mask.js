// The mask: what is painted on the picture is redrawn. Pointers of every kind paint, and so does the keyboard.
import { find, make } from "./dom.js";
import { readAddress, sourceOf, sources } from "./source.js";

const COLOUR = "#f0f"; // of the painted part; its opacity is the mask
const LONGEST = 2048; // pixels of the canvas: a stroke needs no more
const LARGEST = 16 * 2 ** 20; // pixels of a picture; above this a phone has no canvas for its mask
const canvas = find("canvas");
const pen = canvas.getContext("2d", { willReadFrequently: true });
const KEYS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
let size = null; // [width, height] of the picture; null until it is painted on
let share = 0; // of the picture that is redrawn, from 0 to 1
let last = null; // where the stroke is, in pixels of the canvas
let brush = [0, 0]; // where the keyboard's brush is

export const masked = () => share > 0;
export const featherOf = () => (masked() && find("feather").validity.valid ? Number(find("feather").value) : 0);

// The mask as a data URL, white where it is redrawn; null without one.
export function maskOf() {
  if (!masked()) return null;
  const made = make("canvas", { width: size[0], height: size[1] });
  const mark = made.getContext("2d");
  mark.imageSmoothingEnabled = false;
  mark.drawImage(canvas, 0, 0, ...size);
  for (const [rule, colour] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
    mark.globalCompositeOperation = rule;
    mark.fillStyle = colour;
    mark.fillRect(0, 0, ...size);
  }
  return made.toDataURL("image/png");
}

// Counts what is painted, and tells it here and beside the picture.
function count() {
  const { data } = pen.getImageData(0, 0, canvas.width, canvas.height);
  let painted = 0;
  for (let at = 3; at < data.length; at += 4) painted += data[at];
  share = painted / (255 * canvas.width * canvas.height);
  const part = share > 0 && share < 0.01 ? "less than 1 %" : `${Math.round(100 * share)} %`;
  find("mask-words").textContent = share ? `${part} of the picture is redrawn.` : "Nothing is painted yet.";
  find("source-mask").hidden = find("unmask").hidden = !share;
  find("paint").textContent = share ? "Change the mask" : "Paint a mask";
  if (share) {
    const small = find("source-mask");
    [small.width, small.height] = [canvas.width, canvas.height];
    small.getContext("2d").drawImage(canvas, 0, 0);
  }
  canvas.dispatchEvent(new Event("painted"));
}

export function onPainted(act) {
  canvas.addEventListener("painted", act);
}

function fill(rule) {
  pen.globalCompositeOperation = rule;
  pen.fillStyle = COLOUR;
  pen.fillRect(0, 0, canvas.width, canvas.height);
  count();
}

export function clearMask() {
  if (size) fill("destination-out");
}

// Fits the canvas to the picture, once for each picture. Throws an Error if it is too large.
async function fit() {
  if (size) return;
  const picture = find("mask-picture");
  picture.src = sourceOf("picture");
  await picture.decode();
  const [width, height] = [picture.naturalWidth, picture.naturalHeight];
  if (width * height > LARGEST) {
    throw new Error("The picture has more than 16 million pixels. Scale it down to paint a mask on it.");
  }
  const part = Math.min(1, LONGEST / Math.max(width, height));
  [canvas.width, canvas.height] = [width, height].map((side) => Math.max(1, Math.round(side * part)));
  size = [width, height];
  find("easel").style.setProperty("--ratio", width / height);
  brush = [canvas.width / 2, canvas.height / 2];
}

// Takes the mask of a job.
export async function takeMask(address) {
  const picture = sourceOf("picture");
  const given = make("img", { src: await readAddress(address) });
  await given.decode();
  await fit();
  if (sourceOf("picture") !== picture) return; // another job was opened meanwhile
  pen.globalCompositeOperation = "copy";
  pen.drawImage(given, 0, 0, canvas.width, canvas.height);
  const found = pen.getImageData(0, 0, canvas.width, canvas.height);
  for (let at = 0; at < found.data.length; at += 4) {
    const level = found.data[at]; // the file is grey, and its brightness is the mask
    found.data.set([255, 0, 255, level], at);
  }
  pen.putImageData(found, 0, 0);
  count();
}

const width = () => Math.max(1, (Number(find("brush").value) / 100) * Math.max(canvas.width, canvas.height));

function stroke(to) {
  pen.globalCompositeOperation = find("erase").ariaPressed === "true" ? "destination-out" : "source-over";
  pen.strokeStyle = pen.fillStyle = COLOUR;
  pen.lineCap = "round";
  pen.lineWidth = width();
  pen.beginPath();
  if (last === null) { // a line of no length is not drawn
    pen.arc(...to, width() / 2, 0, 2 * Math.PI);
    pen.fill();
  } else {
    pen.moveTo(...last);
    pen.lineTo(...to);
    pen.stroke();
  }
  last = to;
}

function place({ clientX, clientY }) {
  const box = canvas.getBoundingClientRect();
  return [((clientX - box.left) / box.width) * canvas.width, ((clientY - box.top) / box.height) * canvas.height];
}

function ring([x, y]) {
  const { style } = find("ring");
  find("ring").hidden = false;
  [style.left, style.top] = [`${(100 * x) / canvas.width}%`, `${(100 * y) / canvas.height}%`];
  style.width = `${(100 * width()) / canvas.width}%`;
}

function end() {
  if (last === null) return;
  last = null;
  count();
}

canvas.addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || !event.isPrimary) return;
  event.preventDefault(); // which would select text
  canvas.focus({ focusVisible: false, preventScroll: true });
  canvas.setPointerCapture(event.pointerId);
  brush = place(event);
  stroke(brush);
  ring(brush);
});
canvas.addEventListener("pointermove", (event) => {
  if (!event.isPrimary) return;
  ring(place(event));
  if (last === null) return;
  const passed = event.getCoalescedEvents?.() ?? [];
  for (const one of passed.length ? passed : [event]) stroke(place(one));
  brush = last;
});
for (const name of ["pointerup", "pointercancel", "lostpointercapture"]) canvas.addEventListener(name, end);
canvas.addEventListener("pointerleave", () => {
  if (last === null && document.activeElement !== canvas) find("ring").hidden = true;
});
canvas.addEventListener("focus", () => ring(brush));
canvas.addEventListener("blur", () => {
  end();
  find("ring").hidden = true;
});
canvas.addEventListener("keydown", (event) => {
  const way = KEYS[event.key];
  if (!way && event.key !== " ") return;
  event.preventDefault(); // which would scroll
  if (way) {
    const step = event.shiftKey ? 1 : width() / 2;
    const edges = [canvas.width, canvas.height];
    brush = brush.map((at, axis) => Math.min(Math.max(at + way[axis] * step, 0), edges[axis]));
    if (last !== null) stroke(brush); // Space is held
  } else {
    stroke(brush);
  }
  ring(brush);
});
canvas.addEventListener("keyup", ({ key }) => key === " " && end());
find("brush").value = 12;
find("brush").addEventListener("input", () => ring(brush));
find("brush").addEventListener("change", () => (find("ring").hidden = true));
find("erase").addEventListener("click", () => {
  find("erase").ariaPressed = String(find("erase").ariaPressed !== "true");
});
find("invert").addEventListener("click", () => fill("xor"));
find("clear").addEventListener("click", clearMask);
find("unmask").addEventListener("click", () => {
  clearMask();
  find("paint").focus(); // the button goes away
});
find("mask-done").addEventListener("click", () => find("mask").close());
sources.addEventListener("picture", () => {
  find("mask").close(); // another picture may be dropped on it
  clearMask();
  size = null;
  find("feather").value = "";
});

// Opens the canvas. Throws an Error if the picture cannot be painted on.
export async function paint() {
  await fit();
  find("erase").ariaPressed = "false";
  count();
  find("mask").showModal();
  canvas.focus({ focusVisible: false });
}
