// How a picture begins with another one: its strength, its mask and the request for both.
import { fail } from "./api.js";
import { find } from "./dom.js";
import { featherOf, maskOf, masked, onPainted, paint } from "./mask.js";
import { forgetSource, sourceOf, sources } from "./source.js";

const USUAL = 0.6; // the server's; with a mask it is 1
const strength = find("strength");
let chosen = false; // the user has chosen the strength

function show() {
  if (!chosen) strength.value = masked() ? 1 : USUAL;
  find("strength-words").textContent = Number(strength.value).toFixed(2);
}

// The numbers of a request that begins with a picture. They suffice for a plan.
export function beginning(kind, model) {
  const begins = kind === "picture" && model?.takes_image && sourceOf("picture") !== null;
  return begins ? { strength: Number(strength.value) } : {};
}

// What a request adds to the numbers: its pictures.
export function given(kind, model) {
  if (kind === "video") {
    const [image, last] = [sourceOf("video"), model?.takes_last ? sourceOf("last") : null];
    return { ...(image && { image }), ...(last && { last }) };
  }
  const mask = maskOf();
  const edge = featherOf() ? { feather: featherOf() } : {};
  return { image: sourceOf("picture"), ...(mask === null ? {} : { mask, ...edge }) };
}

// Takes the numbers of a job.
export function restoreBeginning({ strength: asked, mask, feather }) {
  chosen = asked !== undefined;
  if (chosen) strength.value = asked;
  find("feather").value = mask && feather ? feather : "";
  show();
}

// Calls `changed` if a request would be another one.
export function onBeginning(changed) {
  strength.addEventListener("input", () => {
    chosen = true;
    show();
  });
  onPainted(() => {
    show();
    changed();
  });
  sources.addEventListener("picture", () => {
    chosen = false;
    show();
  });
  for (const [button, name] of [["unchoose", undefined], ["last-unchoose", "last"]]) {
    find(button).addEventListener("click", () => {
      forgetSource(name);
      changed();
    });
  }
  find("paint").addEventListener("click", () => paint().catch(fail));
  show();
}
