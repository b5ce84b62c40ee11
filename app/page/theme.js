// The theme: the system's unless the user has chosen the other one. It runs before the page is painted.
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const system = () => (dark.matches ? "dark" : "light");
  const chosen = () => {
    try {
      return localStorage.getItem("segue-theme");
    } catch {
      return null; // the browser forbids storage
    }
  };
  const keep = (theme) => {
    try {
      if (theme === system()) localStorage.removeItem("segue-theme"); // the page follows the system again
      else localStorage.setItem("segue-theme", theme);
    } catch {
      // the choice holds until the page is left
    }
  };
  const use = (theme) => {
    if (theme === null) delete root.dataset.theme;
    else root.dataset.theme = theme;
    document.getElementById("theme")?.setAttribute("aria-pressed", (theme ?? system()) === "dark");
  };
  use(chosen());
  dark.addEventListener("change", () => use(chosen()));
  addEventListener("storage", ({ key }) => key === "segue-theme" && use(chosen()));
  addEventListener("DOMContentLoaded", () => {
    use(chosen());
    document.getElementById("theme").addEventListener("click", () => {
      const other = (root.dataset.theme ?? system()) === "dark" ? "light" : "dark";
      keep(other);
      use(other === system() ? null : other);
    });
  });
})();
