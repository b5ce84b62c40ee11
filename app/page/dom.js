// Small helpers: find and make elements, keep values of this tab.
export const find = (id) => document.getElementById(id);
export const still = matchMedia("(prefers-reduced-motion: reduce)");

export function make(name, values = {}, ...parts) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(values)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...parts);
  return made;
}

export function remember(key, value) {
  try {
    if (value === null) sessionStorage.removeItem(`segue-${key}`);
    else sessionStorage.setItem(`segue-${key}`, JSON.stringify(value));
  } catch {
    // the browser forbids storage: a reload forgets
  }
}

export function remembered(key) {
  try {
    return JSON.parse(sessionStorage.getItem(`segue-${key}`));
  } catch {
    return null;
  }
}

export function later(act, wait) {
  let timer = 0;
  return (...given) => {
    clearTimeout(timer);
    timer = setTimeout(act, wait, ...given);
  };
}

// A button that acts on its second click. The first one asks, and the question goes away by itself.
export function confirmed(button, question, act) {
  const [words, name] = [button.textContent, button.getAttribute("aria-label")];
  let timer = 0;
  const ask = (asking) => {
    clearTimeout(timer);
    button.classList.toggle("armed", asking);
    button.textContent = asking ? "Delete?" : words;
    if (asking) button.setAttribute("aria-label", question);
    else if (name === null) button.removeAttribute("aria-label");
    else button.setAttribute("aria-label", name);
  };
  button.addEventListener("click", () => {
    const sure = button.classList.contains("armed");
    ask(!sure);
    if (sure) act();
    else timer = setTimeout(ask, 5000, false);
  });
  button.addEventListener("blur", () => ask(false));
}
