// Reference pictures, for models that draw from them.
import { complain } from "./api.js";
import { find, make } from "./dom.js";
import { readAddress, readFile } from "./source.js";

let held = []; // data URLs
let most = 0;
let changed = () => {};

// Shows the field for a model that takes `count` references.
export function offerReferences(count) {
  most = count;
  find("references").hidden = !count;
  show();
}

export function referencesOf(kind, model) {
  return kind === "picture" && model?.references && held.length ? { references: held } : {};
}

function show() {
  find("references-label").textContent = `References, up to ${most}`;
  find("references-upload").disabled = held.length >= most;
  find("references-list").replaceChildren(...held.map((data, at) => {
    const remove = make("button", {
      type: "button", className: "remove", "aria-label": `Remove reference ${at + 1}`,
    }, "×");
    remove.addEventListener("click", () => {
      held = held.filter((one) => one !== data);
      show();
      changed();
      (find("references-list").querySelector("button") ?? find("references-upload")).focus();
    });
    return make("li", {}, make("img", { src: data, alt: `Reference ${at + 1}` }), remove);
  }));
}

// Takes the references of a job, by their addresses.
export async function restoreReferences(addresses) {
  held = [];
  show();
  held = await Promise.all(addresses.map(readAddress));
  show();
}

// Calls `act` if the references are others.
export function onReferences(act) {
  changed = act;
  find("references-upload").addEventListener("change", async () => {
    const files = [...find("references-upload").files];
    find("references-upload").value = "";
    complain("");
    try {
      if (held.length + files.length > most) throw new Error(`The model takes ${most} references. Choose fewer.`);
      held = [...held, ...(await Promise.all(files.map(readFile)))];
    } catch (error) {
      complain(error.message);
    }
    show();
    changed();
  });
}
